"""ChatGLM-6B (v1): a prefix language model with two-dimensional rotary positions.

Class names follow the official code. What differs on purpose: activations are batch-first, scores
are never materialized (the official layer-number factor cancels out and only served the fp16
range), and logits can be computed for the last position alone.
"""

import functools
import math

import torch
from torch import Tensor, nn

from glm_int4.models.attention import attend
from glm_int4.models.config import ChatGLMConfig
from glm_int4.models.cpu_step import FusedLayers, LayerParts
from glm_int4.models.kv_cache import KVCache
from glm_int4.models.memory_saving import by_chunks, run_layer
from glm_int4.models.past import AttentionMask, Past
from glm_int4.models.slots import RunningRows
from glm_int4.quantization.activation import linear_of_activation
from glm_int4.quantization.embedding import DenseEmbedding, QuantizedEmbedding
from glm_int4.quantization.linear import LinearFactory, dense_linear

# The official GLMBlock is always built with its default of 28 layers, whatever the config says.
RESIDUAL_ALPHA = math.sqrt(2 * 28)


class RotaryEmbedding(nn.Module):
    """Angles of one half of a head: base 10000, inverse frequencies rounded to fp16 as officially."""

    def __init__(self, dim: int, *, half_tables: bool, base: float = 10000.0) -> None:
        super().__init__()
        self.dim, self.base, self.half_tables = dim, base, half_tables

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin of shape ``positions.shape + (dim // 2,)``, float32.

        With ``half_tables`` the angle, its cosine and its sine are each rounded to fp16, as in the
        official model in half precision; otherwise only the inverse frequencies are, as after
        ``.float()``.
        """
        exponents = torch.arange(0, self.dim, 2, device=positions.device).float() / self.dim
        inv_freq = (1.0 / self.base**exponents).half()
        if self.half_tables:
            angles = (positions[..., None].half() * inv_freq).float()
            return angles.cos().half().float(), angles.sin().half().float()
        angles = positions[..., None].float() * inv_freq.float()
        return angles.cos(), angles.sin()


def apply_rotary_pos_emb_index(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries or keys by both position dimensions.

    Args:
        x: (B, T, H, D). Its first half turns by the token position, its second by the block
            position; inside a half, element i pairs with element i + D / 4.
        cos, sin: (B, T, 1, 2, D / 4) float32.
    Returns:
        (B, T, H, D) float32.
    """
    halves = x.float().unflatten(-1, (2, 2, x.shape[-1] // 4))
    x1, x2 = halves[..., 0, :], halves[..., 1, :]
    return torch.stack((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-2).flatten(-3)


class SelfAttention(nn.Module):
    """Multi-head attention; rows of ``query_key_value`` are [q | k | v] head by head."""

    def __init__(self, config: ChatGLMConfig, layer_id: int, prefix: str, make_linear: LinearFactory) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.layer_id = config.num_heads, config.head_dim, layer_id
        hidden = config.hidden_size
        self.query_key_value = make_linear(f"{prefix}.query_key_value", hidden, 3 * hidden, True)
        self.dense = make_linear(f"{prefix}.dense", hidden, hidden, True)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: AttentionMask, past: Past) -> Tensor:
        """x (B, T, hidden) to the same shape; rotary: cos and sin, see ``apply_rotary_pos_emb_index``."""
        qkv = self.query_key_value(x).unflatten(-1, (self.num_heads, 3 * self.head_dim))
        q, k, v = qkv.split(self.head_dim, dim=-1)  # each (B, T, H, D)
        q = apply_rotary_pos_emb_index(q, *rotary)
        k = apply_rotary_pos_emb_index(k, *rotary)
        q, k, v = q.to(x.dtype), k.to(x.dtype), v.to(x.dtype)
        return self.dense(attend(q, k, v, mask, past, self.layer_id))


class GLU(nn.Module):
    """The feed-forward part; officially named GLU, though nothing is gated."""

    def __init__(self, config: ChatGLMConfig, prefix: str, make_linear: LinearFactory) -> None:
        super().__init__()
        self.dense_h_to_4h = make_linear(f"{prefix}.dense_h_to_4h", config.hidden_size, config.ffn_size, True)
        self.dense_4h_to_h = make_linear(f"{prefix}.dense_4h_to_h", config.ffn_size, config.hidden_size, True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, hidden) to the same shape, some rows at a time."""
        return by_chunks(x, lambda part: linear_of_activation(self.dense_4h_to_h, self.dense_h_to_4h(part), "gelu"))


class GLMBlock(nn.Module):
    """One layer. The residual is the normalized input, scaled by alpha."""

    def __init__(self, config: ChatGLMConfig, layer_id: int, prefix: str, make_linear: LinearFactory) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.attention = SelfAttention(config, layer_id, f"{prefix}.attention", make_linear)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.mlp = GLU(config, f"{prefix}.mlp", make_linear)

    @property
    def parts(self) -> LayerParts:
        """Linears and norms, in the order in which they run."""
        attention, mlp = self.attention, self.mlp
        linears = (attention.query_key_value, attention.dense, mlp.dense_h_to_4h, mlp.dense_4h_to_h)
        return LayerParts(linears=linears, norms=(self.input_layernorm, self.post_attention_layernorm))

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: AttentionMask, past: Past) -> Tensor:
        """x (B, T, hidden) to the same shape; arguments as of ``SelfAttention``."""
        x = self.input_layernorm(x)
        x = torch.add(self.attention(x, rotary, mask, past), x, alpha=RESIDUAL_ALPHA)
        x = self.post_attention_layernorm(x)
        return torch.add(self.mlp(x), x, alpha=RESIDUAL_ALPHA)


class ChatGLMModel(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(
        self,
        config: ChatGLMConfig,
        make_linear: LinearFactory,
        word_embeddings: DenseEmbedding | QuantizedEmbedding,
        *,
        half_tables: bool,
    ) -> None:
        super().__init__()
        self._config = config
        self.word_embeddings = word_embeddings
        self.rotary_emb = RotaryEmbedding(config.head_dim // 2, half_tables=half_tables)
        self.layers = nn.ModuleList(
            GLMBlock(config, i, f"transformer.layers.{i}", make_linear) for i in range(config.num_layers)
        )
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)

    @functools.cached_property
    def _fused_layers(self) -> FusedLayers | None:
        """All layers as one function for single new tokens, where the backend has it."""
        parts = [layer.parts for layer in self.layers if isinstance(layer, GLMBlock)]
        return FusedLayers(parts, self._config, RESIDUAL_ALPHA) if FusedLayers.fit(parts) else None

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        mask: AttentionMask,
        cache: Past = None,
        hidden_states: list[Tensor] | None = None,
    ) -> Tensor:
        """Final hidden states (B, T, hidden); arguments as of ``ChatGLMForConditionalGeneration``."""
        cos, sin = self.rotary_emb(positions.transpose(1, 2)[:, :, None])  # (B, T, 1, 2, D / 4)
        x = self.word_embeddings(token_ids)
        fused = self._fused_layers if hidden_states is None and FusedLayers.take(x, mask, cache) else None
        if fused is not None and isinstance(cache, KVCache | RunningRows):
            x = fused.decode(x, (cos, sin), mask, cache)
        for layer in self.layers if fused is None else ():
            if hidden_states is not None:
                hidden_states.append(x)
            x = run_layer(layer, x, (cos, sin), mask, cache)
        if isinstance(cache, KVCache):
            cache.advance(token_ids.shape[1])
        x = self.final_layernorm(x)
        if hidden_states is not None:
            hidden_states.append(x)
        return x


class ChatGLMForConditionalGeneration(nn.Module):
    """The language model; its head is the embedding matrix."""

    is_causal = False

    def __init__(
        self,
        config: ChatGLMConfig,
        make_linear: LinearFactory = dense_linear,
        word_embeddings: DenseEmbedding | QuantizedEmbedding | None = None,
        *,
        half_tables: bool = True,
    ) -> None:
        super().__init__()
        self.config = config
        if word_embeddings is None:
            word_embeddings = DenseEmbedding(config.vocab_size, config.hidden_size)
        self.transformer = ChatGLMModel(config, make_linear, word_embeddings, half_tables=half_tables)

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        mask: AttentionMask,
        cache: Past = None,
        *,
        last_only: bool = False,
        hidden_states: list[Tensor] | None = None,
    ) -> Tensor:
        """Run the model over T new tokens.

        Args:
            token_ids: (B, T) int64.
            positions: (B, 2, T) int64, token and block positions; see ``get_position_ids``.
            mask: who sees whom; see ``get_masks``.
            cache: keys and values of earlier tokens, extended in place; or a prefix alone.
            last_only: compute logits for the last position alone.
            hidden_states: if given, receives the input of every layer and the final norm's output.
        Returns:
            Logits, (B, T or 1, V) float32.
        """
        x = self.transformer(token_ids, positions, mask, cache, hidden_states)
        return self.lm_head(x[:, -1:] if last_only else x)

    def lm_head(self, x: Tensor) -> Tensor:
        """Project (B, T, hidden_size) onto the vocabulary: (B, T, V) float32."""
        return self.transformer.word_embeddings.project(x)

    def get_position_ids(self, token_ids: list[int]) -> list[list[int]]:
        """Token and block positions of one unpadded sequence, each of its length.

        From ``<sop>`` on, every token position is that of the first [gMASK], else of the first
        [MASK], and block positions count from 1. A sequence without mask token or without ``<sop>``
        is context throughout.
        """
        length, context_length = len(token_ids), self.context_length(token_ids)
        mask_id = self.config.gmask_token_id
        if mask_id not in token_ids:
            mask_id = self.config.mask_token_id
        mask_position = token_ids.index(mask_id) if mask_id in token_ids else context_length
        num_after = length - context_length
        return [
            [*range(context_length), *[mask_position] * num_after],
            [*[0] * context_length, *range(1, num_after + 1)],
        ]

    def next_position_ids(self, token_ids: list[int]) -> list[int]:
        """Token and block position of the token that will follow; after it, only the block position grows."""
        context_length = self.context_length(token_ids)
        token_position = context_length
        if context_length < len(token_ids):
            token_position = self.get_position_ids(token_ids)[0][-1]
        return [token_position, len(token_ids) - context_length + 1]

    def context_length(self, token_ids: list[int]) -> int:
        """Number of tokens before the first ``<sop>``; all of them where there is none."""
        bos = self.config.bos_token_id
        return token_ids.index(bos) if bos in token_ids else len(token_ids)

    def get_masks(self, rows: list[list[int]], device: torch.device | str = "cpu") -> Tensor:
        """Official mask (B, 1, T, T), True = masked, of left-padded rows of T = the longest one's tokens."""
        length = max(map(len, rows))
        mask = torch.ones(len(rows), length, length, dtype=torch.bool)
        for row, token_ids in zip(mask, rows, strict=True):
            pad = length - len(token_ids)
            row.triu_(1)
            row[:, pad : pad + self.context_length(token_ids)] = False
            row[:, :pad] = True
            row[:pad] = True
        return mask[:, None].to(device)
