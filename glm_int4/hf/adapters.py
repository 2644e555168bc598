"""Adapters of peft: what keeps one from being left out in silence.

peft finds layers by the ends of their names, and a tensor of an adapter by its whole name. What it does not find it
mentions in a warning, or not at all, and the model answers as if there were no adapter.
"""

import re
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from glm_int4.errors import CheckpointError, InputError

# Where peft puts a model inside its own: in front of the names of the model's tensors.
_PEFT_STEM = "base_model.model."
_LORA = re.compile(r"\.lora_\w+\.(.+)")


class PackedWeights:
    """What transformers asks of the program that quantized a model: adapters on packed weights can be trained."""

    is_trainable = True
    is_qat_trainable = is_compileable = False
    quantization_config = SimpleNamespace(quant_method="glm-int4")

    def dequantize(self, *args: Any, **kwargs: Any) -> None:
        """Refused: the unquantized weights are no longer there.

        Raises:
            InputError: always.
        """
        raise InputError("expected weights to stay packed, got dequantize(); load the unquantized checkpoint")


def check_adapter_tensors(
    module: nn.Module,
    state_dict: dict[str, Tensor],
    prefix: str,
    local_metadata: Any,
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Hook of ``load_state_dict``: every tensor of an adapter has its place, and no tensor of it is missing.

    Raises:
        CheckpointError: it is another model's adapter, or half of one.
    """
    if not prefix.endswith(_PEFT_STEM):
        return
    own = {prefix + name for name in module.state_dict()}
    got = {name for name in state_dict if name.startswith(prefix)}
    check_names([name.removeprefix(prefix) for name in sorted(got - own)], "a place in this model")
    if not got:
        raise CheckpointError("expected an adapter with tensors for this model, got none; is it another model's?")
    kinds = {_kind(name) for name in got}
    check_missing(name.removeprefix(prefix) for name in own - got if _kind(name) in kinds)


def check_names(strange: Iterable[str], wanted: str) -> None:
    """Raise CheckpointError for tensors of an adapter that have no place in a model."""
    if names := list(strange):
        raise CheckpointError(
            f"expected {wanted} for every tensor of the adapter, got {len(names)} without one ({names[0]}); "
            "use an adapter of the same model and version, with its names unchanged"
        )


def check_missing(missing: Iterable[str]) -> None:
    """Raise CheckpointError for tensors that an adapter should have."""
    if names := sorted(missing):
        raise CheckpointError(
            f"expected all tensors of the adapter, got none for {len(names)} of them ({names[0]}); "
            "take adapter_config.json and the weights from the same training"
        )


def _kind(name: str) -> str:
    """What a tensor's name shares with all others of its adapter, or at least with those of its kind."""
    if match := _LORA.search(name):
        return match[1]  # the adapter's name and "weight"
    return ".".join(part for part in name.split(".") if not part.isdigit())


def count_modules(module: nn.Module) -> int:
    """How many modules a network has; an adapter adds some."""
    return sum(1 for _ in module.modules())


def refuse_with_adapter(module: nn.Module, num_modules: int, what: str, advice: str) -> None:
    """Raise InputError where an adapter has joined a network of ``num_modules``."""
    if count_modules(module) != num_modules:
        raise InputError(f"expected a model without an adapter {what}, got one with it; {advice}")
