"""Rows of ids as one left-padded batch: their tensors, positions and masks."""

import torch
from torch import Tensor

from glm_int4.models.attention import AttentionMask, attention_mask_func
from glm_int4.models.chatglm import ChatGLMForConditionalGeneration


class Batch:
    """Prompts that run together, with what their positions and masks need later on.

    Attributes:
        token_ids: (B, T) int64. positions: (B, 2, T) int64, 0 where padded.
    """

    def __init__(self, model: ChatGLMForConditionalGeneration, rows: list[list[int]], device: torch.device) -> None:
        self.rows = rows
        self.size, self.num_tokens = len(rows), max(map(len, rows))
        self._model, self._device = model, device
        token_ids = torch.full((self.size, self.num_tokens), model.config.pad_token_id)
        positions = torch.zeros(self.size, 2, self.num_tokens, dtype=torch.long)
        for i, row in enumerate(rows):
            token_ids[i, self.num_tokens - len(row) :] = torch.tensor(row)
            positions[i, :, self.num_tokens - len(row) :] = torch.tensor(model.get_position_ids(row))
        self.token_ids, self.positions = token_ids.to(device), positions.to(device)
        self._next = self._next_positions().to(device)
        self._padding = torch.tensor([self.num_tokens - len(row) for row in rows]).to(device)
        self._padded = min(map(len, rows)) < self.num_tokens

    def _next_positions(self) -> Tensor:
        """Positions (B, 2, 1) of the first new token of each row."""
        positions = []
        for row in self.rows:
            context_length = self._model.context_length(row)
            (*_, token_position), _ = self._model.get_position_ids(row)
            if context_length == len(row):  # nothing after the context yet
                token_position = context_length
            positions.append([[token_position], [len(row) - context_length + 1]])
        return torch.tensor(positions)

    def prefill_mask(self, dtype: torch.dtype) -> AttentionMask:
        """Mask of the prompts themselves."""
        if self.size == 1:
            return AttentionMask(context_length=self._model.context_length(self.rows[0]))
        return AttentionMask(bias=attention_mask_func(self._model.get_masks(self.rows, self._device), dtype))

    def decode_positions(self, step: int) -> Tensor:
        """Positions (B, 2, 1) of the new token number ``step``, from 0."""
        positions = self._next.clone()
        positions[:, 1] += step
        return positions

    def decode_mask(self) -> AttentionMask:
        """Mask of one new token: everything but padding is visible."""
        return AttentionMask(padding=self._padding if self._padded else None)
