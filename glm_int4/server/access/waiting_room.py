"""What clients are told while the model is loaded: the port is open, and every answer is that it loads."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from glm_int4.server.api_errors import ApiError


@contextmanager
def answering_while_loading(listener: socket.socket) -> Iterator[None]:
    """Answer 503 on a socket that listens, in a thread, until the block ends; then the socket is free again."""
    server = uvicorn.Server(
        uvicorn.Config(
            _say_loading,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            http="h11",
            ws="none",
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
    )
    ours = listener.dup()  # uvicorn closes its own
    thread = threading.Thread(
        target=lambda: asyncio.run(server.serve(sockets=[ours])), name="waiting room", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        server.should_exit = True
        thread.join()


async def _say_loading(scope: Any, receive: Any, send: Any) -> None:
    error = ApiError(
        503,
        "expected a model that is loaded, got one that is still loading; try again in a moment",
        code="loading",
        headers={"Retry-After": "2", "Connection": "close"},
    )
    await error.as_response()(scope, receive, send)
