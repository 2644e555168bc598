"""Names of tensors: what training programs add to the official ones, and what tells another kind of checkpoint."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

from glm_int4.checkpoint.formats import layout
from glm_int4.models.config import Config

PREFIX_STEM = "transformer.prefix_encoder."  # a P-Tuning prefix that was saved with its model

# Modules that programs put around others, by the name that this adds. The last two stand in front of everything.
_WRAPPERS = {
    "module": "data-parallel training",
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "base_layer": "peft",
    "original_module": "peft",
    "base_model": "peft",
    "model": "peft or a training framework",
}
_IN_FRONT = ("base_model", "model")
_PREFIX_PARTS = ("embedding.weight", "trans.0.weight", "trans.0.bias", "trans.2.weight", "trans.2.bias")
_STORED_PARTS = ("weight", "bias", "weight_scale", "weight_packed", "weight_shape", "weight_zero_point")

_BITSANDBYTES = "bitsandbytes quantized these weights: take the half-precision checkpoint, and glm-int4 quantize"
_GPTQ = "these are weights of GPTQ or AWQ: take the half-precision checkpoint, and glm-int4 quantize"
# Names that no ChatGLM has: where the checkpoint comes from, and what to do with it.
_FOREIGN = (
    (
        r"(^|\.)lora_(A|B|embedding_A|embedding_B|magnitude_vector)(\.|$)",
        "these are LoRA weights: merge them into the model first (peft: merge_and_unload), then save that",
    ),
    (
        r"(^|\.)modules_to_save\.",
        "peft trained these modules: merge them into the model first (merge_and_unload), then save that",
    ),
    (r"\.(SCB|weight_format)$", _BITSANDBYTES),
    (r"\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__\w+)$", _BITSANDBYTES),
    (r"\.(qweight|qzeros|g_idx)$", _GPTQ),
    (r"^base_model\.", "peft saved this model: merge_and_unload it first, then save the result"),
    (r"^(module|model|_orig_mod)\.", "a training framework renamed some tensors: save with its module unwrapped"),
    (r"^(v_head|reward_head|rm_head)\.", "an extra head belongs to a reward model: save the language model alone"),
    (r"^(score|classifier)\.", "an extra head belongs to a classifier: save the language model alone"),
    (r"^lm_head\.", "ChatGLM's head is a matrix alone: save the language model alone"),
)
_QUANTIZED = (_BITSANDBYTES, _GPTQ)


def official_names(names: Collection[str], config: Config) -> dict[str, str]:
    """Official names of tensors that a training program has renamed, or saved under another name of the same tensor.

    Args:
        names: as stored.
    Returns:
        Stored name to official name, of those that differ. A name that could be another's too is left out.
    """
    known = set(_official(config))
    renamed = {name: official for name in names if name not in known and (official := _plain(name)) in known}
    tied, embedding = layout.tied_head(config), layout.embedding(config).name
    if tied is not None:  # safetensors keeps one name of a shared tensor, not always the embedding's
        current = {renamed.get(name, name): name for name in names}
        heads = {part: current.get(f"{tied}.{part}") for part in _STORED_PARTS}
        if not any(f"{embedding}.{part}" in current for part in _STORED_PARTS):
            renamed |= {name: f"{embedding}.{part}" for part, name in heads.items() if name is not None}
    wanted = Counter(renamed.get(name, name) for name in names)
    return {name: official for name, official in renamed.items() if wanted[official] == 1}


def added_parts(renamed: Mapping[str, str]) -> list[str]:
    """What was taken off names, and what had put it there, in words."""
    found = {part for name, official in renamed.items() for part in set(name.split(".")) - set(official.split("."))}
    return [f"{part} ({_WRAPPERS[part]})" for part in _WRAPPERS if part in found]


def advice(names: Iterable[str]) -> str | None:
    """What to do about tensors that no ChatGLM has; None where nothing tells where they come from."""
    names = list(names)
    return next((what for sign, what in _FOREIGN if any(re.search(sign, name) for name in names)), None)


def other_quantization(names: Iterable[str]) -> str | None:
    """What to do about weights that another program has quantized; None where there are none."""
    found = advice(names)
    return found if found in _QUANTIZED else None


def _official(config: Config) -> Iterator[str]:
    """Every name that an official checkpoint, or one of ours, may hold."""
    tied = layout.tied_head(config)
    for name in (*layout.matrices(config), *([tied] if tied else [])):
        yield from (f"{name}.{part}" for part in _STORED_PARTS)
    yield from layout.vectors(config)
    yield from (PREFIX_STEM + name for name in _PREFIX_PARTS)


def _plain(name: str) -> str:
    """A name without what wrappers add, and with the ``transformer.`` that the inner model alone leaves out."""
    parts = name.split(".")
    while parts and parts[0] in _WRAPPERS:
        parts.pop(0)
    plain = [part for part in parts if part in _IN_FRONT or part not in _WRAPPERS]
    return ".".join(plain if plain[:1] in (["transformer"], ["lm_head"]) else ["transformer", *plain])
