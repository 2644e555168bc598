"""Names, shapes and dtypes of a ChatGLM-6B (v1) checkpoint, official and quantized by us."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from glm_int4.models.config import ChatGLMConfig

EMBEDDING = "transformer.word_embeddings"
HEAD = "lm_head.weight"  # stored by the official files, equal to the embedding and ignored

_NORMS = ("input_layernorm", "post_attention_layernorm")


@dataclass(frozen=True, slots=True)
class MatrixSpec:
    """A matrix (N, K) that can be quantized. ``kind`` names its role, for reports."""

    name: str
    kind: str
    out_features: int
    in_features: int


def linears(config: ChatGLMConfig) -> Iterator[MatrixSpec]:
    """The linear layers, in the order of the network."""
    hidden, ffn = config.hidden_size, config.ffn_size
    for i in range(config.num_layers):
        prefix = f"transformer.layers.{i}"
        yield MatrixSpec(f"{prefix}.attention.query_key_value", "query_key_value", 3 * hidden, hidden)
        yield MatrixSpec(f"{prefix}.attention.dense", "dense", hidden, hidden)
        yield MatrixSpec(f"{prefix}.mlp.dense_h_to_4h", "dense_h_to_4h", ffn, hidden)
        yield MatrixSpec(f"{prefix}.mlp.dense_4h_to_h", "dense_4h_to_h", hidden, ffn)


def embedding(config: ChatGLMConfig) -> MatrixSpec:
    """The embedding, which is also the head."""
    return MatrixSpec(EMBEDDING, "embedding + head", config.vocab_size, config.hidden_size)


def vectors(config: ChatGLMConfig) -> dict[str, tuple[int, ...]]:
    """Norms and biases: everything that stays unquantized."""
    shapes: dict[str, tuple[int, ...]] = {}
    norms = [f"transformer.layers.{i}.{n}" for i in range(config.num_layers) for n in _NORMS]
    for norm in (*norms, "transformer.final_layernorm"):
        shapes[f"{norm}.weight"] = shapes[f"{norm}.bias"] = (config.hidden_size,)
    for matrix in linears(config):
        shapes[f"{matrix.name}.bias"] = (matrix.out_features,)
    return shapes


def num_parameters(config: ChatGLMConfig) -> int:
    """Number of parameters, the tied matrix counted once."""
    matrices = [embedding(config), *linears(config)]
    return sum(m.out_features * m.in_features for m in matrices) + sum(math.prod(s) for s in vectors(config).values())
