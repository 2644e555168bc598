"""Quantized matrices in the layout of ``triton_kernels``: its kernels, cuBLAS or plain torch multiply them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glm_int4.quantization.gpu import guarded
from glm_int4.quantization.host_rows import HostRows
from glm_int4.quantization.kernels import (
    Epilogue,
    Matrix,
    Multiply,
    MultiplyTransposed,
    cublas,
    packing,
    quantized_linear,
    reference,
)
from glm_int4.quantization.scheme import QuantizationScheme, QuantizedWeight


class ReferenceMatrix(nn.Module):
    """A quantized matrix in the kernels' runtime layout with its bias (N,), multiplied by the plain-torch reference.

    Rows of two weights more than a multiple of four, which no planar word holds, are filled up with two zeros.
    """

    qweight: Tensor
    scales: Tensor
    zero_points: Tensor | None
    bias: Tensor | None

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = weight.in_features, weight.out_features
        self.bits, self.group_size = weight.scheme.bits, weight.group_size
        packed, zeros = weight.packed, weight.zero_points
        self._num_filled = -self.in_features % 4 if self.bits == 4 else 0
        if self._num_filled:
            self.group_size += self._num_filled  # such a row is one group
            packed = F.pad(packed, (0, 1))
        if self.bits == 4:
            packed = packing.to_planar(packed)
        elif packed.device.type == "cpu" or not packed.is_contiguous():  # a file's bytes, or a view of others'
            packed = packed.clone()
        self.register_buffer("qweight", packed)
        self.register_buffer("scales", weight.scales.T.contiguous())
        self.register_buffer("zero_points", None if zeros is None else zeros.T.contiguous())
        self.register_buffer("bias", None if bias is None else bias.float())

    @staticmethod
    def resident_bytes(out_features: int, in_features: int, scheme: QuantizationScheme, *, has_bias: bool) -> int:
        """Bytes of a matrix (N, K); without zero points a group has its float16 scale alone."""
        num_groups = in_features // scheme.row_group_size(in_features)
        a_row = in_features * scheme.bits // 8 + num_groups * (2 if scheme.symmetric else 3)
        return out_features * (a_row + 4 * has_bias)

    def forward(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        """(..., K) to (..., N) of x's dtype or of ``out_dtype``, through which a gradient passes."""
        epilogue = Epilogue(bias=self.bias, dtype=out_dtype)
        return self._run(reference.multiply, reference.multiply_transposed, x, epilogue)

    def dequantize(self, rows: slice | Tensor) -> Tensor:
        """The chosen rows in float32."""
        dequantize = reference.dequantize_int4 if self.bits == 4 else reference.dequantize_int8
        zeros = None if self.zero_points is None else self.zero_points[:, rows]
        weights = dequantize(self._integers(rows), self.scales[:, rows], zeros, self.group_size)
        return weights[:, : self.in_features]

    def _integers(self, rows: slice | Tensor) -> Tensor:
        return self.qweight[rows]

    @property
    def _operand(self) -> Matrix:
        return Matrix(
            bits=self.bits,
            qweight=self.qweight,
            scales=self.scales,
            zero_points=self.zero_points,
            group_size=self.group_size,
        )

    def _run(
        self, multiply: Multiply, multiply_transposed: MultiplyTransposed, x: Tensor, epilogue: Epilogue
    ) -> Tensor:
        x = F.pad(x, (0, self._num_filled)) if self._num_filled else x
        return quantized_linear(x, self._operand, epilogue, multiply, multiply_transposed)


class HostMatrix(ReferenceMatrix):
    """A quantized matrix whose integers stay in the host's memory: rows can be looked up, and nothing multiplied.

    Args:
        device: where the rows are wanted.
    """

    def __init__(self, weight: QuantizedWeight, device: torch.device) -> None:
        super().__init__(weight)
        self._rows = HostRows(self.qweight, device)
        del self.qweight

    @staticmethod
    def resident_bytes(out_features: int, in_features: int, scheme: QuantizationScheme, *, has_bias: bool) -> int:
        """As of ``ReferenceMatrix``, on the device alone: scales and zero points."""
        num_groups = in_features // scheme.row_group_size(in_features)
        return out_features * num_groups * (2 if scheme.symmetric else 3)

    def _integers(self, rows: slice | Tensor) -> Tensor:
        assert isinstance(rows, Tensor)
        return self._rows[rows]


class CublasMatrix(ReferenceMatrix):
    """A quantized matrix that is dequantized for every product, which torch's own does in 16 bits."""

    def forward(self, x: Tensor, out_dtype: torch.dtype | None = None, activation: str | None = None) -> Tensor:
        """(..., K) to (..., N) of x's dtype or of ``out_dtype``; after ``activation`` "swiglu" (..., N // 2)."""
        path = cublas if cublas.takes(self._operand) else reference
        epilogue = Epilogue(bias=self.bias, activation=activation, dtype=out_dtype)
        return self._run(path.multiply, path.multiply_transposed, x, epilogue)


class TritonMatrix(CublasMatrix):
    """A quantized matrix multiplied by the Triton kernels in float16; where one fails, as ``CublasMatrix``.

    x of a wider range is scaled row by row.
    """

    def forward(self, x: Tensor, out_dtype: torch.dtype | None = None, activation: str | None = None) -> Tensor:
        """As of ``CublasMatrix``.

        A gradient runs the kernels' own product with the weights as they are (``triton_kernels/autograd.py``).
        """
        epilogue = Epilogue(bias=self.bias, activation=activation, dtype=out_dtype)
        return self._run(guarded.multiply, guarded.multiply_transposed, x, epilogue)
