"""Training data: rows of JSON, JSON lines or CSV, and the ids and labels that the official code makes of them."""

import contextlib
import csv
import io
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glm_int4.downloads import found_instead, shown
from glm_int4.errors import InputError
from glm_int4.text import Tokenizer
from glm_int4.text.chat.chat_format import chat_format
from glm_int4.text.chat.messages import is_blank
from glm_int4.text.text_file import check_encodable, decode_text
from glm_int4.tuning.loss import IGNORED

_CSV_LIMIT = threading.Lock()  # so that of two readers at once neither restores the other's


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Names of the columns that hold question, answer and, perhaps, the rounds before them.

    A row without ``history``, or with null or nothing in it, has no rounds; at least one row has the column.
    """

    prompt: str = "content"
    response: str = "summary"
    history: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A question, its answer, and the rounds before it; None where the data has no history at all."""

    prompt: str
    response: str
    history: tuple[tuple[str, str], ...] | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """Ids of a question with its answer, and their labels. ``num_cut``: tokens of the answer left out."""

    input_ids: list[int]
    labels: list[int]
    num_cut: int = 0


def read_rows(path: str | Path, columns: Columns) -> tuple[list[Row], int]:
    """Read a file.

    Args:
        path: a JSON list, JSON lines, or CSV (by its name) with a header.
    Returns:
        The rows, and how many were left out because question or answer is empty, as officially.
    Raises:
        InputError: the file cannot be read, lacks a column, or has no row that is not empty.
    """
    path = Path(path)
    fault = found_instead(path)
    if fault is not None:
        raise InputError(f"expected training data (JSON, JSON lines or CSV) in {path}, got {fault}")
    try:
        text = decode_text(path.read_bytes(), path)
    except OSError as error:
        raise InputError(f"expected a readable {path}, got: {error.strerror}") from error
    records = _records(path, text)
    _check_columns(records, columns)
    rows, num_empty = [], 0
    for place, record in records:
        row = _row(place, record, columns)
        if is_blank(row.prompt) or is_blank(row.response):
            num_empty += 1
        else:
            rows.append(row)
    if not rows:
        raise InputError(
            f"expected rows with {columns.prompt} and {columns.response} in {path}, got {num_empty} empty ones"
        )
    return rows, num_empty


def _records(path: Path, text: str) -> list[tuple[str, Any]]:
    """The records of a file, each with its place for errors."""
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


def _check_columns(records: Sequence[tuple[str, Any]], columns: Columns) -> None:
    """Raise InputError where a record is none or lacks a column; the history may be absent, but not everywhere."""
    with_history = any(isinstance(record, Mapping) and columns.history in record for _, record in records)
    names = [columns.prompt, columns.response, *([columns.history] if columns.history and not with_history else [])]
    for place, record in records:
        if not isinstance(record, Mapping):
            raise InputError(f"expected a JSON object in {place}, got {shown(record)}")
        for name in names:
            if name not in record:
                found = ", ".join(shown(key) for key in list(record)[:8]) or "none"
                raise InputError(
                    f"expected the column {name} in {place}, got {found}; "
                    "name yours with --prompt-column, --response-column and --history-column"
                )


def _row(place: str, record: Mapping[str, Any], columns: Columns) -> Row:
    texts = []
    for name in (columns.prompt, columns.response):
        value = record[name]
        if value is not None and not isinstance(value, str):
            raise InputError(f"expected a text in the column {name} in {place}, got {shown(value)}")
        texts.append(_whole(value or "", f"the column {name} in {place}"))
    return Row(texts[0], texts[1], _history(place, record, columns.history) if columns.history else None)


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
        (_whole(question, f"round {i} of {where}"), _whole(answer, f"round {i} of {where}"))
        for i, (question, answer) in enumerate(rounds, 1)
    )


def _whole(text: str, where: str) -> str:
    """Return a text without half a surrogate pair, which JSON can hold and no tokenizer has ids for."""
    check_encodable(text, where, "write the character itself or leave it out")
    return text


def source_ids(tokenizer: Tokenizer, row: Row, max_source_length: int, *, training: bool) -> list[int]:
    """Ids of a question, the special ones included, cut on the right as officially.

    In training, version 1 writes a first round as a numbered one where the data has a history column; asked
    later, a question without rounds before it is bare.
    """
    messages = []
    for question, answer in row.history or ():
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    messages.append({"role": "user", "content": row.prompt})
    chat = chat_format(tokenizer.version)
    if tokenizer.role_ids:  # the last one is the answer's role, which stays
        ids = chat.encode(tokenizer, messages)
        return ids if len(ids) <= max_source_length else [*ids[: max_source_length - 1], ids[-1]]
    if not tokenizer.suffix_ids:
        return chat.encode(tokenizer, messages)[:max_source_length]
    if not row.history:
        ids = tokenizer.encode(
            f"[Round 0]\n问：{row.prompt}\n答：" if training and row.history is not None else row.prompt
        )
    else:
        ids = chat.encode(tokenizer, messages)[: -len(tokenizer.suffix_ids)]
    return [*ids[: max_source_length - 1], *tokenizer.suffix_ids]


def target_ids(tokenizer: Tokenizer, response: str, max_target_length: int) -> tuple[list[int], int]:
    """Ids of an answer with its end, and how many of its tokens were cut off."""
    ids = tokenizer.encode(response)
    if tokenizer.role_ids:
        ids = [*tokenizer.encode("\n"), *ids]  # the empty line of metadata that every answer begins with
    kept = ids[: max_target_length - len(tokenizer.suffix_ids)]  # officially, as if the suffix were part of it
    return [*kept, tokenizer.eos_id], len(ids) - len(kept)


def make_sample(tokenizer: Tokenizer, row: Row, max_source_length: int, max_target_length: int) -> Sample:
    """Ids and labels of a row, exactly as the official preprocessing makes them, without the padding."""
    source = source_ids(tokenizer, row, max_source_length, training=True)
    target, num_cut = target_ids(tokenizer, row.response, max_target_length)
    num_ignored = len(source)
    if tokenizer.suffix_ids:
        num_ignored -= 1  # <sop> is learnt too
    ids = source + target
    return Sample(ids, [IGNORED] * num_ignored + ids[num_ignored:], num_cut)


def collate(samples: Sequence[Sample], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids and labels (B, T) of samples, padded on the right."""
    length = max(len(sample.input_ids) for sample in samples)
    ids = [s.input_ids + [pad_id] * (length - len(s.input_ids)) for s in samples]
    labels = [s.labels + [IGNORED] * (length - len(s.labels)) for s in samples]
    return torch.tensor(ids), torch.tensor(labels)
