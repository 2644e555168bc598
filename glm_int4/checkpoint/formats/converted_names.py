"""Names of the tensors of converted checkpoints (``-hf``): which of them, one below the other, make an official one."""

from collections.abc import Iterator

from glm_int4.checkpoint.formats import layout
from glm_int4.models.config import Config

# Kinds of matrices, and the modules of a layer whose rows they hold, in order.
_PARTS = {
    "query_key_value": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "dense": ("self_attn.o_proj",),
    "dense_h_to_4h": ("mlp.gate_up_proj",),
    "dense_4h_to_h": ("mlp.down_proj",),
}
_OUTSIDE = {"embedding": "model.embed_tokens", "head": "lm_head"}


def converted_parts(config: Config) -> Iterator[tuple[str, list[str]]]:
    """Yield the official name of every tensor, and the converted names of its rows."""
    for matrix in layout.vocabulary(config):
        yield f"{matrix.name}.weight", [f"{_OUTSIDE[matrix.kind]}.weight"]
    for index, matrix in enumerate(layout.linears(config)):
        layer = f"model.layers.{index // len(_PARTS)}"
        for part in ("weight", "bias") if matrix.kind in config.biased_linears else ("weight",):
            yield f"{matrix.name}.{part}", [f"{layer}.{module}.{part}" for module in _PARTS[matrix.kind]]
    for name in layout.vectors(config):
        if not name.endswith(".bias"):
            inner = name.removeprefix(f"{config.stack_name}.")
            yield name, ["model.norm.weight" if inner.startswith("final_layernorm") else f"model.{inner}"]
