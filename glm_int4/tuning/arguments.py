"""The arguments of a training run, under their official names and with their official defaults."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any, ClassVar, Self

from glm_int4.adapters.lora_settings import MOST_RANK
from glm_int4.errors import InputError
from glm_int4.models.config import Config

logger = logging.getLogger(__name__)

# Of the official code, where they are no arguments.
PREFIX_DROPOUT = 0.1
MAX_GRAD_NORM = 1.0
_TARGET_LENGTHS = {"1": 64, "2": 128, "3": 128, "4": 128}
_LORA_TARGET_LENGTH = 512

# What the official scripts say as well, and what decides it here: the checkpoint, or that it is always so.
_DECIDED = (
    "do_train",
    "overwrite_cache",
    "per_device_eval_batch_size",
    "predict_with_generate",
    "preprocessing_num_workers",
    "quantization_bit",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings(ABC):
    """What every method has.

    max_source_length, max_target_length: most tokens of a question and of an answer; a conversation has the sum of
    both, and one. learning_rate: rises over ``warmup_steps``, then falls linearly to 0 at ``max_steps``. A step takes
    ``per_device_train_batch_size * gradient_accumulation_steps`` samples. gradient_checkpointing: compute activations
    anew in the backward pass, which takes less memory and more time.
    """

    method: ClassVar[str]
    # Arguments that are whole numbers, and their least values.
    whole_numbers: ClassVar[dict[str, int]] = {
        "max_source_length": 3,
        "max_target_length": 3,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "max_steps": 1,
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_steps": 1,
        "seed": 0,
    }
    # What must stay the same when a run is resumed, or its losses would be others.
    fixed: ClassVar[tuple[str, ...]] = (
        "max_source_length",
        "max_target_length",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "seed",
    )

    max_source_length: int
    max_target_length: int | None
    learning_rate: float
    per_device_train_batch_size: int = 1
    gradient_accumulation_steps: int
    max_steps: int = 3000
    warmup_steps: int = 0
    logging_steps: int = 10
    save_steps: int
    seed: int = 42
    gradient_checkpointing: bool = True

    def __post_init__(self) -> None:
        rate: Any = self.learning_rate
        if not isinstance(rate, Real) or isinstance(rate, bool) or not 0 < float(rate) < 1e3:
            raise InputError(f"expected a learning_rate above 0, up to 1000, got {rate!r}")
        for name, value in asdict(self).items():
            if name in self.whole_numbers and not (name == "max_target_length" and value is None):
                least = self.whole_numbers[name]
                if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
                    raise InputError(f"expected {name} to be a whole number from {least} on, got {value!r}")

    @classmethod
    def from_official(cls, arguments: Mapping[str, Any]) -> Self:
        """The settings that official arguments ask for; those that have no meaning here are ignored, and it says so."""
        ignored = [name for name in arguments if name in _DECIDED]
        if ignored:
            logger.warning("ignoring %s: the checkpoint and the evaluation file decide that", ", ".join(ignored))
        chosen = {name: value for name, value in arguments.items() if name not in _DECIDED}
        known = [field.name for field in fields(cls)]
        own = [name for name in known if name not in TrainingSettings.__dataclass_fields__]
        unknown = [name for name in chosen if name not in known]
        if unknown:
            ordered = ", ".join([*own, *(name for name in known if name not in own)])
            raise InputError(f"expected arguments among {ordered}, got {unknown[0]}")
        return cls(**chosen)

    @abstractmethod
    def target_length(self, config: Config) -> int:
        """``max_target_length``, or the method's official one for a model."""

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * step / self.warmup_steps
        return self.learning_rate * max(self.max_steps - step, 0) / max(self.max_steps - self.warmup_steps, 1)

    def check_resumed(self, saved: Mapping[str, Any]) -> None:
        """Raise InputError where a run that is resumed was begun with other arguments."""
        for name in self.fixed:
            said, now = saved.get(name), getattr(self, name)
            if said != now:
                raise InputError(
                    f"expected {name} {said} to resume the run as it was begun, got {now}; "
                    "give the same arguments, or another output"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class PTuneSettings(TrainingSettings):
    """How a prefix is trained; the defaults are those of the official ``ptuning/``.

    pre_seq_len, prefix_projection: of the encoder. max_target_length: None for the version's official one, 64 or 128.
    """

    method = "ptuning"
    whole_numbers = {"pre_seq_len": 1} | TrainingSettings.whole_numbers
    fixed = ("pre_seq_len", "prefix_projection", *TrainingSettings.fixed)

    pre_seq_len: int = 128
    prefix_projection: bool = False
    max_source_length: int = 64
    max_target_length: int | None = None
    learning_rate: float = 2e-2
    gradient_accumulation_steps: int = 16
    save_steps: int = 1000

    def target_length(self, config: Config) -> int:
        """As of ``TrainingSettings``."""
        return self.max_target_length or _TARGET_LENGTHS[config.version]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraTrainingSettings(TrainingSettings):
    """How a LoRA adapter is trained; the defaults are those of the official ChatGLM3 demo, a sample at a time.

    r, lora_alpha, lora_dropout, target_modules: as in peft; the last one ends of paths, or "all-linear". As one text,
    commas part them. max_target_length: None for the official 512, or what a smaller model was made for.
    """

    method = "lora"
    whole_numbers = {"r": 1} | TrainingSettings.whole_numbers
    fixed = ("r", "lora_alpha", "lora_dropout", "target_modules", *TrainingSettings.fixed)

    r: int = 8
    lora_alpha: float = 32
    lora_dropout: float = 0.1
    target_modules: str | Sequence[str] = "query_key_value"
    max_source_length: int = 256
    max_target_length: int | None = None
    learning_rate: float = 5e-5
    gradient_accumulation_steps: int = 4
    save_steps: int = 500

    def __post_init__(self) -> None:
        TrainingSettings.__post_init__(self)
        given: Any = self.target_modules
        names = given.split(",") if isinstance(given, str) else given
        if not isinstance(names, Sequence) or not all(isinstance(name, str) and name.strip() for name in names):
            raise InputError(f"expected names of linear layers as target_modules, got {given!r}")
        if not names:
            raise InputError("expected at least one of the linear layers as target_modules, got none")
        object.__setattr__(self, "target_modules", tuple(dict.fromkeys(name.strip() for name in names)))
        if self.r > MOST_RANK:
            raise InputError(f"expected r to be at most {MOST_RANK}, got {self.r}")
        for name, most in (("lora_alpha", 1e6), ("lora_dropout", 1)):
            value: Any = getattr(self, name)
            if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= float(value) < most:
                raise InputError(f"expected {name} to be a number from 0 on, below {most:g}, got {value!r}")
        if not self.lora_alpha:
            raise InputError("expected a lora_alpha above 0, or nothing would be learnt, got 0")

    def target_length(self, config: Config) -> int:
        """As of ``TrainingSettings``."""
        room = config.max_sequence_length - self.max_source_length - 1
        return self.max_target_length or max(min(_LORA_TARGET_LENGTH, room), 1)


METHODS: dict[str, type[TrainingSettings]] = {
    settings.method: settings for settings in (LoraTrainingSettings, PTuneSettings)
}


def read_settings(method: str, arguments: Mapping[str, Any]) -> TrainingSettings:
    """The settings of a method, "lora" or "ptuning".

    Raises:
        InputError: another method, or arguments that it does not know or that make no sense.
    """
    if not isinstance(method, str) or method not in METHODS:
        raise InputError(f"expected the method {' or '.join(METHODS)}, got {method!r}")
    return METHODS[method].from_official(arguments)
