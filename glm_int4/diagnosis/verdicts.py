"""What the facts of the probes mean: which of them are faults, and what cures them."""

import os
from typing import Any

from glm_int4.diagnosis.faults import Fault
from glm_int4.quantization.gpu.kernel_faults import REPORT

# float16 products err by less, integers by a tenth of it.
MOST_RELATIVE_ERROR = 1e-3
_FASTER = ("AVX2", "AVX-512 VNNI")
_NUMBA_VARIABLES = ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "ATEN_CPU_CAPABILITY")


def torch_faults(facts: dict[str, Any], installed: str | None) -> list[Fault]:
    """Faults of torch itself; ``installed`` is its version as its package says."""
    if error := facts.get("error"):
        again, first = "reinstall it: pip install --force-reinstall torch", 'install it: pip install "torch>=2.11"'
        cure = again if installed else first
        return [_fault("torch", "torch that can be imported", error, "no command that needs a model runs", cure)]
    if error := facts["loading_error"]:
        cure = "install what is missing; glm-int4 wants a virtual environment of its own"
        return [_fault("torch", "glm_int4.generation that can be imported", error, "no model can be loaded", cure)]
    return []


def gpu_faults(facts: dict[str, Any], cards: list[dict[str, str]]) -> list[Fault]:
    """GPUs that are in the machine but not used, or used but broken.

    Args:
        facts: of the probe "torch". cards: what NVIDIA's driver lists.
    """
    faults = []
    for gpu in facts.get("gpus", []):
        if error := gpu["error"]:
            what, cure = f"a product on {gpu['name']}", "install a build of torch for this GPU, or pass --device cpu"
            faults.append(_fault("gpus", what, error, "nothing runs on this GPU", cure))
    if cards and "error" not in facts and not facts["gpus"]:
        reason = facts["no_gpu_because"]
        what = f"torch to see {cards[0]['name']} (driver {cards[0]['driver']})"
        faults.append(_fault("gpus", what, f"none: {reason}", "the CPU computes", _gpu_cure(reason)))
    return faults


def _gpu_cure(reason: str) -> str:
    if "CPU build" in reason:
        return "install a CUDA build of torch, as pytorch.org says"
    if os.environ.get("CUDA_VISIBLE_DEVICES") is not None:
        return f"unset CUDA_VISIBLE_DEVICES, which is {os.environ['CUDA_VISIBLE_DEVICES']!r}"
    if "too old" in reason:
        return "update NVIDIA's driver, or install torch for an older CUDA"
    return "see what nvidia-smi says, and start the machine again after an update of its driver"


def loop_faults(facts: dict[str, Any], processor: dict[str, Any]) -> list[Fault]:
    """Faults of Numba's loops.

    Args:
        facts: of the probe "loop". processor: as ``machine.processor`` gives it.
    """
    if error := facts.get("error"):
        held = [name for name in _NUMBA_VARIABLES if os.environ.get(name)]
        cure = "reinstall it and its compiler: pip install --force-reinstall numba llvmlite"
        cure = f"unset {' and '.join(held)}" if held else cure
        return [_fault("loop", "a loop that is compiled and run", error, "commands on the CPU fail", cure)]
    slow = "the CPU computes with plain torch, which is slow, and quantizing takes long"
    if error := facts["numba_error"]:
        missing = error.startswith("ModuleNotFoundError: No module named 'numba'")
        cure = "install it: pip install numba" if missing else "reinstall it: pip install --force-reinstall numba"
        return [_fault("loop", "numba that can be imported", error, slow, cure)]
    if facts["jit_is_off"]:
        what, got = "loops that are compiled", "NUMBA_DISABLE_JIT"
        return [_fault("loop", what, got, "Python runs them, which takes for ever or fails", "unset it")]
    faults = []
    if not facts["right"] or not facts["relative_error"] <= MOST_RELATIVE_ERROR:
        got = f"a relative error of {facts['relative_error']:.2g}" if facts["right"] else "another sum"
        what = f"what plain torch gives from the compiled loops ({facts['backend']})"
        faults.append(_fault("loop", what, got, "answers on the CPU are wrong", f"reinstall numba, and {REPORT}"))
    if not facts["kept"]:
        tried = "; ".join(f"{path}: {fault or 'not loaded again'}" for path, fault in facts["code_folders"])
        what, cure = "compiled code that is kept", "make room, or set NUMBA_CACHE_DIR to a folder that can be written"
        faults.append(_fault("loop", what, f"none ({tried})", "every start compiles for some seconds", cure))
    return faults + _instruction_faults(facts, processor)


def _instruction_faults(facts: dict[str, Any], processor: dict[str, Any]) -> list[Fault]:
    if facts["backend"] == "integer":
        return []
    held = [f"{name}={os.environ[name]}" for name in _NUMBA_VARIABLES if os.environ.get(name)]
    has = set(processor.get("instructions") or ()) & set(_FASTER)
    slower = "loops in float32 compute, which are slower"
    if held or facts["held_down"]:
        cure = "unset it" if held else "take CPU_NAME and CPU_FEATURES out of Numba's settings"
        got = " and ".join(held) or "other settings of Numba"
        return [_fault("loop", "all instructions of this processor", got, slower, cure)]
    if has:
        return [_fault("loop", f"loops with {has.pop()}", "float32", slower, f"update torch and numba, or {REPORT}")]
    what, cure = "a processor with AVX2", "no setting changes that; a GPU, or another processor"
    got = f"{processor.get('name', 'another')} ({processor.get('architecture')})"
    return [_fault("loop", what, got, slower, cure, is_note=True)]


def kernel_faults(facts: dict[str, Any]) -> list[Fault]:
    """Faults of Triton's kernels, where there is a GPU; ``facts`` are those of the probe "kernel"."""
    if error := facts.get("error"):
        return [_fault("kernel", "a kernel that is compiled and run", error, "the GPU fails", "pass --device cpu")]
    faults = []
    if not facts["relative_error"] <= MOST_RELATIVE_ERROR:
        what, got = "what plain torch gives from the kernels", f"a relative error of {facts['relative_error']:.2g}"
        faults.append(_fault("kernel", what, got, "answers are wrong", f"pass --device cpu, and {REPORT}"))
    if facts["backend"] == "triton":
        later = next((line for line in facts["why"] if line.startswith("GPU backend: cublas")), None)
        if later is not None:
            what, slower = "all kernels to run", "one of them is slower"
            faults.append(_fault("kernel", what, later.partition("because ")[2], slower, REPORT))
        return faults
    cause, slow = facts["cause"], "the CPU computes; with --device cuda all weights are dequantized for every token"
    for_ever = "compute capability" in cause or "is no CUDA device" in cause
    return [*faults, _fault("kernel", "the Triton kernels to run", cause, slow, facts["cure"], is_note=for_ever)]


def _fault(check: str, what: str, got: str, consequence: str, cure: str, *, is_note: bool = False) -> Fault:
    return Fault(check=check, fault=f"expected {what}, got {got}", consequence=consequence, cure=cure, is_note=is_note)
