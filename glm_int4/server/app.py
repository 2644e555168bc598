"""The routes: OpenAI's, health, metrics, and the page."""

import logging
import time
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from starlette.exceptions import HTTPException

from glm_int4.downloads import shown_name
from glm_int4.generation.engine import Engine
from glm_int4.server.api_errors import ApiError, json_response
from glm_int4.server.event_stream import ClientGoneError, EventStream, while_connected
from glm_int4.server.limits import CountingMiddleware, LimitsMiddleware
from glm_int4.server.metrics import Metrics
from glm_int4.server.page import page_files
from glm_int4.server.requests import Request, RequestHandler
from glm_int4.server.schemas import FIELD_NAMES, ChatRequest, CompletionRequest, ErrorAnswer
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
        (404, "There is no such model."),
        (408, "The request took too long to arrive."),
        (413, "The request is too large."),
        (429, "Too many requests wait; Retry-After says when to come back."),
        (500, "The engine could not give an answer."),
        (503, "The server is shutting down."),
    )
}
_CLIENT_GONE = 499  # as nginx counts it; nobody reads it


class Server:
    """What the routes share: an engine with its thread, limits and counters.

    Attributes:
        app: the ASGI application, limits included.
        worker: the engine's thread; to be started in the event loop that runs ``app``.
    """

    def __init__(self, engine: Engine, num_slots: int, settings: Settings) -> None:
        self.engine, self.settings, self.metrics = engine, settings, Metrics()
        self.worker = Worker(engine, num_slots, settings.max_waiting, self.metrics.count_answer)
        self.metrics.watch(self.worker)
        self.handler = RequestHandler(self.worker, settings)
        self.started = int(time.time())
        self.app = CountingMiddleware(LimitsMiddleware(_make_app(self), settings), self.metrics.requests)

    async def answer(self, http: HttpRequest, request: Request) -> Response:
        """Answer a chat or a completion, as one object or as events."""
        writer = await self.handler.accept(request)
        if request.stream:
            return EventStream(
                writer.events(),
                send_seconds=self.settings.send_seconds,
                closed=lambda: self.worker.cancel(writer.pending),
            )
        try:
            return json_response(await while_connected(http.receive, writer.whole()))
        except ClientGoneError:
            return Response(status_code=_CLIENT_GONE)
        finally:
            self.worker.cancel(writer.pending)

    def model(self) -> dict[str, Any]:
        """The model as OpenAI describes one, with what else a client may want to know."""
        config = self.engine.config
        return {
            "id": self.settings.model_name,
            "object": "model",
            "created": self.started,
            "owned_by": "glm-int4",
            "max_model_len": self.engine.max_length,
            "version": config.version,
        }


def _make_app(server: Server) -> FastAPI:
    app = FastAPI(
        title="glm-int4",
        version=__version__,
        description="ChatGLM with INT4 or INT8 weights, as an OpenAI-compatible server.",
        docs_url=None,  # those pages load scripts from other hosts
        redoc_url=None,
        responses=_ERRORS,
    )
    _add_api(app, server)
    _add_operations(app, server)
    _add_page(app)
    app.exception_handler(ApiError)(_answer_api_error)
    app.exception_handler(RequestValidationError)(_answer_invalid)
    app.exception_handler(HTTPException)(_answer_http_error)
    app.exception_handler(Exception)(_answer_fault)
    _describe_without_422(app)
    return app


def _add_api(app: FastAPI, server: Server) -> None:
    @app.post("/v1/chat/completions", summary="Answer a conversation")
    async def chat_completions(http: HttpRequest, request: ChatRequest) -> Response:
        return await server.answer(http, request)

    @app.post("/v1/completions", summary="Continue a text")
    async def completions(http: HttpRequest, request: CompletionRequest) -> Response:
        return await server.answer(http, request)

    @app.get("/v1/models", summary="List the models: one")
    async def models() -> Response:
        return json_response({"object": "list", "data": [server.model()]})

    @app.get("/v1/models/{name:path}", summary="Describe a model")
    async def model(name: str) -> Response:
        if name != server.settings.model_name:
            raise ApiError(404, f"expected the model {server.settings.model_name}, got another", code="model_not_found")
        return json_response(server.model())


def _add_operations(app: FastAPI, server: Server) -> None:
    @app.get("/health", summary="Whether the engine runs")
    async def health() -> Response:
        if not server.worker.alive:
            raise ApiError(503, "expected the engine's thread to run, got one that has ended; restart the server")
        return json_response({"status": "ok", "version": __version__})

    @app.get("/metrics", summary="Figures for Prometheus", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_page(app: FastAPI) -> None:
    for path, content, headers in page_files():

        def serve(content: bytes = content, headers: dict[str, str] = headers) -> Response:
            return Response(content, headers=headers)

        app.add_api_route(path, serve, methods=["GET"], include_in_schema=False, name=path)


async def _answer_api_error(http: HttpRequest, error: Any) -> Response:
    return error.as_response()


async def _answer_invalid(http: HttpRequest, error: Any) -> Response:
    """Name the first field that is wrong; what it held is not repeated."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part in FIELD_NAMES)
    if first["type"] == "extra_forbidden":
        place = shown_name(str(first["loc"][-1]))
    if first["type"] == "json_invalid":
        place = ""
        what = "JSON, got something else"
    else:
        what = f"another value at {place or 'the top'} ({first['msg']})"
    return ApiError(400, f"expected {what}; see /openapi.json", param=place or None).as_response()


async def _answer_http_error(http: HttpRequest, error: Any) -> Response:
    message = {
        404: "expected a path of /openapi.json, got another",
        405: "expected another method for this path; see /openapi.json",
    }.get(error.status_code, f"expected a request as in /openapi.json, got another ({error.detail})")
    return ApiError(error.status_code, message, headers=error.headers).as_response()


async def _answer_fault(http: HttpRequest, error: Exception) -> Response:
    return ApiError(500, f"expected an answer, got a fault of the server ({type(error).__name__})").as_response()


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
