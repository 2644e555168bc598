"""Paths as they are meant: slashes at the end or twice, and HEAD where there is GET."""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class PathMiddleware:
    """Tidies a request's path, and answers HEAD as GET without a body.

    A redirect to the tidy path would name this server as it knows itself, not as a proxy with a path in front does.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["path"] = "/" + re.sub("/+", "/", scope["path"]).strip("/")
        if scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def without_body(message: MutableMapping[str, Any]) -> None:
            scope["method"] = "HEAD"  # uvicorn leaves the body out where it finds that here
            await send(message)

        scope["method"] = "GET"
        await self._app(scope, receive, without_body)
