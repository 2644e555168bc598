"""Weight-only quantized linear algebra: tensors in, tensors out.

``packing`` is the storage contract, ``reference`` the meaning of every operation in plain torch.
Arguments that do not agree raise ValueError; there is no other error here.
"""

from triton_kernels import packing, reference
from triton_kernels.reference import int4_linear, int8_linear

# Another distribution carries the same package name; importers check this mark.
PROJECT = "glm-int4"

__all__ = ["PROJECT", "int4_linear", "int8_linear", "packing", "reference"]
