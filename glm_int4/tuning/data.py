"""Training data: questions with their answers by column or in Alpaca's fields, or whole conversations."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glm_int4.downloads import shown
from glm_int4.errors import InputError
from glm_int4.text.chat.messages import is_blank
from glm_int4.tuning.conversations import FIELDS, Conversation, read_conversation
from glm_int4.tuning.record_files import Record, read_records, whole_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Names of the columns that hold question, answer and, perhaps, the rounds before them.

    A row without ``history``, or with null or nothing in it, has no rounds; at least one row has the column.
    ``details`` continue the question on a line of their own, ``system`` stands in front; rows may lack both.
    """

    prompt: str = "content"
    response: str = "summary"
    history: str | None = None
    details: str | None = None
    system: str | None = None


ALPACA = Columns(prompt="instruction", response="output", details="input", system="system")


@dataclass(frozen=True, slots=True)
class Row:
    """A question, its answer, and the rounds before it; None where the data has no history at all."""

    prompt: str
    response: str
    history: tuple[tuple[str, str], ...] | None = None
    system: str = ""


Example = Row | Conversation


def read_rows(path: str | Path, columns: Columns) -> tuple[list[Example], int]:
    """Read a file.

    Args:
        path: a JSON list, JSON lines, or CSV (by its name) with a header. Where it has no column ``columns.prompt``
            but ``messages`` or ``conversations``, every record is a conversation; where it has ``instruction`` and
            ``output``, these are its columns.
    Returns:
        The rows, and how many were left out because question or answer is empty, as officially.
    Raises:
        InputError: the file cannot be read, lacks a column, or has no row that is not empty.
    """
    path = Path(path)
    records = read_records(path)
    fields = {field for _, record in records if isinstance(record, Mapping) for field in record}
    if columns.prompt not in fields and fields & set(FIELDS):
        what = f"{' or '.join(FIELDS)} with an answer"
        examples: list[Example | None] = [
            read_conversation(place, _checked(place, record)) for place, record in records
        ]
    else:
        if columns.prompt not in fields and {ALPACA.prompt, ALPACA.response} <= fields:
            columns = replace(ALPACA, history="history" if "history" in fields else None)
        _check_columns(records, columns)
        what = f"{columns.prompt} and {columns.response}"
        examples = [_row(place, record, columns) for place, record in records]
    rows = [example for example in examples if example is not None]
    num_empty = len(examples) - len(rows)
    if not rows:
        raise InputError(f"expected rows with {what} in {path}, got {num_empty} empty ones")
    return rows, num_empty


def _checked(place: str, record: Any) -> Mapping[str, Any]:
    if not isinstance(record, Mapping):
        raise InputError(f"expected a JSON object in {place}, got {shown(record)}")
    return record


def _check_columns(records: Sequence[Record], columns: Columns) -> None:
    """Raise InputError where a record is none or lacks a column; the history may be absent, but not everywhere."""
    with_history = any(isinstance(record, Mapping) and columns.history in record for _, record in records)
    names = [columns.prompt, columns.response, *([columns.history] if columns.history and not with_history else [])]
    for place, record in records:
        for name in names:
            if name not in _checked(place, record):
                found = ", ".join(shown(key) for key in list(record)[:8]) or "none"
                raise InputError(
                    f"expected the column {name} in {place}, got {found}; "
                    "name yours with --prompt-column, --response-column and --history-column"
                )


def _row(place: str, record: Mapping[str, Any], columns: Columns) -> Row | None:
    """A record's row; None where question or answer is empty."""

    def text(name: str | None) -> str:
        value = record.get(name) if name else None
        return "" if value is None else whole_text(value, f"the column {name} in {place}")

    prompt, response, details = text(columns.prompt), text(columns.response), text(columns.details)
    prompt = f"{prompt}\n{details}" if details else prompt
    if is_blank(prompt) or is_blank(response):
        return None
    history = _history(place, record, columns.history) if columns.history else None
    return Row(prompt, response, history, text(columns.system))


def _history(place: str, record: Mapping[str, Any], column: str) -> tuple[tuple[str, str], ...]:
    """Rounds ``[[question, answer], ...]``, in CSV written as JSON; none where the row lacks the column."""
    where, value = f"the column {column} in {place}", record.get(column)
    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):  # what it is instead is named below
            value = json.loads(value) if value.strip() else None
    rounds = value or []
    if not isinstance(rounds, list) or not all(
        isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn) for turn in rounds
    ):
        raise InputError(f"expected a history [[question, answer], ...] in {where}, got {shown(value)}")
    return tuple(
        (whole_text(question, f"round {i} of {where}"), whole_text(answer, f"round {i} of {where}"))
        for i, (question, answer) in enumerate(rounds, 1)
    )
