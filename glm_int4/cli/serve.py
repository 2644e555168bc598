"""``glm-int4 serve``: an OpenAI-compatible server with a chat page."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from glm_int4.cli import options
from glm_int4.errors import InputError

NAME = "serve"

_PACKAGES = {"fastapi": "fastapi", "uvicorn": "uvicorn", "prometheus_client": "prometheus-client"}


def run(
    model: options.Model = None,
    *,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for any free one.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(help="A key that clients must send. Default: $GLM_INT4_API_KEY.", show_default=False)
    ] = None,
    served_name: Annotated[str | None, typer.Option(help="Name for clients. Default: the folder's.")] = None,
    parallel: Annotated[int | None, typer.Option(help="Answers at a time. Default: 8 if memory allows.")] = None,
    queue: Annotated[int, typer.Option(help="Requests that may wait; more are sent away.")] = 64,
    max_body_bytes: Annotated[int, typer.Option(help="Largest request.")] = 1 << 20,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A name under which a proxy reaches this server; may be repeated."),
    ] = None,
    max_new_tokens: options.MaxNewTokens = None,
    loading: options.Loading,
) -> None:
    """Serve a model over HTTP, as OpenAI does, with a chat page."""
    check_packages()
    from glm_int4.server.serving import serve
    from glm_int4.server.settings import LOOPBACK, Settings, choose_slots

    name = options.find_model(model)
    settings = Settings(
        model_name=served_name or _served_name(name),
        host=host,
        port=port,
        api_key=os.environ.get("GLM_INT4_API_KEY") if api_key is None else api_key,
        max_waiting=queue,
        max_new_tokens=max_new_tokens,
        max_body_bytes=max_body_bytes,
        host_names=(*LOOPBACK, *map(str.lower, allow_host or ())) if host in LOOPBACK or allow_host else (),
    )
    glm = loading.load(name)
    glm.tokenizer  # noqa: B018 (a folder without one is an error now)
    serve(glm, choose_slots(glm, parallel), settings)


def check_packages() -> None:
    """Raise InputError where the extra ``serve`` is not installed."""
    missing = [package for module, package in _PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise InputError(
            f"expected the packages of the extra serve, got none of {', '.join(missing)}; "
            "install them with: pip install 'glm-int4[serve]'"
        )


def _served_name(model: str) -> str:
    """The name of a folder, or a hub id as it is."""
    path = Path(model)
    return path.resolve().name if path.is_dir() else model
