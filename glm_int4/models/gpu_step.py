"""One new token for every row of a cache, on fused kernels: what a GPU does between two tokens.

The same arithmetic as the modules' own ``forward``, in a fifth of the launches: the residual is added where
the next norm is computed, queries are rotated where keys and values are written to the cache, and attention
reads the cache as it is stored. Shapes do not depend on where a row's cache is, nor on its length, which are
tensors, so that a CUDA graph of a step serves many tokens. ``generation/cuda_graphs.py`` makes the graphs.
"""

from types import ModuleType

import torch
from torch import Tensor, nn

from glm_int4.models.kv_cache import KVCache
from glm_int4.models.layer import LayerParts
from glm_int4.models.model import Model
from glm_int4.quantization.activation import activation_of_linear


class DecodeStep:
    """Steps over one cache.

    Args:
        model: of any version, in float16.
        cache: in float16 or int8, of rows or of slots. Only its tensors are kept, not the cache.
        ops: ``triton_kernels.decode`` or ``triton_kernels.reference``.
    """

    def __init__(self, model: Model, cache: KVCache, ops: ModuleType) -> None:
        self._model, self._ops = model, ops
        self._k, self._v = cache.k, cache.v
        self._k_scales, self._v_scales = cache.k_scales, cache.v_scales
        positions = torch.arange(cache.max_length + 2, device=cache.k.device)
        tables = model.rotary(positions[None, None])
        self._cos, self._sin = (table.view(len(positions), -1).contiguous() for table in tables)  # (positions, D / 4)
        self._layers = [layer.parts for layer in model.layers]

    def __call__(
        self,
        token_ids: Tensor,
        positions: Tensor,
        slots: Tensor,
        columns: Tensor,
        padding: Tensor,
        *,
        prefix_length: int,
        max_columns: int,
    ) -> Tensor:
        """Write the new tokens' keys and values to the cache and return the logits behind them.

        Args:
            token_ids: (B,) int64. positions: (B, P) int64, as the model takes them.
            slots: (B,) int64, each row's place in the cache.
            columns: (B,) int64, the column for its new token: how many were valid before.
            padding: (B,) int64, hidden columns behind the first ``prefix_length``.
            max_columns: at least the largest of ``columns + 1``; a bound that the launches are made for.
        Returns:
            (B, V) float32.
        """
        places = (slots, columns, columns + 1)
        x = self._model.embedding(token_ids).half()  # (B, hidden_size)
        residual_is_normed = self._model.config.residual_is_normed
        norms = [layer.input_norm for layer in self._layers] + [self._model.norm]
        total, x = self._add_norm(x, norms[0])
        for i, layer in enumerate(self._layers):
            out = self._attend(layer, i, x, positions, places, padding, prefix_length, max_columns)
            total, x = self._add_norm(out, layer.post_attention_norm, x if residual_is_normed else total)
            out = self._mlp(layer.mlp, x)
            total, x = self._add_norm(out, norms[i + 1], x if residual_is_normed else total)
        return self._model.head(x)

    def _add_norm(self, x: Tensor, norm: nn.Module, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        bias = getattr(norm, "bias", None)
        alpha = self._model.config.residual_alpha
        return self._ops.add_norm(x.half(), norm.weight, bias, residual, alpha=alpha, eps=norm.eps)

    def _attend(
        self,
        layer: LayerParts,
        layer_id: int,
        x: Tensor,
        positions: Tensor,
        places: tuple[Tensor, Tensor, Tensor],
        padding: Tensor,
        prefix_length: int,
        max_columns: int,
    ) -> Tensor:
        stored = [part[layer_id] for part in (self._k, self._v, self._k_scales, self._v_scales)]
        config = self._model.config
        slots, columns, lengths = places
        q = self._ops.rotary_to_cache(
            layer.attention.query_key_value(x).half(),  # type: ignore[operator]
            self._cos,
            self._sin,
            positions,
            slots,
            columns,
            *stored,
            num_heads=config.num_heads,
            two_dimensional=config.position_kinds == 2,
        )
        out = self._ops.one_token_attention(
            q, *stored, slots, lengths, padding, prefix_length=prefix_length, max_columns=max_columns
        )
        return layer.attention.dense(out)  # type: ignore[operator]

    def _mlp(self, mlp: nn.Module, x: Tensor) -> Tensor:
        activation = self._model.config.activation
        return mlp.dense_4h_to_h(activation_of_linear(mlp.dense_h_to_4h, x, activation))  # type: ignore[operator,arg-type]
