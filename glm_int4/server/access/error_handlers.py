"""Errors that the framework raises, in this server's words and OpenAI's form."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from glm_int4.downloads import shown_name
from glm_int4.server.api_errors import ApiError
from glm_int4.server.protocol.error_texts import unknown_path
from glm_int4.server.schemas import FIELD_NAMES


def add_error_handlers(app: FastAPI, paths: Sequence[str]) -> None:
    """Answer every error of ``app``; ``paths`` are what there is."""
    app.exception_handler(ApiError)(_answer_api_error)
    app.exception_handler(RequestValidationError)(_answer_invalid)
    app.exception_handler(HTTPException)(_http_errors(paths))
    app.exception_handler(Exception)(_answer_fault)


async def _answer_api_error(http: HttpRequest, error: Any) -> Response:
    return error.as_response()


async def _answer_invalid(http: HttpRequest, error: Any) -> Response:
    """Name the first field that is wrong; what it held is not repeated."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part in FIELD_NAMES)
    if first["type"] == "json_invalid":
        place, what = "", f"JSON, got something else at character {first['loc'][-1]} ({first['ctx']['error']})"
    elif first["type"] == "missing":
        place = ".".join(map(str, first["loc"][1:]))
        what = f"the field {place}, got none"
    else:
        what = f"another value at {place or 'the top'} ({first['msg']})"
    return ApiError(400, f"expected {what}; see /openapi.json", param=place or None).as_response()


def _http_errors(paths: Sequence[str]) -> Callable[[HttpRequest, Any], Awaitable[Response]]:
    async def answer(http: HttpRequest, error: Any) -> Response:
        path, allowed = http.url.path, (error.headers or {}).get("Allow", "another method")
        message = {
            404: unknown_path(path, paths),
            405: f"expected {allowed} for {shown_name(path)}, got {http.method}",
        }.get(error.status_code, f"expected a request as in /openapi.json, got another ({error.detail})")
        return ApiError(error.status_code, message, headers=error.headers).as_response()

    return answer


async def _answer_fault(http: HttpRequest, error: Exception) -> Response:
    return ApiError(500, f"expected an answer, got a fault of the server ({type(error).__name__})").as_response()
