"""Running a server: from an engine to a socket, and an end in order."""

import asyncio
import logging
import os
import socket
import sys
import time
from types import FrameType

import uvicorn

from glm_int4.errors import InputError
from glm_int4.generation.engine import Engine
from glm_int4.server.access.half_closed import HalfClosableProtocol
from glm_int4.server.access.logs import say
from glm_int4.server.app import Server
from glm_int4.server.settings import LOOPBACK, Settings

logger = logging.getLogger(__name__)

_LAST_SECONDS = 2.0
_MAX_CONNECTIONS, _BACKLOG = 1024, 2048
# The engine's thread and the event loop take turns; with Python's 5 ms a token would wait for the other's turn.
_SWITCH_SECONDS = 0.0005


class Service(uvicorn.Server):
    """Runs a server with its engine; what runs is answered before it ends, unless a second signal comes.

    Args:
        greeting: lines for stderr, once connections are accepted.
    """

    def __init__(self, server: Server, greeting: tuple[str, ...] = ()) -> None:
        super().__init__(
            uvicorn.Config(
                server.app,
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                limit_concurrency=_MAX_CONNECTIONS,
                h11_max_incomplete_event_size=64 << 10,
                http=HalfClosableProtocol,
                ws="none",
                lifespan="off",
            )
        )
        self._server, self._greeting = server, greeting

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the engine's thread, then accept connections and say so."""
        self._server.worker.start()
        await super().startup(sockets)
        for line in self._greeting:
            self._say(line)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let what runs be answered for a while, then end the engine's thread."""
        self._server.worker.drain()
        late = asyncio.get_running_loop().call_later(self._server.settings.drain_seconds, self._end_late)
        await super().shutdown(sockets)
        late.cancel()
        self._server.worker.stop()
        self._server.worker.join()

    def _end_late(self) -> None:
        self._say(f"ending what is not finished after {self._server.settings.drain_seconds:g} s")
        self._server.worker.stop()
        # Answers end with an error; a client that takes none, or is still sending, is not waited for.
        asyncio.get_running_loop().call_later(_LAST_SECONDS, setattr, self, "force_exit", True)

    def _say(self, line: str) -> None:
        say(line, self._server.settings.log_format)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal ends in order, the second at once, a third waits for no client."""
        if self.should_exit:
            self.force_exit = not self._server.worker.alive  # a third signal waits for no client any more
            self._server.worker.stop()
            self._say("ending at once")
            return
        self.should_exit = True
        running = self._server.worker.batcher.num_running
        self._say(f"finishing {running} answer{'' if running == 1 else 's'}; once more to end at once")


def serve(engine: Engine, num_slots: int, settings: Settings, listener: socket.socket) -> None:
    """Serve on a socket that ``bind`` has made, until a signal comes."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    port = listener.getsockname()[1]
    server = Server(engine, num_slots, settings)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    answers = f"{num_slots} answer{'' if num_slots == 1 else 's'} at a time, {engine.max_length} tokens each"
    greeting = [f"serving {settings.model_name} on http://{host}:{port} ({answers}; Ctrl-C ends)"]
    if engine.adapters.names:
        greeting.append(f"adapters: {', '.join(engine.adapters.names)}")
    if settings.host not in LOOPBACK and not settings.keys:
        greeting.append("warning: whoever reaches this machine can use the model; --api-key asks for a key")
    if "*" in settings.origins and not settings.keys:
        greeting.append("warning: any web page that is open here can use the model; name origins, or give an --api-key")
    started = time.monotonic()
    Service(server, tuple(greeting)).run(sockets=[listener])
    say(f"ended after {time.monotonic() - started:.0f} s", settings.log_format)


def bind(settings: Settings) -> socket.socket:
    """A listening socket of the settings' address; port 0 is any free one."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)  # on Linux, that is when another one's claim of the port counts
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise InputError(
            f"expected a free address, got {settings.host}:{settings.port}: {error.strerror or error}; "
            "choose another --host or --port"
        ) from error
    return listener
