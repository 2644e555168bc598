"""Stand-ins for Triton's kernels that run nothing: they note which variants would be compiled."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
import triton

from tests.triton_kernels.emulator.launching import replaced

_WRITTEN = ("out_ptr", "total_ptr", "q_ptr", "parts_ptr", "stats_ptr", "k_ptr", "v_ptr")


class RecordingKernel:
    """Notes the key under which Triton would look for a compiled kernel, and writes zeros where that would write."""

    def __init__(self, kernel: triton.JITFunction, variants: set[tuple[str, str, str]]) -> None:
        self._kernel, self._variants = kernel, variants
        self._bind = kernel.create_binder()[4]

    def __getitem__(self, grid: tuple[int, ...]):
        def launch(*arguments: object, **options: object) -> None:
            bound, specialization, rest = self._bind(*arguments, **options)
            self._variants.add((self._kernel.__name__, str(specialization), str(rest)))
            for name in _WRITTEN:
                if isinstance(bound.get(name), torch.Tensor):
                    bound[name].zero_()

        return launch


@contextmanager
def recorded(architecture: int, *modules: ModuleType) -> Iterator[set[tuple[str, str, str]]]:
    """Let the kernels that these modules launch be noted; yields the variants."""
    variants: set[tuple[str, str, str]] = set()
    with replaced(architecture, modules, lambda kernel: RecordingKernel(kernel, variants)):
        yield variants
