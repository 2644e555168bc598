"""Time for memory: the feed-forward part some rows at a time, and layers that are computed twice in training."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from glm_int4.models.past import AttentionMask, Past, Prefix

# Rows at a time. GPU: 512 x 27392 values in half precision are 28 MB. CPU: 128 x 27392 floats are 14 MB,
# which stay in the last-level cache between the two matrices.
_ROWS = {"cpu": 128}
_GPU_ROWS = 512


def by_chunks(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """``function(x)`` of x (B, T, C), for a function that treats every token by itself."""
    rows = _ROWS.get(x.device.type, _GPU_ROWS)
    if x.shape[1] <= rows or (torch.is_grad_enabled() and x.requires_grad):
        return function(x)
    return torch.cat([function(part) for part in x.split(rows, dim=1)], dim=1)


def run_layer(layer: nn.Module, x: Tensor, rotary: tuple[Tensor, Tensor], mask: AttentionMask, past: Past) -> Tensor:
    """Run one layer, keeping no more of it for a backward pass than its input where the prefix says so."""
    if isinstance(past, Prefix) and past.recompute and torch.is_grad_enabled():
        out: Tensor = checkpoint(layer, x, rotary, mask, past, use_reentrant=False, preserve_rng_state=False)
        return out
    return layer(x, rotary, mask, past)
