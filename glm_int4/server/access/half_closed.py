"""Clients that end their side of a connection once they have asked: they still get their answer.

The system tells a client that waits from one that has left only when something is sent: to the first nothing happens,
for the second the connection breaks. So both are sent a sign of life, which clients do not look at.
"""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from glm_int4.server.event_stream import COMMENT, IS_EVENT_STREAM

_ASKED = (h11.DONE, h11.MUST_CLOSE)  # the second in HTTP/1.0
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_AT_ONCE, _LATER = 0.05, 1.0  # seconds: the first sign tells nothing, but makes a host that is gone say so


class HalfClosableProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, which takes a client's end for its leaving, without that."""

    _half_closed = False
    _sign: asyncio.TimerHandle | None = None

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection where a whole request waits for its answer."""
        if self.cycle is None or self.cycle.response_complete or self.conn.their_state not in _ASKED:
            return False
        self._half_closed = True
        self._show_life(_AT_ONCE)
        return True

    def _show_life(self, seconds: float) -> None:
        if self.transport.is_closing() or self.cycle is None or self.cycle.response_complete:
            return
        scope: Any = self.scope
        if scope.get(IS_EVENT_STREAM):
            if self.conn.our_state is h11.SEND_BODY and (data := self.conn.send(h11.Data(data=COMMENT))):
                self.transport.write(data)
        elif not self.cycle.response_started and scope["http_version"] == "1.1":
            self.transport.write(_CONTINUE)
        self._sign = self.loop.call_later(seconds, self._show_life, _LATER)

    def on_response_complete(self) -> None:
        """As uvicorn's; nothing more can come over a connection that is half closed."""
        super().on_response_complete()
        if self._half_closed:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn's."""
        if self._sign is not None:
            self._sign.cancel()
        super().connection_lost(exc)
