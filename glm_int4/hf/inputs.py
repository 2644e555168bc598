"""From the inputs that transformers passes to those that the network takes: positions, masks, a cache.

Padding may stand on either side of a row here; the engine's own batches (``generation/padded_batch.py``) are
left-padded and know their rows from beginning to end.
"""

import functools
import logging

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache

from glm_int4.errors import InputError
from glm_int4.models import Model
from glm_int4.models.attention import attention_mask_func
from glm_int4.models.past import AttentionMask, Prefix

logger = logging.getLogger(__name__)


class TransformersCache:
    """A cache of transformers as what a layer finds before its tokens.

    Args:
        cache: of any kind; it holds the tokens' keys and values in ``dtype``, not the prefix's.
        prefix: stands in front of every row, or None.
    """

    def __init__(self, cache: Cache, prefix: Prefix | None, dtype: torch.dtype) -> None:
        self._cache, self._prefix, self._dtype = cache, prefix, dtype
        self.length = int(cache.get_seq_length())

    def join(self, layer_id: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values (B, Hkv, T, D) of one layer and return all that it holds."""
        end = self.length + k.shape[2]
        keys, values = self._cache.update(k.to(self._dtype), v.to(self._dtype), layer_id)
        keys, values = (x[:, :, :end].to(k.dtype) for x in (keys, values))  # a static cache has empty columns
        return (keys, values) if self._prefix is None else self._prefix.join(layer_id, keys, values)


def note_positions(cache: Cache, positions: Tensor) -> None:
    """Note in a cache at which positions (B, P, T) its last tokens stand, for ``next_positions``."""
    cache.glm_int4_last = (int(cache.get_seq_length()), positions[:, :, -1:])  # type: ignore[attr-defined]


def next_positions(cache: Cache | None, token_ids: Tensor, length: int) -> Tensor | None:
    """Positions (B, 2, T) of version 1's tokens behind a cache, where ``note_positions`` has noted what they follow.

    None where they cannot be told: the context is not over yet, or the rows are not at the same positions, and may
    have changed places.
    """
    noted_length, last = getattr(cache, "glm_int4_last", (0, None))
    if last is None or noted_length != length or len(last) != len(token_ids):
        return None
    if bool((last != last[:1]).any()) or last.shape[1] != 2 or int(last[0, 1, 0]) < 1:
        return None
    steps = torch.arange(1, token_ids.shape[1] + 1, device=last.device)
    return torch.stack((last[:, 0].expand(-1, len(steps)), last[:, 1] + steps), dim=1)


def get_positions(model: Model, token_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Positions of whole rows, as the model counts them.

    Args:
        token_ids: (B, S) from the first token on.
        attention_mask: (B, S) bool, False where a row is padded.
    Returns:
        (B, P, S), 0 where padded; P kinds of position, 2 in version 1, else 1.
    """
    if model.config.is_causal:
        return ((attention_mask.cumsum(-1) - 1) * attention_mask)[:, None]
    positions = torch.zeros(token_ids.shape[0], 2, token_ids.shape[1], dtype=torch.long, device=token_ids.device)
    for row, ids, real in zip(positions, token_ids, attention_mask, strict=True):
        row[:, real] = torch.tensor(model.get_position_ids(ids[real].tolist()), device=row.device)
    return positions


def make_mask(
    model: Model, token_ids: Tensor, attention_mask: Tensor | None, past: int, prefix_length: int, dtype: torch.dtype
) -> AttentionMask:
    """Who sees whom.

    Args:
        token_ids: (B, T), the new ones.
        attention_mask: (B, past + T) bool, or None where nothing is padded.
        past: columns in the cache, which are the context where a model has one.
        dtype: of additive scores.
    Raises:
        InputError: version 1's context does not come in one piece.
    """
    num_rows, num_new = token_ids.shape
    contexts = [model.context_length(row) for row in token_ids.tolist()]
    without_sop = [not model.config.is_causal and length == num_new for length in contexts]
    if past and num_new > 1 and not model.config.is_causal and not all(without_sop):
        raise InputError("expected ChatGLM-6B's context in one piece, got <sop> behind a cache; do not split prompts")
    if past:
        contexts = [0] * num_rows
    elif any(without_sop):
        _warn_of_rows_without_sop()
    if attention_mask is None or bool(attention_mask.all()):
        if len(set(contexts)) == 1:
            return AttentionMask(context_length=prefix_length + contexts[0])
        attention_mask = torch.ones(num_rows, past + num_new, dtype=torch.bool, device=token_ids.device)
    padding = attention_mask.shape[1] - attention_mask.sum(-1)
    if num_new == 1 and not bool((attention_mask.cumsum(-1) > 0)[~attention_mask].any()):
        return AttentionMask(padding=padding, prefix_length=prefix_length)  # padded on the left alone
    columns = torch.arange(past + num_new, device=token_ids.device)
    causal = columns <= columns[past:, None]  # (T, S)
    context = columns < torch.tensor(contexts, device=token_ids.device)[:, None]  # (B, S)
    visible = (causal | context[:, None]) & attention_mask[:, None] & attention_mask[:, past:, None]
    return AttentionMask(bias=F.pad(attention_mask_func(~visible[:, None], dtype), (prefix_length, 0)))


@functools.cache
def _warn_of_rows_without_sop() -> None:
    """Say it once a process."""
    logger.warning(
        "ids without <sop> are context throughout for ChatGLM-6B: every token sees all others, and logits predict "
        "nothing; let the tokenizer add its special tokens, or load it with add_bos_token=True to score texts"
    )
