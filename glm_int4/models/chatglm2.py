"""ChatGLM2-6B and ChatGLM3-6B: causal models with grouped keys and values.

Module names follow the official code. The two versions differ only in their rotary tables (and in
their prompts: see the text room). Activations are batch-first, and logits can be computed for the
last position alone.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glm_int4.models.attention import attend
from glm_int4.models.config import ChatGLM2Config
from glm_int4.models.cpu_step import FusedLayers, LayerParts
from glm_int4.models.kv_cache import KVCache
from glm_int4.models.memory_saving import by_chunks, run_layer
from glm_int4.models.past import AttentionMask, Past
from glm_int4.models.slots import RunningRows
from glm_int4.quantization.activation import linear_of_activation
from glm_int4.quantization.embedding import DenseEmbedding, QuantizedEmbedding
from glm_int4.quantization.linear import LinearFactory, dense_linear

ROTARY_BASE = 10000.0


class RotaryEmbedding(nn.Module):
    """Angles of the rotated half of a head, one for every pair of neighbouring elements.

    ``half_tables``: as in the official version 2 in half precision, where inverse frequencies,
    positions, angles, cosines and sines are each rounded to fp16. Version 3 computes in float32
    whatever the model's precision.
    """

    def __init__(self, dim: int, *, version: str, rope_ratio: float, half_tables: bool) -> None:
        super().__init__()
        self.dim = dim
        self.dtype = torch.float16 if half_tables and version == "2" else torch.float32
        # The 32k models stretch the angles in two ways under the same key.
        self.base = ROTARY_BASE * rope_ratio if version == "3" else ROTARY_BASE
        self.position_divisor = rope_ratio if version == "2" else 1.0

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin of shape ``positions.shape + (dim // 2,)``, float32."""
        exponents = torch.arange(0, self.dim, 2, device=positions.device, dtype=self.dtype) / self.dim
        inv_freq = 1.0 / self.base**exponents
        angles = ((positions.to(self.dtype) / self.position_divisor)[..., None] * inv_freq).float()
        return angles.cos().to(self.dtype).float(), angles.sin().to(self.dtype).float()


def apply_rotary_pos_emb(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first half of every query or key head; the second half stays.

    Args:
        x: (B, T, H, D); elements 2i and 2i + 1 of its first half are a pair.
        cos, sin: (B, T, 1, D / 4) float32.
    Returns:
        (B, T, H, D) float32.
    """
    rotated, rest = x.float().chunk(2, dim=-1)
    even, odd = rotated.unflatten(-1, (-1, 2)).unbind(-1)
    pairs = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return torch.cat((pairs.flatten(-2), rest), dim=-1)


class RMSNorm(nn.RMSNorm):
    """Root mean square norm in float32, returned in the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., hidden) to the same shape and dtype."""
        assert self.weight is not None
        return F.rms_norm(x.float(), self.normalized_shape, self.weight.float(), self.eps).to(x.dtype)


class SelfAttention(nn.Module):
    """Multi-query attention; rows of ``query_key_value`` are all query heads, then keys, then values."""

    def __init__(self, config: ChatGLM2Config, layer_id: int, prefix: str, make_linear: LinearFactory) -> None:
        super().__init__()
        self.layer_id, self.head_dim = layer_id, config.head_dim
        self.sizes = [n * config.head_dim for n in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]
        hidden = config.hidden_size
        self.query_key_value = make_linear(f"{prefix}.query_key_value", hidden, sum(self.sizes), True)
        self.dense = make_linear(f"{prefix}.dense", hidden, hidden, False)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: AttentionMask, past: Past) -> Tensor:
        """x (B, T, hidden) to the same shape; rotary: cos and sin, see ``apply_rotary_pos_emb``."""
        parts = self.query_key_value(x).split(self.sizes, dim=-1)
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in parts)  # (B, T, H or Hkv, D)
        q, k = apply_rotary_pos_emb(q, *rotary), apply_rotary_pos_emb(k, *rotary)
        q, k, v = q.to(x.dtype), k.to(x.dtype), v.to(x.dtype)
        return self.dense(attend(q, k, v, mask, past, self.layer_id))


class MLP(nn.Module):
    """SwiGLU: the first half of ``dense_h_to_4h``'s rows is the gate."""

    def __init__(self, config: ChatGLM2Config, prefix: str, make_linear: LinearFactory) -> None:
        super().__init__()
        self.dense_h_to_4h = make_linear(f"{prefix}.dense_h_to_4h", config.hidden_size, 2 * config.ffn_size, False)
        self.dense_4h_to_h = make_linear(f"{prefix}.dense_4h_to_h", config.ffn_size, config.hidden_size, False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, hidden) to the same shape, some rows at a time."""
        return by_chunks(x, lambda part: linear_of_activation(self.dense_4h_to_h, self.dense_h_to_4h(part), "swiglu"))


class GLMBlock(nn.Module):
    """One layer; norms come first, and the residual is the input as it was."""

    def __init__(self, config: ChatGLM2Config, layer_id: int, prefix: str, make_linear: LinearFactory) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.self_attention = SelfAttention(config, layer_id, f"{prefix}.self_attention", make_linear)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.mlp = MLP(config, f"{prefix}.mlp", make_linear)

    @property
    def parts(self) -> LayerParts:
        """Linears and norms, in the order in which they run."""
        attention, mlp = self.self_attention, self.mlp
        linears = (attention.query_key_value, attention.dense, mlp.dense_h_to_4h, mlp.dense_4h_to_h)
        return LayerParts(linears=linears, norms=(self.input_layernorm, self.post_attention_layernorm))

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: AttentionMask, past: Past) -> Tensor:
        """x (B, T, hidden) to the same shape; arguments as of ``SelfAttention``."""
        x = x + self.self_attention(self.input_layernorm(x), rotary, mask, past)
        return x + self.mlp(self.post_attention_layernorm(x))


class GLMTransformer(nn.Module):
    """All layers and the final norm."""

    def __init__(self, config: ChatGLM2Config, make_linear: LinearFactory) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            GLMBlock(config, i, f"transformer.encoder.layers.{i}", make_linear) for i in range(config.num_layers)
        )
        self.final_layernorm = RMSNorm(config.hidden_size, eps=config.layernorm_epsilon)


class Embedding(nn.Module):
    """Holds the embedding matrix under its official name."""

    def __init__(self, word_embeddings: DenseEmbedding | QuantizedEmbedding) -> None:
        super().__init__()
        self.word_embeddings = word_embeddings


class ChatGLMModel(nn.Module):
    """Embedding, layers and head."""

    def __init__(
        self,
        config: ChatGLM2Config,
        make_linear: LinearFactory,
        word_embeddings: DenseEmbedding | QuantizedEmbedding,
        *,
        half_tables: bool,
    ) -> None:
        super().__init__()
        self._config = config
        self.embedding = Embedding(word_embeddings)
        self.rotary_pos_emb = RotaryEmbedding(
            config.head_dim // 2, version=config.version, rope_ratio=config.rope_ratio, half_tables=half_tables
        )
        self.encoder = GLMTransformer(config, make_linear)
        self.output_layer = make_linear("transformer.output_layer", config.hidden_size, config.vocab_size, False)

    @functools.cached_property
    def _fused_layers(self) -> FusedLayers | None:
        """All layers as one function for single new tokens, where the backend has it."""
        parts = [layer.parts for layer in self.encoder.layers if isinstance(layer, GLMBlock)]
        return FusedLayers(parts, self._config, 0.0) if FusedLayers.fit(parts) else None

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        mask: AttentionMask,
        cache: Past = None,
        hidden_states: list[Tensor] | None = None,
    ) -> Tensor:
        """Final hidden states (B, T, hidden); arguments as of ``ChatGLMForConditionalGeneration``."""
        cos, sin = self.rotary_pos_emb(positions[:, 0, :, None])  # (B, T, 1, D / 4)
        x = self.embedding.word_embeddings(token_ids)
        fused = self._fused_layers if hidden_states is None and FusedLayers.take(x, mask, cache) else None
        if fused is not None and isinstance(cache, KVCache | RunningRows):
            x = fused.decode(x, (cos, sin), mask, cache)
        for layer in self.encoder.layers if fused is None else ():
            if hidden_states is not None:
                hidden_states.append(x)
            x = run_layer(layer, x, (cos, sin), mask, cache)
        if isinstance(cache, KVCache):
            cache.advance(token_ids.shape[1])
        if hidden_states is not None:
            hidden_states.append(x)
        return self.encoder.final_layernorm(x)


class ChatGLMForConditionalGeneration(nn.Module):
    """The language model; its head is a matrix of its own."""

    is_causal = True

    def __init__(
        self,
        config: ChatGLM2Config,
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
            positions: (B, 1, T) int64; see ``get_position_ids``.
            mask: who sees whom; see ``get_masks``.
            cache: keys and values of earlier tokens, extended in place; or a prefix alone.
            last_only: compute logits for the last position alone.
            hidden_states: if given, receives the input of every layer and the last layer's output.
        Returns:
            Logits, (B, T or 1, V) float32.
        """
        x = self.transformer(token_ids, positions, mask, cache, hidden_states)
        return self.lm_head(x[:, -1:] if last_only else x)

    def lm_head(self, x: Tensor) -> Tensor:
        """Project (B, T, hidden_size) onto the vocabulary: (B, T, V) float32."""
        return self.transformer.output_layer(x).float()

    def get_position_ids(self, token_ids: list[int]) -> list[list[int]]:
        """Positions of one unpadded sequence, counted from 0: one list of its length."""
        return [list(range(len(token_ids)))]

    def next_position_ids(self, token_ids: list[int]) -> list[int]:
        """Position of the token that will follow."""
        return [len(token_ids)]

    def context_length(self, token_ids: list[int]) -> int:
        """Number of tokens that see what comes after them: none."""
        return 0

    def get_masks(self, rows: list[list[int]], device: torch.device | str = "cpu") -> Tensor:
        """Mask (B, 1, T, T), True = masked, of left-padded rows of T = the longest one's tokens."""
        length = max(map(len, rows))
        mask = torch.ones(length, length, dtype=torch.bool).triu_(1).repeat(len(rows), 1, 1)
        for row, token_ids in zip(mask, rows, strict=True):
            row[:, : length - len(token_ids)] = True
        return mask[:, None].to(device)
