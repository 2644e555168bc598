"""Weight-only quantized linear algebra: tensors in, tensors out.

``packing`` is the storage contract, ``reference`` the meaning of every operation in plain torch; the
operations themselves take the fastest path of the device (README.md says which). Arguments that do not
agree raise ValueError; there is no other error here.
"""

from triton_kernels import packing, reference
from triton_kernels.dispatch import int4_linear, int8_linear

# Another distribution carries the same package name; importers check this mark.
PROJECT = "glm-int4"

__all__ = ["PROJECT", "int4_linear", "int8_linear", "packing", "reference"]
