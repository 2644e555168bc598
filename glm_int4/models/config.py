"""What a network looks like: its sizes, which ``config.json`` tells, and what a version fixes."""

import math
from dataclasses import dataclass, field

_LAYER_NORMS = ("input_layernorm", "post_attention_layernorm")
OUTPUT_NORMS = ("post_self_attn_layernorm", "post_mlp_layernorm")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatGLMConfig:
    """Shape and special tokens of a ChatGLM-6B (v1) model. Sizes are counts of elements.

    head_dim, num_kv_heads: keys and values have as many heads as queries. For what a version fixes, see
    ``Config``.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    head_dim: int = field(init=False, repr=False)
    num_kv_heads: int = field(init=False, repr=False)
    ffn_size: int
    vocab_size: int
    max_sequence_length: int
    layernorm_epsilon: float
    bos_token_id: int
    eos_token_id: int
    mask_token_id: int
    gmask_token_id: int
    pad_token_id: int

    version = "1"
    model_name = "ChatGLM-6B"
    tokenizer_file = "ice_text.model"
    is_causal = False
    position_kinds = 2
    # The official GLMBlock is always built with its default of 28 layers, whatever the config says.
    residual_alpha = math.sqrt(2 * 28)
    residual_is_normed = True
    activation = "gelu"
    has_rms_norm = False
    has_tied_head = True
    stack_name, attention_name = "transformer", "attention"
    embedding_name = "transformer.word_embeddings"
    biased_linears = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
    hidden_states_end_normed = True
    has_wide_prefix = False
    layer_norms = _LAYER_NORMS

    position_divisor = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "head_dim", self.hidden_size // self.num_heads)
        object.__setattr__(self, "num_kv_heads", self.num_heads)

    @property
    def qkv_features(self) -> int:
        """Outputs of query_key_value: queries, keys and values of all heads."""
        return 3 * self.hidden_size

    @property
    def up_features(self) -> int:
        """Outputs of dense_h_to_4h."""
        return self.ffn_size

    @property
    def special_ids(self) -> dict[str, int]:
        """Ids that the tokenizer must have too, by its own names for them."""
        return {
            "eos_id": self.eos_token_id,
            "gmask_id": self.gmask_token_id,
            "mask_id": self.mask_token_id,
            "bos_id": self.bos_token_id,
        }

    @property
    def text_prefix_ids(self) -> list[int] | None:
        """The ids in front of a text that the model continues; None where only the tokenizer knows them."""
        return [self.gmask_token_id, self.bos_token_id]

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The ids that end an answer; none where the tokenizer decides."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatGLM2Config:
    """Shape of a ChatGLM2-6B or ChatGLM3-6B model. Sizes are counts of elements.

    version: "2" or "3", which differ in the rotary tables and in the prompt; ``GLM4Config`` is "4".
    head_dim: officially kv_channels. rope_ratio: of the 32k models; divides positions in version 2, multiplies the
    rotary base in version 3.
    """

    version: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    vocab_size: int
    max_sequence_length: int
    layernorm_epsilon: float
    eos_token_id: int
    pad_token_id: int
    rope_ratio: float = 1.0

    model_name = "ChatGLM2-6B or ChatGLM3-6B"
    tokenizer_file = "tokenizer.model"
    is_causal = True
    position_kinds = 1
    residual_alpha = 1.0
    residual_is_normed = False
    activation = "swiglu"
    has_rms_norm = True
    has_tied_head = False
    stack_name, attention_name = "transformer.encoder", "self_attention"
    embedding_name = "transformer.embedding.word_embeddings"
    biased_linears = ("query_key_value",)
    hidden_states_end_normed = False
    has_wide_prefix = True

    @property
    def layer_norms(self) -> tuple[str, ...]:
        """As of ``ChatGLMConfig``: names of the norms of a layer."""
        return _LAYER_NORMS

    @property
    def qkv_features(self) -> int:
        """Outputs of query_key_value: queries, keys and values of all heads."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def up_features(self) -> int:
        """Outputs of dense_h_to_4h: gate and value."""
        return 2 * self.ffn_size

    @property
    def rotary_base_factor(self) -> float:
        """Of the rotary base. The 32k models stretch the angles in two ways under the same key."""
        return self.rope_ratio if self.version == "3" else 1.0

    @property
    def position_divisor(self) -> float:
        """Of token positions in the rotary angles."""
        return self.rope_ratio if self.version == "2" else 1.0

    @property
    def has_half_rotary(self) -> bool:
        """Whether a model in half precision computes its rotary angles in float16 too."""
        return self.version == "2"

    @property
    def special_ids(self) -> dict[str, int]:
        """As of ``ChatGLMConfig``."""
        return {"eos_id": self.eos_token_id}

    @property
    def text_prefix_ids(self) -> list[int] | None:
        """As of ``ChatGLMConfig``."""
        return None

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """As of ``ChatGLMConfig``."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GLM4Config(ChatGLM2Config):
    """Shape of a GLM-4-9B model: ChatGLM3's network, deeper, with another vocabulary.

    stop_token_ids: the ids that end an answer, of a list in config.json; none leaves it to the tokenizer.
    has_output_norms: GLM-4-0414's layers have two more norms, of what attention and feed-forward give.
    """

    version: str = "4"
    stop_token_ids: tuple[int, ...] = ()
    has_output_norms: bool = False

    model_name = "GLM-4-9B"

    @property
    def layer_norms(self) -> tuple[str, ...]:
        """As of ``ChatGLM2Config``, and those of what attention and feed-forward give."""
        return (*_LAYER_NORMS, *OUTPUT_NORMS) if self.has_output_norms else _LAYER_NORMS

    @property
    def rotary_base_factor(self) -> float:
        """Of the rotary base."""
        return self.rope_ratio

    @property
    def special_ids(self) -> dict[str, int]:
        """None: the ids that end an answer are any of the tokenizer's."""
        return {}


# What a version fixes, beside its sizes:
# model_name, tokenizer_file: as published.
# is_causal: no token sees a later one. position_kinds: positions that a token has.
# residual_alpha: factor of the residual, which is the normalized input (residual_is_normed) or the input itself.
# activation: "gelu", or "swiglu", whose first half of inputs is the gate. has_rms_norm: else LayerNorm with a bias.
# has_tied_head: the head is the embedding.
# stack_name, attention_name, embedding_name: official names of what holds the layers, of a layer's attention, of the
# embedding. biased_linears: kinds of linears that have a bias.
# hidden_states_end_normed: of all hidden states, the official code gives the last one behind the final norm.
# layer_norms: official names of the norms of a layer.
# has_wide_prefix: the MLP of a P-Tuning prefix takes embeddings as wide as all keys and values, not as hidden_size.
Config = ChatGLMConfig | ChatGLM2Config
