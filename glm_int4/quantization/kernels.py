"""The one place that imports ``triton_kernels``, after checking that it is ours.

OpenAI's kernels are distributed under the same package name.
"""

from importlib import import_module
from types import ModuleType

import torch

import triton_kernels
from glm_int4.quantization.gpu.kernel_cache import prepare_kernel_cache
from glm_int4.quantization.gpu.kernel_faults import cure_of

if getattr(triton_kernels, "PROJECT", None) != "glm-int4":
    raise ImportError(
        f"expected glm-int4's own package triton_kernels, got another one at {triton_kernels.__file__}; "
        "install glm-int4 in a virtual environment of its own"
    )

from triton_kernels import cublas, launch, packing, reference
from triton_kernels.autograd import Multiply, MultiplyTransposed, quantized_linear
from triton_kernels.dispatch import obstacle
from triton_kernels.dispatch import path as product_path
from triton_kernels.graph_capture import GraphRecorder
from triton_kernels.operands import Epilogue, Matrix

__all__ = [
    "Epilogue",
    "GraphRecorder",
    "Matrix",
    "Multiply",
    "MultiplyTransposed",
    "cublas",
    "decode_kernels",
    "launch",
    "launch_search",
    "obstacle",
    "packing",
    "product_path",
    "quantized_linear",
    "reference",
]


def decode_kernels(device: torch.device) -> ModuleType:
    """The kernels of a one-token step; ``reference`` defines the functions of the same names.

    Raises:
        RuntimeError: this device runs none; with the cause and its cure.
    """
    cause = obstacle(device)
    if cause is not None:
        raise RuntimeError(f"{cause}; {cure_of(cause)}")
    prepare_kernel_cache()
    return import_module("triton_kernels.decode")


def launch_search() -> ModuleType:
    """The module that measures launches; needs Triton."""
    prepare_kernel_cache()
    return import_module("triton_kernels.launch_search")
