"""Triton's calls, compiled for a GPU that is not there, run on the emulator."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import ModuleType

import torch
import triton
from triton.backends.compiler import GPUTarget

from tests.triton_kernels.emulator.machine import Machine
from tests.triton_kernels.emulator.memory import GlobalMemory
from tests.triton_kernels.emulator.ptx import parse


class Driver:
    """As much of a driver as compiling asks for."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return self.architecture  # under which Triton keeps what it has compiled

    def get_current_stream(self, device: int) -> int:
        return 0


class EmulatedKernel:
    """A kernel whose launches run on the emulator. edit: changes its PTX before."""

    def __init__(self, kernel: triton.JITFunction, edit: Callable[[str], str] = str) -> None:
        self._kernel, self._edit = kernel, edit

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: object, **options: object) -> None:
            x, y, z = (*grid, 1, 1)[:3]
            assert max(y, z) <= 65535, "a grid that CUDA refuses"
            compiled = self._kernel.warmup(*arguments, grid=grid, **options)
            given = dict(zip(self._kernel.arg_names, arguments, strict=False)) | options
            values = [given[name] for name, kind in compiled.src.signature.items() if kind != "constexpr"]
            numbers = [value.data_ptr() if isinstance(value, torch.Tensor) else value for value in values]
            program = _program(self._edit(compiled.asm["ptx"]))
            numbers += [0] * (len(program.parameters) - len(numbers))  # Triton's own scratch
            memory = GlobalMemory([value for value in values if isinstance(value, torch.Tensor)])
            Machine(program, (x, y, z), numbers, memory, compiled.metadata.shared).run()
            memory.write_back()

        return launch


@contextmanager
def replaced(
    architecture: int, modules: Sequence[ModuleType], stand_in: Callable[[triton.JITFunction], object]
) -> Iterator[None]:
    """Let others stand in for the kernels that these modules launch, on a GPU of an architecture."""
    kernels = [
        (module, name, value)
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, triton.JITFunction)
    ]
    triton.runtime.driver.set_active(Driver(architecture))
    try:
        for module, name, value in kernels:
            setattr(module, name, stand_in(value))
        yield
    finally:
        for module, name, value in kernels:
            setattr(module, name, value)
        triton.runtime.driver._active = None


@contextmanager
def emulated(architecture: int, *modules: ModuleType, edit: Callable[[str], str] = str) -> Iterator[None]:
    """Let the kernels that these modules launch run as compiled for an architecture."""
    with replaced(architecture, modules, lambda kernel: EmulatedKernel(kernel, edit)):
        yield


_program = cache(parse)
