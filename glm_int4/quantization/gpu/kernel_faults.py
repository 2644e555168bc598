"""What keeps Triton's kernels from running, in one line, and its cure.

Triton compiles a part of itself with a C compiler and Python's headers when it is used for the first time, and kernels
with its own ``ptxas``; it loads both from the folder where it keeps them. Any of this may be missing.
"""

import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

REPORT = "report this with the output of glm-int4 doctor --json"
_COMPILER = "install a C compiler and Python's headers, on Debian and Ubuntu: apt install gcc python3-dev"
_TRITON = "triton-windows" if sys.platform == "win32" else "triton"
# What a cause holds, in small letters -> the cure. The first that fits counts.
_CURES = {
    ("no module named 'triton'",): f"install it: pip install {_TRITON}",
    ("compute capability",): "no setting changes that; a newer GPU, or --device cpu",
    ("is no cuda device",): "GPUs of other makers than NVIDIA have no kernels here",
    ("there is no cuda device",): "run this on the machine that has one",
    ("c compiler", "'gcc'", "'cc'", "'clang'"): f"{_COMPILER}; or name a compiler with CC",
    ("python.h",): "install Python's headers, on Debian and Ubuntu: apt install python3-dev",
    ("libcuda.so",): "run ldconfig, or set TRITON_LIBCUDA_PATH to the folder of NVIDIA's libcuda.so.1",
    ("option 'gpu-name'", "not a recognized processor", "no kernel image", "unsupported .version"): (
        "install a newer torch, whose Triton knows this GPU, and a driver for it"
    ),
    ("bin/ptxas'", "bin/ptxas-blackwell'"): "reinstall triton where programs may be run, or set TRITON_PTXAS_PATH",
    ("failed to map segment", "operation not permitted"): "set TRITON_CACHE_DIR to a folder whose files may be run",
    ("read-only", "permission denied", "not a directory"): "set TRITON_CACHE_DIR to a folder that can be written",
    ("no space", "disk quota"): "make room, or set TRITON_CACHE_DIR to a folder on another disk",
    ("out of resource",): f"glm-int4 bench --tune looks for launches that fit this GPU; or {REPORT}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFault:
    """Why no kernel runs, or one does not, and what to do."""

    cause: str
    cure: str

    def __str__(self) -> str:
        return f"{self.cause}; {self.cure}"


def fault_of(error: BaseException) -> KernelFault:
    """What an exception of Triton, a compiler or the driver means."""
    text = _compiler_text(error) or str(error).strip()
    line, _, rest = text.partition("\n")
    said = next((part.strip() for part in rest.splitlines() if "fatal" in part), "")  # of a log, the line that matters
    cause = f"Triton failed: {type(error).__name__}: {line}" + (f" ({said})" if said else "")
    return KernelFault(cause=cause, cure=cure_of(f"{type(error).__name__}: {text}"))


def cure_of(cause: str) -> str:
    """What to do where kernels do not run because of this."""
    low = cause.lower()
    found = (cure for signs, cure in _CURES.items() if any(sign in low for sign in signs))
    return next(found, f"reinstall triton in the version that torch asks for, and {REPORT}")


def _compiler_text(error: BaseException) -> str | None:
    """What a failed run of a C compiler means, which says it to the terminal alone; None of other errors."""
    if not isinstance(error, subprocess.CalledProcessError) or not any(str(part).endswith(".c") for part in error.cmd):
        return None
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    return "the C compiler failed, as it says above" if headers.is_file() else f"there is no {headers}"
