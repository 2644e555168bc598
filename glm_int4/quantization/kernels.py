"""The one place that imports ``triton_kernels``, after checking that it is ours.

OpenAI's kernels are distributed under the same package name.
"""

import triton_kernels

if getattr(triton_kernels, "PROJECT", None) != "glm-int4":
    raise ImportError(
        f"expected glm-int4's own package triton_kernels, got another one at {triton_kernels.__file__}; "
        "install glm-int4 in a virtual environment of its own"
    )

from triton_kernels import int4_linear, int8_linear, packing, reference
from triton_kernels.linear import obstacle

__all__ = ["int4_linear", "int8_linear", "obstacle", "packing", "reference"]
