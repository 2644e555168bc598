"""Names and shapes of what a ChatGLM checkpoint holds, version by version."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from glm_int4.models.config import Config


@dataclass(frozen=True, slots=True)
class MatrixSpec:
    """A matrix (N, K) that can be quantized. ``kind`` names its role, for reports."""

    name: str
    kind: str
    out_features: int
    in_features: int


def embedding(config: Config) -> MatrixSpec:
    """The embedding; in version 1 it is the head too."""
    kind = "embedding + head" if config.has_tied_head else "embedding"
    return MatrixSpec(config.embedding_name, kind, config.vocab_size, config.hidden_size)


def vocabulary(config: Config) -> list[MatrixSpec]:
    """The matrices with a row for every token: the embedding and, where it is another matrix, the head."""
    if config.has_tied_head:
        return [embedding(config)]
    return [embedding(config), MatrixSpec("transformer.output_layer", "head", config.vocab_size, config.hidden_size)]


def linears(config: Config) -> Iterator[MatrixSpec]:
    """The linear layers, four a layer of the network, in the order of the network."""
    hidden, ffn = config.hidden_size, config.ffn_size
    for i in range(config.num_layers):
        prefix, attention = f"{config.stack_name}.layers.{i}", config.attention_name
        yield MatrixSpec(f"{prefix}.{attention}.query_key_value", "query_key_value", config.qkv_features, hidden)
        yield MatrixSpec(f"{prefix}.{attention}.dense", "dense", hidden, hidden)
        yield MatrixSpec(f"{prefix}.mlp.dense_h_to_4h", "dense_h_to_4h", config.up_features, hidden)
        yield MatrixSpec(f"{prefix}.mlp.dense_4h_to_h", "dense_4h_to_h", hidden, ffn)


def matrices(config: Config) -> dict[str, MatrixSpec]:
    """All matrices by name, those of the vocabulary first."""
    return {matrix.name: matrix for matrix in (*vocabulary(config), *linears(config))}


def vectors(config: Config) -> dict[str, tuple[int, ...]]:
    """Norms and biases: everything that stays unquantized."""
    stem, norm_parts = config.stack_name, ("weight",) if config.has_rms_norm else ("weight", "bias")
    norms = [f"{stem}.layers.{i}.{n}" for i in range(config.num_layers) for n in config.layer_norms]
    shapes: dict[str, tuple[int, ...]] = {}
    for norm in (*norms, f"{stem}.final_layernorm"):
        for part in norm_parts:
            shapes[f"{norm}.{part}"] = (config.hidden_size,)
    for matrix in linears(config):
        if matrix.kind in config.biased_linears:
            shapes[f"{matrix.name}.bias"] = (matrix.out_features,)
    return shapes


def tied_head(config: Config) -> str | None:
    """Name of a stored matrix that equals the embedding and is ignored: version 1's head."""
    return "lm_head" if config.has_tied_head else None


def num_parameters(config: Config) -> int:
    """Number of parameters, a tied matrix counted once."""
    weights = sum(m.out_features * m.in_features for m in matrices(config).values())
    return weights + sum(math.prod(shape) for shape in vectors(config).values())
