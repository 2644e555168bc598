"""The backends: which class of matrix multiplies on which device, chosen once when a model is loaded.

"integer" and "float32" are Numba loops for a CPU (``cpu/``), "triton" the GPU's kernels (``gpu/``), "cublas" what a GPU
does without them, and "reference" plain torch on any device, exact in the input's dtype up to float32 accumulation.
"""

from torch import Tensor

from glm_int4.quantization.cpu.float32 import Float32Matrix
from glm_int4.quantization.cpu.integer import IntegerMatrix
from glm_int4.quantization.gpu.matrix import CublasMatrix, ReferenceMatrix, TritonMatrix
from glm_int4.quantization.scheme import QuantizedWeight

QuantizedMatrix = IntegerMatrix | Float32Matrix | ReferenceMatrix

_CLASSES: dict[str, type[QuantizedMatrix]] = {
    "integer": IntegerMatrix,
    "float32": Float32Matrix,
    "triton": TritonMatrix,
    "cublas": CublasMatrix,
    "reference": ReferenceMatrix,
}
BACKENDS = tuple(_CLASSES)


def matrix_class(backend: str, out_features: int, in_features: int) -> type[QuantizedMatrix]:
    """The class of a matrix (N, K) on a backend; shapes that "integer" does not take use "float32".

    Raises:
        ValueError: there is no such backend.
    """
    if backend not in _CLASSES:
        raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")
    if backend == "integer" and not IntegerMatrix.takes(out_features, in_features):
        return Float32Matrix
    return _CLASSES[backend]


def make_matrix(weight: QuantizedWeight, bias: Tensor | None, backend: str) -> QuantizedMatrix:
    """A matrix with its bias (N,) or None, in the layout that the backend multiplies."""
    return matrix_class(backend, weight.out_features, weight.in_features)(weight, bias)
