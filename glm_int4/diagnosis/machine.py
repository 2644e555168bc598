"""The machine as the operating system knows it: no package is needed to ask."""

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from glm_int4.diagnosis.faults import Fault
from glm_int4.system import available_bytes, container_memory, gb_text, total_bytes

# Flags of /proc/cpuinfo that speed depends on, as people call them.
_INSTRUCTIONS = {
    "avx2": "AVX2", "fma": "FMA", "f16c": "F16C", "avx512f": "AVX-512", "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX-VNNI", "amx_tile": "AMX", "amx_int8": "AMX INT8", "amx_bf16": "AMX BF16",
    "asimd": "NEON", "asimddp": "NEON dot product", "i8mm": "NEON INT8", "sve": "SVE",
}  # fmt: skip
# What a model of six billion parameters takes in INT4.
_MODEL_BYTES = 4e9
_SMI = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits")
_SMI_TIMEOUT_S = 20.0


def system() -> dict[str, Any]:
    """Operating system and Python."""
    return {
        "os": platform.platform(),
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "executable": sys.executable,
        "virtual_environment": sys.prefix != sys.base_prefix,
    }


def python_faults(found: dict[str, Any]) -> list[Fault]:
    """A note where Python is one that torch and Numba are not made for; ``found`` is what ``system`` returned."""
    if found["implementation"] == "CPython":
        return []
    return [
        Fault(
            check="system",
            fault=f"expected CPython, got {found['implementation']}",
            consequence="torch and Numba may not run",
            cure="use CPython 3.11 or newer",
            is_note=True,
        )
    ]


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """Name, instructions (None where the system does not say) and cores."""
    try:
        rows = [line.split(":", 1) for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        rows = []
    words = {row[0].strip(): row[1].strip() for row in reversed(rows) if len(row) == 2}
    flags = (words.get("flags") or words.get("Features") or "").split()
    try:
        usable: int | None = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not on macOS and Windows
        usable = os.cpu_count()
    return {
        "name": words.get("model name") or platform.processor() or "unknown",
        "architecture": platform.machine(),
        "instructions": [name for flag, name in _INSTRUCTIONS.items() if flag in flags] if flags else None,
        "cores": os.cpu_count(),
        "usable_cores": usable,
    }


def memory() -> dict[str, Any]:
    """Bytes in all and free, and the limit of the container."""
    limit = container_memory()
    return {
        "total_bytes": total_bytes(),
        "free_bytes": available_bytes(),
        "container_limit_bytes": limit[0] if limit else None,
    }


def memory_faults(found: dict[str, Any]) -> list[Fault]:
    """A note where no model would fit."""
    free = found["free_bytes"]
    if free is None or free >= _MODEL_BYTES:
        return []
    return [
        Fault(
            check="memory",
            fault=f"expected {gb_text(_MODEL_BYTES)} of free memory, got {gb_text(free)}",
            consequence="no model of 6B fits on the CPU, even in INT4",
            cure="close other programs, or raise the container's limit",
            is_note=True,
        )
    ]


def graphics_cards() -> list[dict[str, str]]:
    """What NVIDIA's driver says of its GPUs; empty where there is no driver."""
    try:
        result = subprocess.run(_SMI, capture_output=True, stdin=subprocess.DEVNULL, timeout=_SMI_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.split(", ") for line in result.stdout.decode(errors="replace").splitlines()]
    names = ("name", "driver", "memory_mib")
    return [dict(zip(names, row, strict=True)) for row in rows if len(row) == len(names) and result.returncode == 0]
