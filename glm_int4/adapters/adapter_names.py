"""Names in an adapter's file: which module of a model a tensor belongs to, and as what."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from glm_int4.checkpoint.formats import layout
from glm_int4.models.config import ChatGLM2Config, ChatGLMConfig, Config

# What is stored for a module.
DOWN, UP, MAGNITUDE, WEIGHT, BIAS = "lora_A", "lora_B", "lora_magnitude_vector", "weight", "bias"

STEM = "base_model.model."  # peft has a model inside of its own
# peft's own name of the adapter, mostly "default", is left in by some programs.
_LORA = re.compile(r"(.+)\.(lora_A|lora_B)(?:\.[\w-]+)?\.weight")
_DORA = re.compile(r"(.+)\.(lora_magnitude_vector)(?:\.(?!weight$)[\w-]+)?(?:\.weight)?")
_SAVED = re.compile(r"(.+?)(?:\.base_layer|\.modules_to_save(?:\.[\w-]+)?)?\.(weight|bias)")

# Where transformers has the layers, and the head, of a model that was converted for it.
_SPLIT_STACK, _SPLIT_HEAD = "model.layers", "lm_head"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a linear layer of a trained model is in ours: rows of a matrix (N, K)."""

    matrix: str
    rows: slice
    in_features: int

    @property
    def out_features(self) -> int:
        """Rows that it has."""
        return int(self.rows.stop - self.rows.start)


def parse_name(name: str) -> tuple[str, str] | None:
    """The path of a module and what a tensor is of it; None for anything else."""
    name = name.removeprefix(STEM)
    for pattern in (_LORA, _DORA, _SAVED):
        if match := pattern.fullmatch(name):
            return match[1], match[2]
    return None


def places(config: Config, paths: Iterable[str]) -> dict[str, Place]:
    """The linear layers that may be adapted, by their paths in the model that was trained.

    Args:
        paths: of the adapter's modules; they tell which names its model had.
    """
    if config.is_causal and any(path.startswith(f"{_SPLIT_STACK}.") for path in paths):
        return _split_places(config)
    found = {m.name: Place(m.name, slice(0, m.out_features), m.in_features) for m in layout.linears(config)}
    return found | {
        m.name: Place(m.name, slice(0, m.out_features), m.in_features)
        for m in layout.vocabulary(config)
        if m.kind == "head"
    }


def _split_places(config: Config) -> dict[str, Place]:
    """As ``places``, under the names that transformers gives the parts, queries, keys and values apart."""
    found: dict[str, Place] = {}
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    for index, matrix in enumerate(layout.linears(config)):
        stem, n, k = f"{_SPLIT_STACK}.{index // 4}", matrix.out_features, matrix.in_features
        parts = {
            "query_key_value": {
                "self_attn.q_proj": slice(0, queries),
                "self_attn.k_proj": slice(queries, queries + keys),
                "self_attn.v_proj": slice(queries + keys, n),
            },
            "dense": {"self_attn.o_proj": slice(0, n)},
            "dense_h_to_4h": {"mlp.gate_up_proj": slice(0, n)},
            "dense_4h_to_h": {"mlp.down_proj": slice(0, n)},
        }[matrix.kind]
        found |= {f"{stem}.{name}": Place(matrix.name, rows, k) for name, rows in parts.items()}
    for matrix in layout.vocabulary(config):
        if matrix.kind == "head":
            found[_SPLIT_HEAD] = Place(matrix.name, slice(0, matrix.out_features), matrix.in_features)
    return found


def whole_modules(config: Config) -> dict[str, dict[str, tuple[int, ...]]]:
    """Modules that an adapter may replace whole, with the shapes of their tensors: vocabulary and norms."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for matrix in layout.vocabulary(config):
        found[matrix.name] = {WEIGHT: (matrix.out_features, matrix.in_features)}
    if tied := layout.tied_head(config):
        found[tied] = {WEIGHT: (config.vocab_size, config.hidden_size)}
    for name, shape in layout.vectors(config).items():
        path, _, part = name.rpartition(".")
        if "layernorm" in path:
            found.setdefault(path, {})[part] = shape
    return found


def whose_names(paths: Iterable[str], config: Config) -> str:
    """Which model has an adapter's modules, as far as their paths tell, and what to do."""
    paths = list(paths)
    for kind in (ChatGLMConfig, ChatGLM2Config):
        stem = f"{kind.stack_name}.layers."
        if any(path.startswith(stem) and f".{kind.attention_name}." in path for path in paths):
            if kind.is_causal == config.is_causal:
                break
            return f"these are names of {kind.model_name}, this is {config.model_name}: load the model it was made for"
    else:
        if any(path.startswith(f"{_SPLIT_STACK}.") for path in paths) and not config.is_causal:
            return f"these are names of another model, this is {config.model_name}: load the model it was made for"
    return "is it an adapter of this model, with adapter_config.json and the tensors of the same training?"
