"""Files of training data: JSON, JSON lines or CSV, as records with their places."""

import csv
import io
import json
import threading
from pathlib import Path
from typing import Any

from glm_int4.downloads import found_instead, shown
from glm_int4.errors import InputError
from glm_int4.text.text_file import check_encodable, decode_text

_CSV_LIMIT = threading.Lock()  # so that of two readers at once neither restores the other's

Record = tuple[str, Any]  # where it stands, for errors, and what it is


def read_records(path: Path) -> list[Record]:
    """The records of a JSON list, of JSON lines, or of a CSV (by its name) with a header.

    Raises:
        InputError: the file cannot be read, or is none of these.
    """
    fault = found_instead(path)
    if fault is not None:
        raise InputError(f"expected training data (JSON, JSON lines or CSV) in {path}, got {fault}")
    try:
        text = decode_text(path.read_bytes(), path)
    except OSError as error:
        raise InputError(f"expected a readable {path}, got: {error.strerror}") from error
    try:
        if path.suffix.lower() == ".csv":
            return [(f"row {i} of {path}", record) for i, record in enumerate(_csv_records(text), 1)]
        if text.lstrip().startswith("["):
            return [(f"item {i} of {path}", record) for i, record in enumerate(json.loads(text), 1)]
        lines = [(f"line {i} of {path}", line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    except (csv.Error, ValueError, RecursionError) as error:
        raise InputError(f"expected JSON, JSON lines or CSV in {path}, got something else ({error})") from error
    records = []
    for place, line in lines:
        try:
            records.append((place, json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise InputError(f"expected a JSON object in {place}, got {shown(line)} ({error})") from error
    return records


def _csv_records(text: str) -> list[dict[str, Any]]:
    """The records of a CSV with a header, however long their fields are."""
    with _CSV_LIMIT:
        limit = csv.field_size_limit(len(text) + 1)  # of the whole process
        try:
            return list(csv.DictReader(io.StringIO(text), strict=True))
        finally:
            csv.field_size_limit(limit)


def whole_text(value: Any, where: str) -> str:
    """Return a text without half a surrogate pair, which JSON can hold and no tokenizer has ids for.

    Raises:
        InputError: it is none, or holds one.
    """
    if not isinstance(value, str):
        raise InputError(f"expected a text in {where}, got {shown(value)}")
    check_encodable(value, where, "write the character itself or leave it out")
    return value
