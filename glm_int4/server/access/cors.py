"""Pages of other origins: which may ask, by the headers that browsers want to see."""

import re
from collections.abc import Sequence
from typing import Any

from starlette.middleware.cors import CORSMiddleware

from glm_int4.downloads import shown_name
from glm_int4.errors import InputError
from glm_int4.server.protocol.fields import IGNORED_HEADER

ANY_ORIGIN = "*"
_ORIGIN = re.compile(r"(null|[a-z][a-z0-9+.-]*://[^/\s]+)", re.IGNORECASE)
_SHOWN_HEADERS = (IGNORED_HEADER, "X-Request-Id", "Retry-After", "Retry-After-Ms")


def check_origin(text: str) -> str:
    """An origin as browsers send it: scheme, host and perhaps a port; or ``*``, or ``null``, which files have.

    Raises:
        InputError: it is none.
    """
    origin = text.strip().removesuffix("/")
    if origin != ANY_ORIGIN and not _ORIGIN.fullmatch(origin):
        raise InputError(
            f"expected an origin such as https://chat.example:8443, or *, got {shown_name(text)}; "
            "give scheme and host without a path"
        )
    return origin if origin == ANY_ORIGIN else origin.lower()


def with_origins(app: Any, origins: Sequence[str]) -> Any:
    """An ASGI application that pages of ``origins`` may use; the same one where there are none."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=("*",),
        expose_headers=_SHOWN_HEADERS,
        allow_private_network=True,  # a page on the internet that may use a server on this machine
    )
