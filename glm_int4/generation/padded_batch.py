"""Rows of ids: checked, and as one left-padded batch with its positions and masks."""

from collections.abc import Sequence
from numbers import Integral
from operator import index

import torch
import torch.nn.functional as F
from torch import Tensor

from glm_int4.errors import InputError
from glm_int4.models import Model
from glm_int4.models.attention import attention_mask_func
from glm_int4.models.past import AttentionMask

TokenIds = Sequence[int]


def is_batch(token_ids: TokenIds | Sequence[TokenIds]) -> bool:
    """Whether these are rows of ids, and not ids."""
    if hasattr(token_ids, "tolist"):  # an array or a tensor
        token_ids = token_ids.tolist()
    return len(token_ids) > 0 and not isinstance(token_ids[0], Integral)


def as_rows(token_ids: TokenIds | Sequence[TokenIds]) -> Sequence[TokenIds]:
    """Rows of ids; a single row for ids alone."""
    if hasattr(token_ids, "tolist"):
        token_ids = token_ids.tolist()
    is_ids = not len(token_ids) or isinstance(token_ids[0], Integral)
    return [token_ids] if is_ids else token_ids  # type: ignore[list-item,return-value]


def check_rows(token_ids: TokenIds | Sequence[TokenIds], vocab_size: int) -> list[list[int]]:
    """Rows of ids that a model has.

    Raises:
        InputError: no ids, something else than ids, or ids outside the vocabulary.
    """
    try:
        rows = [list(map(index, row)) for row in as_rows(token_ids)]
    except TypeError as error:
        raise InputError(f"expected token ids, or a list of rows of them, got {token_ids!r:.80}") from error
    if not rows or not all(rows):
        raise InputError("expected token ids, got an empty list")
    for row in rows:
        if min(row) < 0 or max(row) >= vocab_size:
            raise InputError(f"expected token ids from 0 to {vocab_size - 1}, got {min(row)} to {max(row)}")
    return rows


class Batch:
    """Prompts that run together, with what their positions and masks need later on.

    Args:
        token_ids: ids, or a list of rows; raises InputError as ``check_rows``.
        prefix_length: columns of a prefix in front of every row, padded or not.

    Attributes:
        rows: the ids, as lists.
        token_ids: (B, T) int64. positions: (B, P, T) int64, 0 where padded; P kinds of position, 2 in
            version 1, else 1.
        padding: (B,) int64, padded columns of every row behind the prefix; None where there are none.
    """

    def __init__(
        self,
        model: Model,
        token_ids: TokenIds | Sequence[TokenIds],
        device: torch.device,
        prefix_length: int = 0,
    ) -> None:
        rows = check_rows(token_ids, model.config.vocab_size)
        self.rows, self.prefix_length = rows, prefix_length
        self.size, self.num_tokens = len(rows), max(map(len, rows))
        self._model, self._device = model, device
        self._places = [model.positions(row) for row in rows]
        ids = torch.full((self.size, self.num_tokens), model.config.pad_token_id)
        positions = torch.zeros(self.size, model.config.position_kinds, self.num_tokens, dtype=torch.long)
        for i, (row, place) in enumerate(zip(rows, self._places, strict=True)):
            ids[i, self.num_tokens - len(row) :] = torch.tensor(row)
            positions[i, :, self.num_tokens - len(row) :] = torch.tensor(place.ids)
        self.token_ids, self.positions = ids.to(device), positions.to(device)
        self._next = torch.tensor([place.next for place in self._places], device=device)
        padding = [self.num_tokens - len(row) for row in rows]
        self.padding = torch.tensor(padding, device=device) if any(padding) else None

    def prefill_mask(self, dtype: torch.dtype) -> AttentionMask:
        """Mask of the prompts themselves."""
        if self.size == 1:
            return AttentionMask(context_length=self.prefix_length + self._places[0].context_length)
        bias = attention_mask_func(self._model.get_masks(self.rows, self._device), dtype)
        return AttentionMask(bias=F.pad(bias, (self.prefix_length, 0)))

    def next_position_ids(self, step: int) -> list[list[int]]:
        """As ``decode_positions``, as numbers: P for every row."""
        return [[*place.next[:-1], place.next[-1] + step] for place in self._places]

    def decode_positions(self, step: int) -> Tensor:
        """Positions (B, P) of new tokens, ``step`` steps behind the first; only the last kind of position grows."""
        positions = self._next.clone()
        positions[:, -1] += step
        return positions
