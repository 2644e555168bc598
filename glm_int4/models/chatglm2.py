"""ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B: causal models with grouped keys and values.

Module names follow the official code. The versions differ only in their rotary tables and, in GLM-4-0414, in two norms
more a layer (and in their prompts: see the text room). Activations are batch-first, and logits can be computed for the
last position alone.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glm_int4.models.attention import attend
from glm_int4.models.config import OUTPUT_NORMS, ChatGLM2Config
from glm_int4.models.layer import Layer, LayerParts, by_chunks, turn_heads
from glm_int4.models.model import Model, Positions
from glm_int4.models.past import AttentionMask, Past
from glm_int4.quantization.activation import feed_forward
from glm_int4.quantization.embedding import DenseEmbedding, TokenEmbedding
from glm_int4.quantization.linear import LinearFactory, dense_linear

ROTARY_BASE = 10000.0


class RotaryEmbedding(nn.Module):
    """Angles of the rotated half of a head, one for every pair of neighbouring elements.

    ``half_tables``: as in the official version 2 in half precision, where inverse frequencies,
    positions, angles, cosines and sines are each rounded to fp16. Version 3 computes in float32
    whatever the model's precision.
    """

    def __init__(self, config: ChatGLM2Config, *, half_tables: bool) -> None:
        super().__init__()
        self.dim, self.base = config.head_dim // 2, ROTARY_BASE * config.rotary_base_factor
        self.position_divisor = config.position_divisor
        self.dtype = torch.float16 if half_tables and config.has_half_rotary else torch.float32

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
        return self.dense(self._attended(self.query_key_value(x), x.dtype, rotary, mask, past))

    def _attended(
        self, qkv: Tensor, dtype: torch.dtype, rotary: tuple[Tensor, Tensor], mask: AttentionMask, past: Past
    ) -> Tensor:
        """What ``dense`` is given, for a projection that is gone by then."""
        parts = [part.unflatten(-1, (-1, self.head_dim)) for part in qkv.split(self.sizes, dim=-1)]
        q, k = (turn_heads(apply_rotary_pos_emb, part, rotary, dtype) for part in parts[:2])  # (B, T, H or Hkv, D)
        return attend(q, k, parts[2].to(dtype), mask, past, self.layer_id)


class MLP(nn.Module):
    """SwiGLU: the first half of ``dense_h_to_4h``'s rows is the gate."""

    def __init__(self, config: ChatGLM2Config, prefix: str, make_linear: LinearFactory) -> None:
        super().__init__()
        self.dense_h_to_4h = make_linear(f"{prefix}.dense_h_to_4h", config.hidden_size, 2 * config.ffn_size, False)
        self.dense_4h_to_h = make_linear(f"{prefix}.dense_4h_to_h", config.ffn_size, config.hidden_size, False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, hidden) to the same shape, some rows at a time."""
        return by_chunks(lambda part: feed_forward(self.dense_h_to_4h, self.dense_4h_to_h, part, "swiglu"), x)


class GLMBlock(Layer):
    """One layer; norms come first, and the residual is the input as it was."""

    def __init__(self, config: ChatGLM2Config, layer_id: int, prefix: str, make_linear: LinearFactory) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.self_attention = SelfAttention(config, layer_id, f"{prefix}.self_attention", make_linear)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.mlp = MLP(config, f"{prefix}.mlp", make_linear)

    @property
    def parts(self) -> LayerParts:
        """As of ``Layer``."""
        return LayerParts(self.input_layernorm, self.self_attention, self.post_attention_layernorm, self.mlp)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: AttentionMask, past: Past) -> Tensor:
        """x (B, T, hidden) to the same shape; arguments as of ``SelfAttention``."""
        x = x + self.self_attention(self.input_layernorm(x), rotary, mask, past)
        return x + self.mlp(self.post_attention_layernorm(x))


class OutputNormBlock(GLMBlock):
    """A layer of GLM-4-0414: what attention and feed-forward give is normed before it joins the residual."""

    def __init__(self, config: ChatGLM2Config, layer_id: int, prefix: str, make_linear: LinearFactory) -> None:
        super().__init__(config, layer_id, prefix, make_linear)
        self.post_self_attn_layernorm = RMSNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.post_mlp_layernorm = RMSNorm(config.hidden_size, eps=config.layernorm_epsilon)

    @property
    def parts(self) -> LayerParts:
        """As of ``Layer``."""
        return replace(super().parts, output_norms=(self.post_self_attn_layernorm, self.post_mlp_layernorm))

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: AttentionMask, past: Past) -> Tensor:
        """x (B, T, hidden) to the same shape; arguments as of ``SelfAttention``."""
        attended = self.self_attention(self.input_layernorm(x), rotary, mask, past)
        x = x + self.post_self_attn_layernorm(attended)
        return x + self.post_mlp_layernorm(self.mlp(self.post_attention_layernorm(x)))


class GLMTransformer(nn.Module):
    """All layers and the final norm."""

    def __init__(self, config: ChatGLM2Config, make_linear: LinearFactory) -> None:
        super().__init__()
        block = OutputNormBlock if set(OUTPUT_NORMS) <= set(config.layer_norms) else GLMBlock
        self.layers = nn.ModuleList(
            block(config, i, f"transformer.encoder.layers.{i}", make_linear) for i in range(config.num_layers)
        )
        self.final_layernorm = RMSNorm(config.hidden_size, eps=config.layernorm_epsilon)


class Embedding(nn.Module):
    """Holds the embedding matrix under its official name."""

    def __init__(self, word_embeddings: TokenEmbedding) -> None:
        super().__init__()
        self.word_embeddings = word_embeddings


class ChatGLMModel(nn.Module):
    """Holds embedding, layers and head under their official names."""

    def __init__(
        self,
        config: ChatGLM2Config,
        make_linear: LinearFactory,
        word_embeddings: TokenEmbedding,
        *,
        half_tables: bool,
    ) -> None:
        super().__init__()
        self.embedding = Embedding(word_embeddings)
        self.rotary_pos_emb = RotaryEmbedding(config, half_tables=half_tables)
        self.encoder = GLMTransformer(config, make_linear)
        self.output_layer = make_linear("transformer.output_layer", config.hidden_size, config.vocab_size, False)


class ChatGLMForConditionalGeneration(Model):
    """The language model; its head is a matrix of its own."""

    config: ChatGLM2Config
    transformer: ChatGLMModel

    def __init__(
        self,
        config: ChatGLM2Config,
        make_linear: LinearFactory = dense_linear,
        word_embeddings: TokenEmbedding | None = None,
        *,
        half_tables: bool = True,
    ) -> None:
        super().__init__()
        self.config = config
        if word_embeddings is None:
            word_embeddings = DenseEmbedding(config.vocab_size, config.hidden_size)
        self.transformer = ChatGLMModel(config, make_linear, word_embeddings, half_tables=half_tables)

    @property
    def embedding(self) -> TokenEmbedding:
        """As of ``Model``."""
        return self.transformer.embedding.word_embeddings

    @property
    def layers(self) -> Iterable[Layer]:
        """As of ``Model``."""
        return self.transformer.encoder.layers  # type: ignore[return-value]

    @property
    def norm(self) -> nn.Module:
        """As of ``Model``."""
        return self.transformer.encoder.final_layernorm

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Of positions (B, 1, T), as ``apply_rotary_pos_emb`` takes it."""
        return self.transformer.rotary_pos_emb(positions[:, 0, :, None])

    def head(self, x: Tensor) -> Tensor:
        """As of ``Model``."""
        return self.transformer.output_layer(x).float()

    def replace_embedding(self, embedding: DenseEmbedding) -> None:
        """As of ``Model``."""
        self.transformer.embedding.word_embeddings = embedding

    def replace_head(self, head: nn.Module) -> None:
        """As of ``Model``."""
        self.transformer.output_layer = head

    def positions(self, token_ids: list[int]) -> Positions:
        """Counted from 0; no token sees what comes after it."""
        return Positions([list(range(len(token_ids)))], [len(token_ids)], 0)
