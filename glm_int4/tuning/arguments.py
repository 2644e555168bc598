"""The arguments of a training run, under their official names and with their official defaults."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any

from glm_int4.errors import InputError

logger = logging.getLogger(__name__)

# Of the official code, where they are no arguments.
PREFIX_DROPOUT = 0.1
MAX_GRAD_NORM = 1.0
_TARGET_LENGTHS = {"1": 64, "2": 128, "3": 128, "4": 128}

# Arguments that are whole numbers, and their least values.
_WHOLE_NUMBERS = {
    "pre_seq_len": 1,
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
_FIXED = (
    "pre_seq_len",
    "prefix_projection",
    "max_source_length",
    "max_target_length",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "seed",
)

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
class PTuneSettings:
    """How a prefix is trained.

    pre_seq_len, prefix_projection: of the encoder. max_source_length, max_target_length: tokens of a
    question and of an answer; None for the version's official target length, 64 or 128. learning_rate: rises
    over ``warmup_steps``, then falls linearly to 0 at ``max_steps``. A step takes
    ``per_device_train_batch_size * gradient_accumulation_steps`` samples. gradient_checkpointing: compute
    activations anew in the backward pass, which takes less memory and more time.
    """

    pre_seq_len: int = 128
    prefix_projection: bool = False
    max_source_length: int = 64
    max_target_length: int | None = None
    learning_rate: float = 2e-2
    per_device_train_batch_size: int = 1
    gradient_accumulation_steps: int = 16
    max_steps: int = 3000
    warmup_steps: int = 0
    logging_steps: int = 10
    save_steps: int = 1000
    seed: int = 42
    gradient_checkpointing: bool = True

    def __post_init__(self) -> None:
        rate: Any = self.learning_rate
        if not isinstance(rate, Real) or isinstance(rate, bool) or not 0 < float(rate) < 1e3:
            raise InputError(f"expected a learning_rate above 0, up to 1000, got {rate!r}")
        for name, value in asdict(self).items():
            if name in _WHOLE_NUMBERS and not (name == "max_target_length" and value is None):
                least = _WHOLE_NUMBERS[name]
                if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
                    raise InputError(f"expected {name} to be a whole number from {least} on, got {value!r}")

    @classmethod
    def from_official(cls, arguments: Mapping[str, Any]) -> "PTuneSettings":
        """The settings that official arguments ask for; those that have no meaning here are ignored, and it says so."""
        ignored = [name for name in arguments if name in _DECIDED]
        if ignored:
            logger.warning("ignoring %s: the checkpoint and the evaluation file decide that", ", ".join(ignored))
        chosen = {name: value for name, value in arguments.items() if name not in _DECIDED}
        unknown = [name for name in chosen if name not in cls.__dataclass_fields__]
        if unknown:
            known = ", ".join(cls.__dataclass_fields__)
            raise InputError(f"expected arguments among {known}, got {unknown[0]}")
        return cls(**chosen)

    def target_length(self, version: str) -> int:
        """``max_target_length``, or the official one of a model version."""
        return self.max_target_length or _TARGET_LENGTHS[version]

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * step / self.warmup_steps
        return self.learning_rate * max(self.max_steps - step, 0) / max(self.max_steps - self.warmup_steps, 1)

    def check_resumed(self, saved: Mapping[str, Any]) -> None:
        """Raise InputError where a run that is resumed was begun with other arguments."""
        for name in _FIXED:
            if saved.get(name) != getattr(self, name):
                raise InputError(
                    f"expected {name} {saved.get(name)} to resume the run as it was begun, got {getattr(self, name)}; "
                    "give the same arguments, or another output"
                )
