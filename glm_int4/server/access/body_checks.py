"""Bodies that are no JSON in UTF-8: what they are instead, and what to do about it."""

import json
from collections.abc import Mapping

from glm_int4.downloads import shown_name
from glm_int4.server.api_errors import ApiError


def check_json_body(headers: Mapping[bytes, bytes], body: bytes) -> None:
    """Raise ApiError where a body is compressed, empty, of another type or in another encoding than UTF-8."""
    encoding = headers.get(b"content-encoding", b"").decode("latin-1").strip().lower()
    if encoding not in ("", "identity"):
        raise ApiError(
            400, f"expected a body as it is, got Content-Encoding: {shown_name(encoding)}; do not compress it"
        )
    if not body:
        raise ApiError(400, "expected a JSON body, got none; see /openapi.json")
    kind = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
    if not (kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))):
        raise ApiError(
            400,
            f"expected Content-Type: application/json, got {shown_name(kind) if kind else 'none'}; "
            "send that header (curl: -H 'Content-Type: application/json')",
        )
    _check_utf8(body)


def _check_utf8(body: bytes) -> None:
    encoding = json.detect_encoding(body)  # by a mark or zero bytes at the start: UTF-16 and UTF-32 are fine
    try:
        body.decode(encoding)
    except UnicodeDecodeError as error:
        try:
            body.decode("gb18030")
            found = "bytes that may be GBK"
        except UnicodeDecodeError:
            found = "other bytes"
        raise ApiError(
            400, f"expected JSON in UTF-8, got {found} at byte {error.start}; save or send it as UTF-8"
        ) from None
