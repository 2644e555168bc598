"""Answers that come in pieces, and noticing that nobody waits for them any more."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

from fastapi.responses import Response

from glm_int4.server.api_errors import to_json

Result = TypeVar("Result")

_QUIET_SECONDS = 15.0  # then a comment is sent, so that nothing in between takes the connection for dead
IS_EVENT_STREAM = "glm_int4.event_stream"  # in the scope of a request that gets one
DONE = b"data: [DONE]\n\n"


class ClientGoneError(Exception):
    """The client has left before its answer was complete."""


def event(value: object) -> bytes:
    """One server-sent event."""
    return b"data: " + to_json(value) + b"\n\n"


async def while_connected(receive: Callable[[], Awaitable[Any]], work: Awaitable[Result]) -> Result:
    """The result of ``work``, which is cancelled when the client leaves.

    Raises:
        ClientGoneError: it has left.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()


async def _until_gone(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events.

    Args:
        events: what is sent, ready-made.
        send_seconds: for a client to take one event; a slower one is left.
        closed: called when the stream has ended, however.
        headers: beside those of every stream.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[bytes],
        *,
        send_seconds: float,
        closed: Callable[[], None],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._events, self._send_seconds, self._closed = events, send_seconds, closed

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        scope[IS_EVENT_STREAM] = True
        try:
            await while_connected(receive, self._send_all(send))
        except (ClientGoneError, TimeoutError, OSError):
            pass  # nobody is there to be told
        finally:
            self._closed()

    async def _send_all(self, send: Any) -> None:
        async def send_in_time(message: dict[str, Any]) -> None:
            async with asyncio.timeout(self._send_seconds):
                await send(message)

        await send_in_time({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for part in self._events:
            await send_in_time({"type": "http.response.body", "body": part, "more_body": True})
        await send_in_time({"type": "http.response.body", "body": b"", "more_body": False})


async def next_or_comment(queue: "asyncio.Queue[Result]") -> Result | None:
    """The next item, or None where it is time for a sign of life."""
    try:
        return await asyncio.wait_for(queue.get(), _QUIET_SECONDS)
    except TimeoutError:
        return None


COMMENT = b": waiting\n\n"
