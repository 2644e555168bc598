"""The routes: OpenAI's, health, metrics, and the page."""

import asyncio
import logging
import platform
import time
from collections.abc import Callable
from typing import Any

import torch
from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import PlainTextResponse, Response
from fastapi.routing import APIRoute

from glm_int4.errors import UserError
from glm_int4.generation.engine import Engine
from glm_int4.server.access.cors import with_origins
from glm_int4.server.access.error_handlers import add_error_handlers
from glm_int4.server.access.logs import RECORD, LogMiddleware
from glm_int4.server.access.paths import PathMiddleware
from glm_int4.server.adapter_routes import add_adapter_routes
from glm_int4.server.api_errors import ApiError, json_response
from glm_int4.server.event_stream import ClientGoneError, EventStream, while_connected
from glm_int4.server.limits import LimitsMiddleware
from glm_int4.server.metrics import Metrics
from glm_int4.server.page import PAGE_PATHS, page_files
from glm_int4.server.protocol.answer_writer import AnswerWriter
from glm_int4.server.protocol.error_texts import unknown_model
from glm_int4.server.protocol.fields import IGNORED_HEADER, header_names
from glm_int4.server.protocol.token_ids import DetokenizeRequest, TokenizeRequest, detokenize, tokenize
from glm_int4.server.requests import Request, RequestHandler
from glm_int4.server.schemas import ChatRequest, CompletionRequest, ErrorAnswer
from glm_int4.server.settings import Settings
from glm_int4.server.worker import Worker
from glm_int4.version import __version__

logger = logging.getLogger(__name__)

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in (
        (400, "The request is wrong; the message says how."),
        (401, "The API key is wrong."),
        (403, "The request is for another host."),
        (404, "There is no such path or model."),
        (408, "The request took too long to arrive."),
        (413, "The request is too large."),
        (429, "Too many requests wait; Retry-After says when to come back."),
        (500, "The engine could not give an answer."),
        (503, "The server is shutting down."),
    )
}
_CLIENT_GONE = 499  # as nginx counts it; nobody reads it
_OPERATIONS = ("/health", "/ping", "/metrics")  # which somebody asks for all the time


class Server:
    """What the routes share: an engine with its thread, limits and counters.

    Attributes:
        app: the ASGI application, limits included.
        worker: the engine's thread; to be started in the event loop that runs ``app``.
    """

    def __init__(self, engine: Engine, num_slots: int, settings: Settings) -> None:
        self.engine, self.settings, self.metrics = engine, settings, Metrics(_facts(engine))
        self.worker = Worker(engine, num_slots, settings.max_waiting, self.metrics.count_answer)
        self.metrics.watch(self.worker)
        self.handler = RequestHandler(self.worker, settings)
        self.started = int(time.time())
        routes = _make_app(self)
        limited = LimitsMiddleware(routes, settings, frozenset(paths_of(routes, "POST")))
        outside = with_origins(PathMiddleware(limited), settings.origins)
        paths = paths_of(routes, "GET", "POST")
        self.app = LogMiddleware(outside, self.metrics.requests, paths, quiet=(*_OPERATIONS, *PAGE_PATHS))

    async def answer(self, http: HttpRequest, request: Request) -> Response:
        """Answer a chat or a completion, as one object or as events."""
        writer = http.scope[RECORD].answer = await self.handler.accept(request)
        headers = {IGNORED_HEADER: header_names(writer.ignored)} if writer.ignored else {}
        if request.stream:
            return EventStream(
                writer.events(),
                send_seconds=self.settings.send_seconds,
                closed=lambda: self._cancel(writer),
                headers=headers,
            )
        try:
            return json_response(await while_connected(http.receive, writer.whole()), headers=headers)
        except ClientGoneError:
            return Response(status_code=_CLIENT_GONE)
        finally:
            self._cancel(writer)

    def _cancel(self, writer: AnswerWriter) -> None:
        for job in writer.jobs:
            self.worker.cancel(job)

    @property
    def names(self) -> list[str]:
        """Of all that is served: the model's own, and its adapters'."""
        return [*self.settings.names, *self.engine.adapters.names]

    def model(self, name: str) -> dict[str, Any]:
        """A model as OpenAI describes one, with what else a client may want to know; an adapter's has a parent."""
        config = self.engine.config
        parent = {} if name in self.settings.names else {"parent": self.settings.model_name}
        return {
            "id": name,
            "object": "model",
            "created": self.started,
            "owned_by": "glm-int4",
            "max_model_len": self.engine.max_length,
            "version": config.version,
            **parent,
        }


def _facts(engine: Engine) -> dict[str, str]:
    """What /metrics says of the build: versions, bits of the weights (16 where they are not quantized), device."""
    scheme = engine.info.linear_scheme
    return {
        "version": __version__,
        "model_version": engine.config.version,
        "bits": str(scheme.bits if scheme else 16),
        "device": engine.device.type,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _make_app(server: Server) -> FastAPI:
    app = FastAPI(
        title="glm-int4",
        version=__version__,
        description="ChatGLM with INT4 or INT8 weights, as an OpenAI-compatible server.",
        docs_url=None,  # those pages load scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,  # see access/paths.py
        responses=_ERRORS,
    )
    _add_api(app, server)
    if server.settings.adapter_dir is not None:
        add_adapter_routes(app, server.worker, server.settings.adapter_dir, server.settings.names)
    _add_operations(app, server)
    _add_page(app)
    add_error_handlers(app, [path for path in paths_of(app, "GET", "POST") if path not in PAGE_PATHS])
    _describe_without_422(app)
    return app


def paths_of(app: FastAPI, *methods: str) -> list[str]:
    """Paths of the routes that take one of the methods."""
    return [route.path for route in app.routes if isinstance(route, APIRoute) and (route.methods or set()) & {*methods}]


def _add_api(app: FastAPI, server: Server) -> None:
    @app.post("/v1/chat/completions", summary="Answer a conversation")
    async def chat_completions(http: HttpRequest, request: ChatRequest) -> Response:
        return await server.answer(http, request)

    @app.post("/v1/completions", summary="Continue a text")
    async def completions(http: HttpRequest, request: CompletionRequest) -> Response:
        return await server.answer(http, request)

    @app.get("/v1/models", summary="List the models: one, and its adapters")
    async def models() -> Response:
        return json_response({"object": "list", "data": [server.model(name) for name in server.names]})

    @app.get("/v1/models/{name:path}", summary="Describe a model")
    async def model(name: str) -> Response:
        if name not in server.names:
            raise unknown_model([server.settings.model_name, *server.engine.adapters.names])
        return json_response(server.model(name))


def _add_operations(app: FastAPI, server: Server) -> None:
    @app.get("/ping", summary="As /health")
    @app.get("/health", summary="Whether the engine runs")
    async def health() -> Response:
        if not server.worker.alive:
            raise ApiError(503, "expected the engine's thread to run, got one that has ended; restart the server")
        return json_response({"status": "ok", "version": __version__})

    @app.get("/version", summary="This program's version")
    async def version() -> Response:
        return json_response({"version": __version__})

    @app.get("/metrics", summary="Figures for Prometheus", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.post("/tokenize", summary="The ids of a text")
    async def text_to_ids(request: TokenizeRequest) -> Response:
        return json_response(await _off_the_loop(tokenize, server.engine, request))

    @app.post("/detokenize", summary="The text of ids")
    async def ids_to_text(request: DetokenizeRequest) -> Response:
        return json_response(await _off_the_loop(detokenize, server.engine, request))


async def _off_the_loop(work: Callable[..., Any], *arguments: object) -> Any:
    """What a function of the tokenizer returns; long texts take a while, and the event loop has others to serve."""
    try:
        return await asyncio.to_thread(work, *arguments)
    except (UserError, UnicodeError) as error:
        text = str(error) if isinstance(error, UserError) else "expected a text in UTF-8, got another"
        raise ApiError(400, text) from error


def _add_page(app: FastAPI) -> None:
    for path, content, headers in page_files():

        def serve(content: bytes = content, headers: dict[str, str] = headers) -> Response:
            return Response(content, headers=headers)

        app.add_api_route(path, serve, methods=["GET"], include_in_schema=False, name=path)


def _describe_without_422(app: FastAPI) -> None:
    """Faulty requests get 400 here, as from OpenAI; FastAPI's description says 422."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        schema = describe()
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(name, None)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
