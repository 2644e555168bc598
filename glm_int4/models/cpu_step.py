"""Layers on the "integer" backend: one new token runs through all of them in one compiled call."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from glm_int4.models.config import Config
from glm_int4.models.kv_cache import KVCache, RunningRows
from glm_int4.models.layer import Layer
from glm_int4.models.past import AttentionMask, Past
from glm_int4.quantization.adapted import Addition, ChosenLinear, addition_of, base_of
from glm_int4.quantization.cpu.integer import IntegerMatrix
from glm_int4.quantization.cpu.threads import numba_threads
from glm_int4.quantization.linear import QuantizedLinear


class FusedLayers:
    """All layers of a model whose linears are all on the "integer" backend.

    Args:
        num_adapters: whose numbers rows may have, that of the model's own one among them.
    """

    @torch.no_grad()
    def __init__(self, layers: Iterable[Layer], config: Config, num_adapters: int = 1) -> None:
        self._made_of = (layers, config, num_adapters)
        matrices = [[_matrix(linear) for linear in layer.parts.linears] for layer in layers]
        self._bytes_of_a_layer = sum(matrix.packed.nbytes for matrix in matrices[0] if matrix is not None)
        self._kept = matrices  # the table below holds addresses alone
        self._table = np.array([[_row(m) for m in row if m is not None] for row in matrices], dtype=np.int64)
        self._adapters = _adapter_table(layers, num_adapters)
        self._norm_weights = _stack(layers, "weight")
        self._norm_biases = self._norm_weights if config.has_rms_norm else _stack(layers, "bias")
        self._epsilon = np.float32(config.layernorm_epsilon)
        self._alpha = np.float32(config.residual_alpha if config.residual_is_normed else 0)
        self._num_heads = config.num_heads
        first = matrices[0]
        assert first[0] is not None
        assert first[2] is not None
        self._widths = (first[0].out_features, first[2].out_features)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies of a model have other addresses."""
        return FusedLayers, self._made_of

    @staticmethod
    def fit(layers: Iterable[Layer]) -> bool:
        """Whether every linear is on the backend, and every norm in float32; no norm stands behind a linear."""
        linears = [linear for layer in layers for linear in layer.parts.linears]
        norms = [norm for layer in layers for norm in layer.parts.norms]
        return (
            len(linears) > 0
            and all(_matrix(linear) is not None for linear in linears)
            and all(isinstance(norm.weight, Tensor) and norm.weight.dtype == torch.float32 for norm in norms)
            and not any(layer.parts.output_norms for layer in layers)
        )

    @staticmethod
    def take(x: Tensor, mask: AttentionMask, past: Past) -> bool:
        """Whether x (B, 1, hidden) is one new token of every row, on a cache that the loops read."""
        return (
            isinstance(past, KVCache | RunningRows)
            and past.dtype in (torch.float16, torch.int8)
            and x.dtype == torch.float32
            and mask.bias is None
            and not (torch.is_grad_enabled() and x.requires_grad)
        )

    def decode(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: AttentionMask,
        past: KVCache | RunningRows,
        choices: Tensor | None = None,
    ) -> Tensor:
        """Run all layers over x (B, 1, hidden) and write the cache, without counting the new column.

        Args:
            rotary: cos and sin, (B, 1, 1, D / 4) or (B, 1, 1, 2, D / 4).
            choices: (B,) int64, every row's adapter, 0 for the model's own, -1 for none; None is 0 for all.
        Returns:
            (B, 1, hidden).
        """
        from glm_int4.models import cpu_step_loops

        batch_size = x.shape[0]
        slots, columns = past.places(batch_size)
        x = x[:, 0].detach().clone(memory_format=torch.contiguous_format)
        quarter = rotary[0].shape[-1]
        cos, sin = (part.reshape(batch_size, -1, quarter).contiguous().numpy() for part in rotary)
        padding = torch.zeros(batch_size, dtype=torch.int64) if mask.padding is None else mask.padding
        choices = torch.zeros(batch_size, dtype=torch.int64) if choices is None else choices
        arguments = (
            x.numpy(), self._table, self._adapters, choices.numpy(), self._norm_weights, self._norm_biases,
            self._epsilon, self._alpha, cos, sin, self._num_heads, *past.arrays(), slots.numpy(), columns.numpy(),
            padding.numpy(), mask.prefix_length, self._widths,
        )  # fmt: skip
        if batch_size * self._bytes_of_a_layer <= cpu_step_loops.SERIAL_LAYER_BYTES:
            cpu_step_loops.decode_layers_here(*arguments)
        else:
            with numba_threads() as threads:
                cpu_step_loops.decode_layers(*arguments, threads)
        return x[:, None]


def _matrix(linear: nn.Module) -> IntegerMatrix | None:
    linear = base_of(linear)
    if isinstance(linear, QuantizedLinear) and isinstance(linear.matrix, IntegerMatrix):
        return linear.matrix
    return None


def _row(matrix: IntegerMatrix) -> list[int]:
    """A row of the table of ``cpu_step_loops.py``."""
    num_groups = matrix.in_features // matrix.group_size
    return [*matrix.addresses, matrix.bits, num_groups, matrix.run, matrix.in_features]


def _adapter_table(layers: Iterable[Layer], num_adapters: int) -> np.ndarray:
    """The table of ``adapter_loops.py``: of all adapters by their numbers, or of none."""
    linears = [layer.parts.linears for layer in layers]
    numbers = range(num_adapters)
    entries = [[[_entry(addition_of(linear, n)) for linear in row] for row in linears] for n in numbers]
    table = np.array(entries, dtype=np.int64)
    has_adapter = any(isinstance(linear, Addition | ChosenLinear) for row in linears for linear in row)
    return table if has_adapter else table[:0]


def _entry(addition: Addition | None) -> list[int]:
    """An entry of that table."""
    if addition is None:
        return [0] * 5
    parts = (addition.down, addition.up, addition.ratio, addition.shift)
    assert all(part is None or (part.dtype == torch.float32 and part.is_contiguous()) for part in parts)
    return [*(0 if part is None else part.data_ptr() for part in parts), len(addition.down)]


def _stack(layers: Iterable[Layer], name: str) -> np.ndarray:
    """One parameter of all norms: (L, 2, hidden)."""
    return torch.stack([torch.stack([getattr(norm, name) for norm in layer.parts.norms]) for layer in layers]).numpy()
