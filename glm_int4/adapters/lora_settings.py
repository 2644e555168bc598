"""What ``adapter_config.json`` says of a LoRA adapter, or of a prefix; what is not known here is refused."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm_int4.adapters import target_modules
from glm_int4.adapters.adapter_file import CONFIG_FILE
from glm_int4.downloads import read_json, shown, shown_name
from glm_int4.errors import ConfigError

LORA, PREFIX_TUNING = "LORA", "PREFIX_TUNING"

MOST_RANK = 1 << 14

# Keys that were for training, or tell where an adapter comes from: no answer depends on them.
_IGNORED = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "fan_in_fan_out", "inference_mode",
    "loftq_config", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core", "peft_type", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "task_type",
}  # fmt: skip
_LORA_KEYS = {
    "alpha_pattern", "bias", "exclude_modules", "init_lora_weights", "layers_pattern", "layers_to_transform",
    "lora_alpha", "modules_to_save", "r", "rank_pattern", "target_modules", "use_dora", "use_rslora",
}  # fmt: skip
_PREFIX_KEYS = {
    "encoder_hidden_size", "init_weights", "num_attention_heads", "num_layers", "num_transformer_submodules",
    "num_virtual_tokens", "prefix_projection", "token_dim",
}  # fmt: skip

# Ways to begin a training that leave the base as it is. The others subtract their beginning from the base's weights.
_PLAIN_BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal")
_BIASES = ("none", "all", "lora_only")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """Settings of a LoRA adapter, in peft's words.

    target_modules: ends of paths, or a regular expression over whole paths, or "all-linear". layers_to_transform: None
    for all. bias: "none", "lora_only" or "all": whose biases it replaces. modules_to_save: those it replaces whole.
    base: the model that it was trained on, "" where it does not say.
    """

    path: Path
    r: int
    lora_alpha: float
    rank_pattern: dict[str, float]
    alpha_pattern: dict[str, float]
    target_modules: list[str] | str
    exclude_modules: list[str] | str
    layers_to_transform: list[int] | None
    layers_pattern: list[str]
    use_rslora: bool
    use_dora: bool
    bias: str
    modules_to_save: list[str]
    base: str

    def targets(self, path: str) -> bool:
        """Whether a linear layer is adapted."""
        if self.exclude_modules and target_modules.matches(self.exclude_modules, path):
            return False
        if self.saves(path):
            return False
        if self.target_modules == target_modules.ALL_LINEAR:
            return True
        if not target_modules.matches(self.target_modules, path):
            return False
        if self.layers_to_transform is None or isinstance(self.target_modules, str):
            return True
        return target_modules.layer_of(path, self.layers_pattern) in self.layers_to_transform

    def saves(self, path: str) -> bool:
        """Whether a module is replaced whole."""
        return target_modules.matches(self.modules_to_save, path)

    def rank(self, path: str) -> int:
        """The rank of a layer's adapter."""
        return int(target_modules.keyed(self.rank_pattern, path, self.r))

    def scale(self, path: str) -> float:
        """The factor of a layer's product."""
        rank = self.rank(path)
        alpha = target_modules.keyed(self.alpha_pattern, path, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixSettings:
    """Settings of a prefix: how many columns it has, and the model that it was trained on."""

    path: Path
    num_virtual_tokens: int
    base: str


def read_settings(folder: Path) -> LoraSettings | PrefixSettings:
    """Read the settings in an adapter's folder.

    Raises:
        ConfigError: it is no JSON, or asks for what is not supported.
    """
    path = folder / CONFIG_FILE
    raw = read_json(path, ConfigError)
    kind = raw.get("peft_type")
    if kind not in (LORA, PREFIX_TUNING):
        raise ConfigError(
            f"expected peft_type {LORA} or {PREFIX_TUNING} in {path}, got {shown(kind)}; "
            "other kinds of adapters are not supported: merge it into its model with peft (merge_and_unload) first"
        )
    known = _IGNORED | (_LORA_KEYS if kind == LORA else _PREFIX_KEYS)
    for key, value in raw.items():
        if key not in known and value not in (None, False, {}, [], ""):
            raise ConfigError(
                f"expected settings of {kind} that are supported in {path}, got {shown_name(key)} = {shown(value)}; "
                "merge it into its model with peft (merge_and_unload) first"
            )
    read = _Reader(path, raw)
    base = raw.get("base_model_name_or_path")
    base = base if isinstance(base, str) else ""
    if kind == PREFIX_TUNING:
        if raw.get("num_transformer_submodules") not in (None, 1):
            read.refuse("num_transformer_submodules", "1")
        return PrefixSettings(path=path, num_virtual_tokens=int(read.number("num_virtual_tokens", 1)), base=base)
    return _lora(read, base)


def _lora(read: "_Reader", base: str) -> LoraSettings:
    raw = read.raw
    if raw.get("bias", "none") not in _BIASES:
        read.refuse("bias", " or ".join(_BIASES))
    if raw.get("init_lora_weights") not in _PLAIN_BEGINNINGS:
        read.refuse(
            "init_lora_weights",
            "a beginning that leaves the base model as it is",
            "let peft convert it: save_pretrained(..., path_initial_model_for_weight_conversion=...)",
        )
    ranks, alphas = read.pattern("rank_pattern"), read.pattern("alpha_pattern")
    for value in [raw.get("r"), *ranks.values()]:
        if type(value) is not int or not 1 <= value <= MOST_RANK:
            raise ConfigError(
                f"expected ranks from 1 to {MOST_RANK} in {read.path}, got {shown(value)}; is this a trained adapter?"
            )
    layers = raw.get("layers_to_transform")
    if isinstance(layers, int):
        layers = [layers]
    if layers is not None and not (isinstance(layers, list) and all(type(layer) is int for layer in layers)):
        read.refuse("layers_to_transform", "numbers of layers")
    wanted = read.names("target_modules", allow_text=True) or ["query_key_value"]  # peft's default for ChatGLM
    return LoraSettings(
        path=read.path,
        r=raw["r"],
        lora_alpha=read.number("lora_alpha"),
        rank_pattern=ranks,
        alpha_pattern=alphas,
        target_modules=wanted,
        exclude_modules=read.names("exclude_modules", allow_text=True),
        layers_to_transform=layers or None,
        layers_pattern=read.layer_patterns(),
        use_rslora=read.flag("use_rslora"),
        use_dora=read.flag("use_dora"),
        bias=raw.get("bias") or "none",
        modules_to_save=list(read.names("modules_to_save")),
        base=base,
    )


class _Reader:
    """Values of a config, each of the type that it should have."""

    def __init__(self, path: Path, raw: Mapping[str, Any]) -> None:
        self.path, self.raw = path, raw

    def refuse(self, key: str, expected: str, advice: str = "download it again") -> None:
        """Raise ConfigError about a key's value."""
        raise ConfigError(f"expected {expected} as {key} in {self.path}, got {shown(self.raw.get(key))}; {advice}")

    def number(self, key: str, least: float = -math.inf) -> float:
        """A finite number."""
        value = self.raw.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= 1e9:
            self.refuse(key, "a number")
        assert isinstance(value, int | float)
        return value

    def flag(self, key: str) -> bool:
        """True or False; None is False."""
        value = self.raw.get(key)
        if not isinstance(value, bool | None):
            self.refuse(key, "true or false")
        return bool(value)

    def names(self, key: str, allow_text: bool = False) -> list[str] | str:
        """A list of names; or a regular expression, or "all-linear". Empty where there is none."""
        value = self.raw.get(key)
        if isinstance(value, str) and value and allow_text:
            if value != target_modules.ALL_LINEAR:
                target_modules.check_pattern(value, key, self.path)
            return value
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
            self.refuse(key, "a list of modules' names")
        assert isinstance(value, list)
        return value

    def layer_patterns(self) -> list[str]:
        """Names of the list of layers, which are regular expressions."""
        value = self.raw.get("layers_pattern")
        patterns = [value] if isinstance(value, str) else self.names("layers_pattern")
        for pattern in patterns:
            target_modules.check_pattern(pattern, "layers_pattern", self.path)
        return [pattern for pattern in patterns if pattern]

    def pattern(self, key: str) -> dict[str, float]:
        """Numbers by regular expressions."""
        value = self.raw.get(key) or {}
        if not isinstance(value, dict) or not all(
            isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
            for number in value.values()
        ):
            self.refuse(key, "numbers by modules' names")
        for pattern in value:
            target_modules.check_pattern(pattern, key, self.path)
        return dict(value)
