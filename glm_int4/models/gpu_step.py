"""A prompt, or one new token for every row of a cache, on fused kernels: what a GPU does.

The same arithmetic as the modules' own ``forward``, in a fifth of the launches: the residual is added where
the next norm is computed, and queries are rotated where keys and values are written to the cache. Attention of a prompt
is torch's; that of a step reads the cache as it is stored. A step's shapes do not depend on where a row's cache is, nor
on its length, which are tensors, so that a CUDA graph of it serves many tokens. ``generation/cuda_graphs.py`` makes
the graphs.
"""

from functools import partial
from types import ModuleType

import torch
from torch import Tensor, nn

from glm_int4.models.attention import attention_fn
from glm_int4.models.kv_cache import KVCache
from glm_int4.models.layer import LayerParts, by_chunks
from glm_int4.models.model import Model
from glm_int4.models.past import AttentionMask, Past
from glm_int4.quantization.activation import activation_of_linear, feed_forward

# Of the feed-forward part of a prompt that is read in one piece, rows at a time: what they take is less than what the
# projection to queries, keys and values takes of all rows.
_WIDE_ROWS = 704


class PromptPass:
    """Prompts of one sequence at a time.

    Args:
        model: of any version, with norms in the dtype of its stream.
        ops: ``triton_kernels.decode`` or ``triton_kernels.reference``.
    """

    def __init__(self, model: Model, ops: ModuleType) -> None:
        self._model, self._ops = model, ops
        self._layers = [layer.parts for layer in model.layers]

    @staticmethod
    def takes(token_ids: Tensor, mask: AttentionMask, cache: Past) -> bool:
        """Whether it computes this: several tokens of a sequence that is not padded."""
        return isinstance(cache, KVCache) and len(token_ids) == 1 and token_ids.shape[1] > 1 and mask.bias is None

    def __call__(self, token_ids: Tensor, positions: Tensor, mask: AttentionMask, cache: KVCache) -> Tensor:
        """Write the tokens' keys and values to the cache; arguments and result as of ``Model.last_hidden_state``."""
        model, num_rows = self._model, token_ids.shape[1]
        cache.check_room(num_rows)
        # One line of the tables for every row and kind of position.
        cos, sin = (table.reshape(-1, table.shape[-1]).contiguous() for table in model.rotary(positions))
        lines = torch.arange(len(cos), device=cos.device).view(num_rows, -1)
        rotary = (cos, sin, lines, *_places(cache, num_rows, cos.device))
        is_normed = model.config.residual_is_normed
        norms = [layer.input_norm for layer in self._layers] + [model.norm]
        total, x = _add_norm(model, self._ops, model.embedding(token_ids[0]), norms[0])
        residual = x if is_normed else total
        del total
        for i, layer in enumerate(self._layers):
            attended = partial(self._attended, layer.attention, i, rotary, mask, cache)
            for part, norm in ((attended, layer.post_attention_norm), (partial(self._fed, layer.mlp), norms[i + 1])):
                total, x = _add_norm(model, self._ops, part(x), norm, residual)
                residual = x if is_normed else total
                del total  # of which the next part has no use in version 1
        cache.advance(num_rows)
        return x[None]

    def _attended(
        self,
        attention: nn.Module,
        layer_id: int,
        rotary: tuple[Tensor, ...],
        mask: AttentionMask,
        cache: KVCache,
        x: Tensor,
    ) -> Tensor:
        config = self._model.config
        stored = [part[layer_id] for part in (cache.k, cache.v, cache.k_scales, cache.v_scales)]
        q = self._ops.rotary_to_cache(
            attention.query_key_value(x).to(x.dtype),  # type: ignore[operator]
            *rotary,
            *stored,
            num_heads=config.num_heads,
            two_dimensional=config.position_kinds == 2,
        )
        keys, values = cache.read(layer_id, cache.length + len(x), q.dtype)
        out = attention_fn(q[None].transpose(1, 2), keys, values, mask)[0]
        del q, keys, values
        return attention.dense(out)  # type: ignore[operator]

    def _fed(self, mlp: nn.Module, x: Tensor) -> Tensor:
        config = self._model.config
        rows = len(x) if config.is_causal else _WIDE_ROWS

        def feed(part: Tensor) -> Tensor:
            out = feed_forward(mlp.dense_h_to_4h, mlp.dense_4h_to_h, part, config.activation)  # type: ignore[arg-type]
            return out.to(part.dtype)

        return by_chunks(feed, x[None], rows=rows)[0]


def _places(cache: KVCache, num_rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of every row of a piece, the sequence's place in the cache and the row's column."""
    columns = torch.arange(cache.length, cache.length + num_rows, device=device)
    return torch.zeros_like(columns), columns


def _add_norm(
    model: Model, ops: ModuleType, x: Tensor, norm: nn.Module, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``x + alpha * residual`` and its norm, in the norm's dtype."""
    weight, bias = norm.weight, getattr(norm, "bias", None)
    assert isinstance(weight, Tensor)
    out: tuple[Tensor, Tensor] = ops.add_norm(
        x.to(weight.dtype), weight, bias, residual, alpha=model.config.residual_alpha, eps=norm.eps
    )
    return out


class DecodeStep:
    """Steps over one cache.

    Args:
        model: of any version, with norms in the dtype of its stream.
        cache: in that dtype or int8, of rows or of slots. Only its tensors are kept, not the cache.
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
        x = self._model.embedding(token_ids)  # (B, hidden_size)
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
        return _add_norm(self._model, self._ops, x, norm, residual)

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
            layer.attention.query_key_value(x).to(x.dtype),  # type: ignore[operator]
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
