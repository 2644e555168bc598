"""Rows of ids as one left-padded batch: their tensors, positions and masks."""

import torch
import torch.nn.functional as F
from torch import Tensor

from glm_int4.models import Model
from glm_int4.models.attention import attention_mask_func
from glm_int4.models.past import AttentionMask


class Batch:
    """Prompts that run together, with what their positions and masks need later on.

    Attributes:
        token_ids: (B, T) int64. positions: (B, P, T) int64, 0 where padded; P kinds of position, 2 in
            version 1, else 1.
        prefix_length: columns of a prefix in front of every row, padded or not.
    """

    def __init__(self, model: Model, rows: list[list[int]], device: torch.device, prefix_length: int = 0) -> None:
        self.rows, self.prefix_length = rows, prefix_length
        self.size, self.num_tokens = len(rows), max(map(len, rows))
        self._model, self._device = model, device
        token_ids = torch.full((self.size, self.num_tokens), model.config.pad_token_id)
        row_positions = [torch.tensor(model.get_position_ids(row)) for row in rows]
        positions = torch.zeros(self.size, row_positions[0].shape[0], self.num_tokens, dtype=torch.long)
        for i, row in enumerate(rows):
            token_ids[i, self.num_tokens - len(row) :] = torch.tensor(row)
            positions[i, :, self.num_tokens - len(row) :] = row_positions[i]
        self.token_ids, self.positions = token_ids.to(device), positions.to(device)
        self._next_rows = [model.next_position_ids(row) for row in rows]
        self._next = torch.tensor(self._next_rows, device=device)[..., None]
        self._padding = torch.tensor([self.num_tokens - len(row) for row in rows]).to(device)
        self._padded = min(map(len, rows)) < self.num_tokens

    def prefill_mask(self, dtype: torch.dtype) -> AttentionMask:
        """Mask of the prompts themselves."""
        if self.size == 1:
            return AttentionMask(context_length=self.prefix_length + self._model.context_length(self.rows[0]))
        bias = attention_mask_func(self._model.get_masks(self.rows, self._device), dtype)
        return AttentionMask(bias=F.pad(bias, (self.prefix_length, 0)))

    def next_position_ids(self, step: int) -> list[list[int]]:
        """As ``decode_positions``, as numbers: P for every row."""
        return [[*row[:-1], row[-1] + step] for row in self._next_rows]

    def decode_positions(self, step: int) -> Tensor:
        """Positions (B, P, 1) of new tokens, ``step`` steps behind the first; only the last kind of position grows."""
        positions = self._next.clone()
        positions[:, -1] += step
        return positions

    def decode_mask(self) -> AttentionMask:
        """Mask of one new token: everything but padding is visible."""
        return AttentionMask(padding=self._padding if self._padded else None, prefix_length=self.prefix_length)
