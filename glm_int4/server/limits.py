"""What every request passes before its route: host, key, size and time."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from prometheus_client import Counter

from glm_int4.server.api_errors import ApiError
from glm_int4.server.page import PAGE_PATHS
from glm_int4.server.settings import Settings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_WITHOUT_KEY = (*PAGE_PATHS, "/health", "/openapi.json")


class LimitsMiddleware:
    """Turns requests away that are too large, too slow, without the key or for another host.

    The Host header is checked where the server is bound to the loopback address: otherwise any web page could
    reach it through a name of its own that resolves to 127.0.0.1. The body is read here, so that no route has to
    bound it.
    """

    def __init__(self, app: App, settings: Settings) -> None:
        self._app, self._settings = app, settings
        self._key = None if settings.api_key is None else settings.api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            headers = dict(scope["headers"])
            self._check_host(headers.get(b"host", b""))
            self._check_key(scope["path"], headers.get(b"authorization", b""))
            body = await self._read(receive, headers.get(b"content-length", b"0"))
        except ApiError as error:
            await error.as_response()(scope, receive, send)
            return
        if body is None:
            return  # the client left
        await self._app(scope, _replay(body, receive), send)

    def _check_host(self, host: bytes) -> None:
        names = self._settings.host_names
        name = host.decode("latin-1").lower()
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        if names and name not in names:
            raise ApiError(
                403, f"expected a request for {names[0]}, got one for another host; name it with --allow-host"
            )

    def _check_key(self, path: str, header: bytes) -> None:
        if self._key is None or path in _WITHOUT_KEY:
            return
        scheme, _, given = header.partition(b" ")
        right = hmac.compare_digest(given.strip(), self._key)
        if scheme.lower() != b"bearer" or not right:
            raise ApiError(
                401,
                "expected the server's API key as Authorization: Bearer KEY, got another or none",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _read(self, receive: Receive, length: bytes) -> bytes | None:
        """The whole body; None where the client left before its end."""
        most = self._settings.max_body_bytes
        if length.isdigit() and int(length[:20]) > most:
            raise self._too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            seconds = self._settings.body_seconds
            raise ApiError(408, f"expected the whole request within {seconds:g} seconds, got a part of it") from None

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            f"expected a request of at most {self._settings.max_body_bytes} bytes, got more; send less",
            code="request_too_large",
            headers={"Connection": "close"},
        )


class CountingMiddleware:
    """Counts answers by route and status."""

    def __init__(self, app: App, counter: Counter) -> None:
        self._app, self._counter = app, counter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counting(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")  # the router's own, so that they are few
                self._counter.labels(route, str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, counting)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives a body that was read already, then what comes after it."""
    given = False

    async def replay() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
