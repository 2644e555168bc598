"""``glm-int4 serve``: an OpenAI-compatible server with a chat page."""

import os
from collections.abc import Container
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from glm_int4.cli import options
from glm_int4.errors import InputError
from glm_int4.server.options_file import read_options

NAME = "serve"
CONTEXT = {"auto_envvar_prefix": "GLM_INT4"}

_PACKAGES = {"fastapi": "fastapi", "uvicorn": "uvicorn", "prometheus_client": "prometheus-client"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading(options.Loading):
    """The options of other commands, but adapters may have names, which are then models of their own."""

    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]DIR[:SCALE]",
            help="A LoRA adapter of peft, served as the model NAME; without a name, it acts in all answers. May be "
            "repeated.",
        ),
    ] = None

    def given_adapters(self) -> dict[str, Any]:
        """As of ``options.Loading``."""
        from glm_int4.adapters.adapter_source import parse_named_adapter

        given = [parse_named_adapter(text) for text in self.adapter or ()]
        names = [name for name, _ in given if name is not None]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise InputError(f"expected every adapter under a name of its own, got {twice} twice")
        unnamed = [adapter for name, adapter in given if name is None]
        return {"adapter": unnamed or None, "adapters": {name: adapter for name, adapter in given if name is not None}}

    def check_names(self, taken: Container[str]) -> None:
        """Raise InputError for an adapter under the model's own name."""
        for name in self.given_adapters()["adapters"]:
            if name in taken:
                raise InputError(f"expected another name than {name} for an adapter, which the model has already")


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Let a file's values stand where neither the command line nor the environment has one."""
    if path is not None:
        values = read_options(path, {parameter.name or "" for parameter in context.command.params} - {"config"})
        if os.environ.get("GLM_INT4_MODEL"):
            values.pop("model", None)
        context.default_map = values
    return path


def run(
    model: options.Model = None,
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            is_eager=True,
            callback=_read_config,
            help="TOML with options: port = 8000. Also $GLM_INT4_PORT and so on, which come first.",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for any free one.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(help="A key that clients must send. Default: $GLM_INT4_API_KEY.", show_default=False)
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="Keys, one a line, with a name in front for the log.", show_default=False)
    ] = None,
    served_name: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Name for clients; may be repeated. Default: the folder's."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse fields that have no effect, and other models' names.")
    ] = False,
    adapter_dir: Annotated[
        Path | None,
        typer.Option(help="Let clients load the adapters in this folder by their names.", show_default=False),
    ] = None,
    parallel: Annotated[int | None, typer.Option(help="Answers at a time. Default: 8 if memory allows.")] = None,
    queue: Annotated[int, typer.Option(help="Requests that may wait; more are sent away.")] = 64,
    max_body_bytes: Annotated[int, typer.Option(help="Largest request.")] = 1 << 20,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A name under which a proxy reaches this server; may be repeated."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="A page's origin that may use this server, or *; may be repeated."),
    ] = None,
    drain_timeout: Annotated[float, typer.Option(help="Seconds for running answers after SIGTERM.")] = 60.0,
    log_format: Annotated[str, typer.Option(help="text, or json for an object a line.")] = "text",
    log_level: Annotated[str, typer.Option(help="debug, info (a line a request), warning or error.")] = "info",
    max_new_tokens: options.MaxNewTokens = None,
    loading: Loading,
) -> None:
    """Serve a model over HTTP, as OpenAI does, with a chat page."""
    check_packages()
    from glm_int4.server.access.cors import check_origin
    from glm_int4.server.access.keys import read_keys
    from glm_int4.server.access.logs import set_up_logs
    from glm_int4.server.access.waiting_room import answering_while_loading
    from glm_int4.server.serving import bind, serve
    from glm_int4.server.settings import LOOPBACK, Settings, choose_slots

    name = options.find_model(model)
    model_name, *more_names = served_name or [_served_name(name)]
    settings = Settings(
        model_name=model_name,
        more_names=tuple(more_names),
        strict=strict,
        adapter_dir=adapter_dir,
        host=host,
        port=port,
        api_key=os.environ.get("GLM_INT4_API_KEY") if api_key is None else api_key,  # an empty one is a mistake
        more_keys=read_keys(api_key_file) if api_key_file else (),
        max_waiting=queue,
        max_new_tokens=max_new_tokens,
        max_body_bytes=max_body_bytes,
        drain_seconds=drain_timeout,
        log_format=log_format,
        origins=tuple(map(check_origin, allow_origin or ())),
        host_names=(*LOOPBACK, *map(str.lower, allow_host or ())) if host in LOOPBACK or allow_host else (),
    )
    loading.check_names(settings.names)
    set_up_logs(log_format, log_level)
    listener = bind(settings)
    with answering_while_loading(listener):
        glm = loading.load(name)
        glm.tokenizer  # noqa: B018 (a folder without one is an error now)
        if find_spec("llguidance") is not None:
            glm.constraints.prepare()  # now, since it would hold up answers later
        num_slots = choose_slots(glm, parallel)
    serve(glm, num_slots, settings, listener)


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
