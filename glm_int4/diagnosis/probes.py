"""What is tried in a process of its own (``isolated.py``): imports, a loop, a kernel.

Each probe returns facts for JSON. An exception is a fact too: ``answer`` writes it down as the error.
"""

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from glm_int4.diagnosis.faults import first_line
from glm_int4.system import name_a_temporary_folder

if TYPE_CHECKING:
    import torch

_IMPORTED = ("numpy", "safetensors", "sentencepiece", "huggingface_hub", "typer", "rich", "prompt_toolkit")
# (N, K) of the matrix that is multiplied, with 4 bits and groups of 128.
_SHAPE = (256, 256)


def answer(probe: str) -> None:
    """Write what a probe finds as the last line of the output."""
    name_a_temporary_folder()
    try:
        facts = _PROBES[probe]()
    except Exception as error:
        facts = {"error": first_line(error)}
    sys.stdout.write(f"\n{json.dumps(facts)}\n")


def packages() -> dict[str, Any]:
    """Why packages cannot be imported (None where they can), and where the hub's client keeps what it downloads."""
    errors: dict[str, str | None] = {}
    for name in _IMPORTED:
        try:
            import_module(name)
            errors[name] = None
        except Exception as error:  # of a broken package: any
            errors[name] = first_line(error)
    if errors["huggingface_hub"] is not None:
        return {"errors": errors}
    return {"errors": errors, "hub_cache": str(import_module("huggingface_hub.constants").HF_HUB_CACHE)}


def torch_and_gpus() -> dict[str, Any]:
    """How torch was built, what it sees, and the device that "auto" takes."""
    import torch

    cuda, rocm = torch.version.cuda, getattr(torch.version, "hip", None)
    facts: dict[str, Any] = {
        "version": torch.__version__,
        "build": f"CUDA {cuda}" if cuda else f"ROCm {rocm}" if rocm else "CPU",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "no_gpu_because": None,
        "gpus": [],
    }
    from glm_int4.quantization.gpu.cuda_device import has_cuda

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if has_cuda():
            facts["gpus"] = [_gpu(torch.device("cuda", i)) for i in range(torch.cuda.device_count())]
        else:
            facts["no_gpu_because"] = _why_no_gpu()
    facts |= {"device": None, "loading_error": None}
    try:
        from glm_int4.generation.loading import choose_device

        facts["device"] = choose_device("auto").type
    except Exception as error:  # of any package that loading a model needs
        facts["loading_error"] = first_line(error)
    return facts


def _why_no_gpu() -> str:
    import torch

    if (rocm := getattr(torch.version, "hip", None)) is not None:
        return f"torch is a build for ROCm {rocm}"
    if torch.version.cuda is None:
        return "torch is a CPU build"
    try:
        torch.cuda.init()
    except Exception as error:  # says what is wrong with the driver
        return first_line(error).partition(": ")[2]
    return "torch sees none"


def _gpu(device: "torch.device") -> dict[str, Any]:
    """A GPU, and why torch cannot compute on it (None where it can)."""
    import torch

    properties = torch.cuda.get_device_properties(device)
    facts: dict[str, Any] = {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "total_bytes": properties.total_memory,
        "free_bytes": None,
        "error": None,
    }
    try:
        facts["free_bytes"] = torch.cuda.mem_get_info(device)[0]
        ones = torch.ones(16, 16, dtype=torch.float16, device=device)
        total = (ones @ ones).sum().item()
        facts["error"] = None if total == 16**3 else f"16 x 16 x 16 = {total}"
    except Exception as error:
        facts["error"] = first_line(error)
    return facts


def loop() -> dict[str, Any]:
    """The CPU's backend and why, a loop that is compiled, kept and loaded, and a matrix that is multiplied."""
    import torch

    facts: dict[str, Any] = {"numba_error": None, "code_folders": None, "threads": torch.get_num_threads()}
    try:
        numba: Any = import_module("numba")
    except Exception as error:
        return facts | {"numba_error": first_line(error), "backend": "reference", "why": []}
    with logged() as lines:
        from glm_int4.quantization.cpu.instructions import choose_backend, instruction_set

        facts["backend"] = choose_backend()
        found = instruction_set()
        facts["instructions"] = found.name if found else None
        facts["jit_is_off"] = bool(numba.config.DISABLE_JIT)
        facts["held_down"] = bool(numba.config.CPU_NAME or numba.config.CPU_FEATURES)
        if not facts["jit_is_off"]:
            facts |= compile_and_keep()
            started = time.perf_counter()
            facts["relative_error"] = product_error(facts["backend"], torch.device("cpu"))
            facts["matrix_s"] = time.perf_counter() - started
    return facts | {"why": [line for line in lines if line.startswith("CPU backend")]}


def compile_and_keep() -> dict[str, Any]:
    """Compile a loop, run it, and load it from where it was kept; nothing of it stays behind."""
    import numpy as np
    import torch

    from glm_int4.quantization.cpu import compiled
    from glm_int4.system import write_fault

    def total(values: Any) -> float:
        result = 0.0
        for value in values:
            result += value
        return result

    total.__qualname__ = f"total_{os.getpid()}"  # a file of its own
    values, expected = np.arange(1000.0), torch.arange(1000, dtype=torch.float64).sum().item()
    started = time.perf_counter()
    first = compiled.loop()(total)(values)
    seconds = time.perf_counter() - started
    again = compiled.loop()(total)
    right = first == expected and again(values) == expected
    kept = sum(again.stats.cache_hits.values()) == 1
    again._cache.flush()
    folders = [[str(folder), write_fault(folder, make=False)] for folder in compiled.cache_folders()]
    return {"compile_s": seconds, "right": bool(right), "kept": kept, "code_folders": folders}


def kernel(device: "torch.device | None" = None) -> dict[str, Any]:
    """The GPU's backend and why, and the relative error of a product on it."""
    import torch

    from glm_int4.quantization.gpu.gpu_probe import ANY_MODEL, choose_gpu_backend, kernel_fault

    device = device or torch.device("cuda")
    with logged() as lines:
        started = time.perf_counter()
        backend = choose_gpu_backend(device)
        seconds = time.perf_counter() - started
        error = product_error(backend, device)
    fault = kernel_fault(device, ANY_MODEL)
    facts = {"backend": backend, "why": lines, "seconds": seconds, "relative_error": error}
    return facts | {"cause": fault.cause if fault else None, "cure": fault.cure if fault else None}


def product_error(backend: str, device: "torch.device") -> float:
    """Root mean square error of a product on a backend, as a share of what plain torch gives in float32."""
    import torch

    from glm_int4.quantization.backends import make_matrix
    from glm_int4.quantization.scheme import QuantizationScheme, QuantizedWeight

    generator = torch.Generator().manual_seed(0)
    rows, columns = _SHAPE
    scheme = QuantizationScheme(bits=4, group_size=128, symmetric=False)
    zero_points = torch.randint(0, 16, (rows, columns // 128), generator=generator, dtype=torch.uint8)
    packed = torch.randint(0, 256, (rows, columns // 2), generator=generator, dtype=torch.uint8)
    scales = (0.01 + 0.01 * torch.rand(rows, columns // 128, generator=generator)).half()
    weight = QuantizedWeight(scheme=scheme, packed=packed, scales=scales, zero_points=zero_points)
    x = torch.randn(1, columns, generator=generator).half().float()
    matrix = make_matrix(weight, None, backend)
    if device.type != "cpu":
        matrix, x_there = matrix.to(device), x.half().to(device)
    else:
        x_there = x
    with torch.no_grad():
        out = matrix(x_there).double().cpu()
        expected = make_matrix(weight, None, "reference")(x).double()
    return float((out - expected).norm() / expected.norm())


@contextmanager
def logged() -> Iterator[list[str]]:
    """Collects what this package logs."""
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    log, collector = logging.getLogger("glm_int4"), Collector(logging.INFO)
    level = log.level
    log.addHandler(collector)
    log.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        log.removeHandler(collector)
        log.setLevel(level)


_PROBES: dict[str, Callable[[], dict[str, Any]]] = {
    "packages": packages,
    "torch": torch_and_gpus,
    "loop": loop,
    "kernel": kernel,
}
