"""ChatGLM-6B (v1): a prefix language model with two-dimensional rotary positions.

Class names follow the official code. What differs on purpose: activations are batch-first, scores
are never materialized (the official layer-number factor cancels out and only served the fp16
range), and logits can be computed for the last position alone.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from glm_int4.models.attention import attend
from glm_int4.models.config import ChatGLMConfig
from glm_int4.models.layer import Layer, LayerParts, by_chunks, turn_heads
from glm_int4.models.model import Model, Positions
from glm_int4.models.past import AttentionMask, Past
from glm_int4.quantization.activation import feed_forward
from glm_int4.quantization.embedding import DenseEmbedding, QuantizedEmbedding
from glm_int4.quantization.linear import LinearFactory, dense_linear


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
        return self.dense(self._attended(self.query_key_value(x), x.dtype, rotary, mask, past))

    def _attended(
        self, qkv: Tensor, dtype: torch.dtype, rotary: tuple[Tensor, Tensor], mask: AttentionMask, past: Past
    ) -> Tensor:
        """What ``dense`` is given, for a projection that is gone by then."""
        parts = qkv.unflatten(-1, (self.num_heads, 3 * self.head_dim)).split(self.head_dim, dim=-1)
        q, k = (turn_heads(apply_rotary_pos_emb_index, part, rotary, dtype) for part in parts[:2])  # (B, T, H, D)
        return attend(q, k, parts[2].to(dtype), mask, past, self.layer_id)


class GLU(nn.Module):
    """The feed-forward part; officially named GLU, though nothing is gated."""

    def __init__(self, config: ChatGLMConfig, prefix: str, make_linear: LinearFactory) -> None:
        super().__init__()
        self.dense_h_to_4h = make_linear(f"{prefix}.dense_h_to_4h", config.hidden_size, config.ffn_size, True)
        self.dense_4h_to_h = make_linear(f"{prefix}.dense_4h_to_h", config.ffn_size, config.hidden_size, True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, hidden) to the same shape, some rows at a time."""
        return by_chunks(lambda part: feed_forward(self.dense_h_to_4h, self.dense_4h_to_h, part, "gelu"), x)


class GLMBlock(Layer):
    """One layer. The residual is the normalized input, scaled by alpha."""

    def __init__(self, config: ChatGLMConfig, layer_id: int, prefix: str, make_linear: LinearFactory) -> None:
        super().__init__()
        self._alpha = config.residual_alpha
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.attention = SelfAttention(config, layer_id, f"{prefix}.attention", make_linear)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.mlp = GLU(config, f"{prefix}.mlp", make_linear)

    @property
    def parts(self) -> LayerParts:
        """As of ``Layer``."""
        return LayerParts(self.input_layernorm, self.attention, self.post_attention_layernorm, self.mlp)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: AttentionMask, past: Past) -> Tensor:
        """x (B, T, hidden) to the same shape; arguments as of ``SelfAttention``."""
        x = self.input_layernorm(x)
        x = torch.add(self.attention(x, rotary, mask, past), x, alpha=self._alpha)
        x = self.post_attention_layernorm(x)
        return torch.add(self.mlp(x), x, alpha=self._alpha)


class ChatGLMModel(nn.Module):
    """Holds embedding, layers and final norm under their official names."""

    def __init__(
        self,
        config: ChatGLMConfig,
        make_linear: LinearFactory,
        word_embeddings: DenseEmbedding | QuantizedEmbedding,
        *,
        half_tables: bool,
    ) -> None:
        super().__init__()
        self.word_embeddings = word_embeddings
        self.rotary_emb = RotaryEmbedding(config.head_dim // 2, half_tables=half_tables)
        self.layers = nn.ModuleList(
            GLMBlock(config, i, f"transformer.layers.{i}", make_linear) for i in range(config.num_layers)
        )
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)


class ChatGLMForConditionalGeneration(Model):
    """The language model; its head is the embedding matrix, unless an adapter has parted the two."""

    config: ChatGLMConfig
    transformer: ChatGLMModel

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
        self.own_head: nn.Module | None = None

    @property
    def embedding(self) -> DenseEmbedding | QuantizedEmbedding:
        """As of ``Model``."""
        return self.transformer.word_embeddings

    @property
    def layers(self) -> Iterable[Layer]:
        """As of ``Model``."""
        return self.transformer.layers  # type: ignore[return-value]

    @property
    def norm(self) -> nn.Module:
        """As of ``Model``."""
        return self.transformer.final_layernorm

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Of positions (B, 2, T), as ``apply_rotary_pos_emb_index`` takes it."""
        return self.transformer.rotary_emb(positions.transpose(1, 2)[:, :, None])

    def head(self, x: Tensor) -> Tensor:
        """As of ``Model``."""
        head = self.embedding if self.own_head is None else self.own_head
        return head.project(x)  # type: ignore[operator]

    def replace_embedding(self, embedding: DenseEmbedding) -> None:
        """As of ``Model``."""
        self.own_head = self.embedding if self.own_head is None else self.own_head
        self.transformer.word_embeddings = embedding

    def replace_head(self, head: nn.Module) -> None:
        """As of ``Model``."""
        self.own_head = head

    def positions(self, token_ids: list[int]) -> Positions:
        """Token and block positions.

        The context ends before the first ``<sop>``. From there on, every token position is that of the first
        [gMASK], else of the first [MASK], and block positions count from 1. A sequence without mask token or
        without ``<sop>`` is context throughout.
        """
        config, length = self.config, len(token_ids)
        context_length = token_ids.index(config.bos_token_id) if config.bos_token_id in token_ids else length
        mask_id = config.gmask_token_id if config.gmask_token_id in token_ids else config.mask_token_id
        mask_position = token_ids.index(mask_id) if mask_id in token_ids else context_length
        num_after = length - context_length
        ids = [
            [*range(context_length), *[mask_position] * num_after],
            [*[0] * context_length, *range(1, num_after + 1)],
        ]
        return Positions(ids, [mask_position if num_after else context_length, num_after + 1], context_length)
