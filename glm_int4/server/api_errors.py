"""Errors in OpenAI's form: an object with message, type, param and code."""

import json
from collections.abc import Mapping
from typing import Any

from fastapi.responses import Response

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that gets an error as its answer.

    Args:
        status: of HTTP. message: one line. code: a word that programs look for. param: the faulty field.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, " ".join(message.split()), code, param
        self.headers = dict(headers or {})

    def as_dict(self) -> dict[str, Any]:
        """The error as OpenAI's clients expect it."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def as_response(self) -> Response:
        """The error as an HTTP answer."""
        return json_response(self.as_dict(), self.status, self.headers)


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer, whatever the texts in it."""
    return Response(to_json(value), status, dict(headers or {}), media_type="application/json")


def to_json(value: object) -> bytes:
    """JSON in UTF-8; half a surrogate pair becomes a question mark."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
