"""What callers hand in as token ids and numbers, checked: rows of integers, whole numbers."""

from collections.abc import Sequence
from numbers import Integral
from operator import index

from glm_int4.errors import InputError

TokenIds = Sequence[int]


def check_whole_number(name: str, value: object) -> None:
    """Raise InputError unless an argument is an integer."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise InputError(f"expected {name} to be a whole number, got {value!r}")


def is_batch(token_ids: TokenIds | Sequence[TokenIds]) -> bool:
    """Whether these are rows of ids, and not ids."""
    return len(token_ids) > 0 and not isinstance(_as_lists(token_ids)[0], Integral)


def as_rows(token_ids: TokenIds | Sequence[TokenIds]) -> Sequence[TokenIds]:
    """Rows of ids; a single row for ids alone."""
    token_ids = _as_lists(token_ids)
    return token_ids if is_batch(token_ids) else [token_ids]  # type: ignore[list-item,return-value]


def check_rows(token_ids: TokenIds | Sequence[TokenIds], vocab_size: int) -> list[list[int]]:
    """Rows of ids that a model has.

    Raises:
        InputError: no ids, something else than ids, or ids outside the vocabulary.
    """
    try:
        rows = [[index(token) for token in row] for row in as_rows(token_ids)]
    except TypeError as error:
        raise InputError(f"expected token ids, or a list of rows of them, got {token_ids!r:.80}") from error
    if not rows or not all(rows):
        raise InputError("expected token ids, got an empty list")
    for row in rows:
        if min(row) < 0 or max(row) >= vocab_size:
            raise InputError(f"expected token ids from 0 to {vocab_size - 1}, got {min(row)} to {max(row)}")
    return rows


def _as_lists(token_ids: TokenIds | Sequence[TokenIds]) -> TokenIds | Sequence[TokenIds]:
    """Arrays and tensors as lists; lists as they are."""
    return token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
