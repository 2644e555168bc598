"""ChatGLM-6B with INT8 or INT4 weights, on a small GPU or a CPU alone.

``load``, ``quantize_checkpoint`` and ``finetune`` are the way in; names are imported when they are first used, so
that the command line starts quickly.
"""

from typing import TYPE_CHECKING, Any

from glm_int4.errors import GLMError, UserError
from glm_int4.version import __version__

if TYPE_CHECKING:
    from glm_int4.conversion.quantizing import quantize_checkpoint
    from glm_int4.generation.engine import Engine
    from glm_int4.generation.loading import load
    from glm_int4.generation.sampling import SamplingParams
    from glm_int4.tuning.training import finetune, ptune

__all__ = [
    "Engine",
    "GLMError",
    "SamplingParams",
    "UserError",
    "__version__",
    "finetune",
    "load",
    "ptune",
    "quantize_checkpoint",
]

_HOMES = {
    "quantize_checkpoint": "glm_int4.conversion.quantizing",
    "Engine": "glm_int4.generation.engine",
    "load": "glm_int4.generation.loading",
    "SamplingParams": "glm_int4.generation.sampling",
    "finetune": "glm_int4.tuning.training",
    "ptune": "glm_int4.tuning.training",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "tuning":
        return import_module("glm_int4.tuning")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
