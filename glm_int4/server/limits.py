"""What every request passes before its route: host, key, size and time."""

import asyncio
from collections.abc import Collection, MutableMapping
from typing import Any

from glm_int4.downloads import shown_name
from glm_int4.server.access.body_checks import check_json_body
from glm_int4.server.access.keys import find_key
from glm_int4.server.access.logs import RECORD
from glm_int4.server.access.paths import App, Receive, Scope, Send
from glm_int4.server.api_errors import ApiError
from glm_int4.server.page import PAGE_PATHS
from glm_int4.server.settings import Settings

_WITHOUT_KEY = (*PAGE_PATHS, "/health", "/ping", "/version", "/openapi.json")


class LimitsMiddleware:
    """Turns requests away that are too large, too slow, without the key or for another host.

    The Host header is checked where the server is bound to the loopback address: otherwise any web page could
    reach it through a name of its own that resolves to 127.0.0.1. The body is read here, so that no route has to
    bound it. Requests to ``json_paths`` must have JSON as a body.
    """

    def __init__(self, app: App, settings: Settings, json_paths: Collection[str] = ()) -> None:
        self._app, self._settings, self._json_paths = app, settings, json_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            headers = dict(scope["headers"])
            self._check_host(headers.get(b"host"))
            self._check_key(scope, headers.get(b"authorization", b""))
            body = await self._read(receive, headers.get(b"content-length", b"0"))
            if body is not None and scope["method"] == "POST" and scope["path"] in self._json_paths:
                check_json_body(headers, body)
        except ApiError as error:
            await error.as_response()(scope, receive, send)
            return
        if body is None:
            return  # the client left
        await self._app(scope, _replay(body, receive), send)

    def _check_host(self, host: bytes | None) -> None:
        names = self._settings.host_names
        if host is None:
            return  # HTTP/1.0, which no browser speaks
        name = host.decode("latin-1").lower()
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        if names and name not in names:
            raise ApiError(
                403,
                f"expected a request for {names[0]}, got one for {shown_name(name) if name else 'no host'}; "
                "the server's --allow-host takes another name",
            )

    def _check_key(self, scope: Scope, header: bytes) -> None:
        if not self._settings.keys or scope["path"] in _WITHOUT_KEY:
            return
        key = find_key(self._settings.keys, header)
        if key is None:
            raise ApiError(
                401,
                "expected the server's API key as Authorization: Bearer KEY, got another or none",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        scope[RECORD].key = key.name

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
