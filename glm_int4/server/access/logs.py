"""The log: one line a request, as text or JSON. Neither texts nor keys are ever in it."""

import json
import logging
import re
import secrets
import sys
import time
from collections.abc import Collection, MutableMapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from prometheus_client import Counter

from glm_int4.downloads import shown_name
from glm_int4.errors import InputError
from glm_int4.server.access.paths import App, Receive, Scope, Send
from glm_int4.server.protocol.answer_writer import AnswerWriter

RECORD = "glm_int4.record"  # in the scope of a request
LEVELS = ("debug", "info", "warning", "error")
_CLIENT_GONE = 499  # as nginx counts it; nobody reads it
_REQUEST_ID = re.compile(rb"[\w.-]{1,64}", re.ASCII)
_FIELDS = "fields"

requests = logging.getLogger("glm_int4.requests")


@dataclass(slots=True)
class RequestRecord:
    """What becomes known of a request on its way: the name of its key, and who writes its answer."""

    id: str
    started: float = field(default_factory=time.monotonic)
    status: int = _CLIENT_GONE
    key: str | None = None
    answer: AnswerWriter | None = None

    def fields(self, method: str, route: str) -> dict[str, Any]:
        """What the log says, times in seconds."""
        said: dict[str, Any] = {"id": self.id, "method": method, "route": route, "status": self.status}
        if self.key is not None:
            said["key"] = self.key
        if self.answer is not None:
            said |= {"prompt_tokens": self.answer.prompt_tokens, "new_tokens": self.answer.num_tokens}
            first = [job.first_token for job in self.answer.jobs if job.first_token is not None]
            if first:
                said["first_token_s"] = round(min(first) - self.started, 4)
        return said | {"seconds": round(time.monotonic() - self.started, 4)}


class LogMiddleware:
    """Logs and counts every request; a name for it goes back in X-Request-Id, the client's own where it has one.

    Args:
        counter: by route and status.
        paths: routes that are a path, for requests that are refused before a route is found.
        quiet: routes that are logged at the level "debug".
    """

    def __init__(self, app: App, counter: Counter, paths: Collection[str], quiet: Collection[str]) -> None:
        self._app, self._counter, self._paths, self._quiet = app, counter, frozenset(paths), frozenset(quiet)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        name = given.decode() if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        record = scope[RECORD] = RequestRecord(name)
        method = scope["method"]

        async def noting(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", record.id.encode())]
                self._counter.labels(self._route(scope), str(record.status)).inc()
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            self._log(record.fields(method, self._route(scope)))

    def _route(self, scope: Scope) -> str:
        """One of the routes, so that there are few, and none holds what a client has written."""
        path: str = scope["path"]
        found: str | None = getattr(scope.get("route"), "path", None)
        return found or (path if path in self._paths else "other")

    def _log(self, fields: dict[str, Any]) -> None:
        level = logging.DEBUG if fields["route"] in self._quiet else logging.INFO
        if requests.isEnabledFor(level):
            text = " ".join(f"{name}={value}" for name, value in fields.items())
            requests.log(level, "%s", text, extra={_FIELDS: fields})


class _Formatter(logging.Formatter):
    """Lines with the time in front, or JSON objects."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._json = kind == "json"

    def format(self, record: logging.LogRecord) -> str:
        now = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        fields = getattr(record, _FIELDS, None)
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        if not self._json:
            return f"{now} {record.levelname.lower()} {record.getMessage()}" + (f"\n{trace}" if trace else "")
        line = {"time": now, "level": record.levelname.lower(), "logger": record.name}
        line |= fields if fields else {"message": record.getMessage()}
        return json.dumps(line | ({"traceback": trace} if trace else {}), ensure_ascii=False)


def set_up_logs(kind: str, level: str) -> None:
    """Let every logger of the process write such lines to stderr.

    Args:
        kind: "text" or "json".
        level: one of LEVELS; less important lines are left out, and at "info" those that are not of requests.
    Raises:
        InputError: another level.
    """
    if level not in LEVELS:
        raise InputError(f"expected a log level of {', '.join(LEVELS)}, got {shown_name(level)}")
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(kind))
    debugging = logging.getLogger().level == logging.INFO  # glm-int4 --debug
    most = {"debug": "INFO", "info": "INFO" if debugging else "WARNING"}.get(level, level.upper())
    logging.basicConfig(level=most, handlers=[handler], force=True)
    requests.setLevel(level.upper())


def say(line: str, kind: str = "text") -> None:
    """Tell who has started the server, whatever the level of the log."""
    if kind == "json":
        record = logging.LogRecord("glm_int4.server", logging.INFO, "", 0, line, None, None)
        line = _Formatter(kind).format(record)
    print(line, file=sys.stderr, flush=True)
