"""Quantized matrices in the layout of ``triton_kernels``, and the choice between its kernels and plain torch."""

import functools
import logging
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glm_int4.quantization import kernels
from glm_int4.quantization.gpu import launch_table
from glm_int4.quantization.gpu.kernel_cache import prepare_kernel_cache
from glm_int4.quantization.host_rows import HostRows
from glm_int4.quantization.kernels import obstacle, packing, reference
from glm_int4.quantization.scheme import QuantizationScheme, QuantizedWeight

logger = logging.getLogger(__name__)

# Set by the first failure; from then on everything runs the reference.
_kernels_failed = False


@functools.cache
def choose_gpu_backend(device: torch.device) -> str:
    """Probe a GPU once: "triton" where the kernels compile and run, otherwise "reference"."""
    absent = device.type == "cuda" and not torch.cuda.is_available()  # a plan may be made for a GPU that is elsewhere
    cause = "there is no CUDA device here" if absent else obstacle(device)
    if cause is not None:
        logger.warning("GPU backend: reference (dequantize + cuBLAS), because %s", cause)
        return "reference"
    launch_table.adopt(device)
    prepare_kernel_cache()
    for bits in (4, 8):
        scheme = QuantizationScheme(bits=bits, group_size=128, symmetric=False)
        packed = torch.zeros(128, 128 * bits // 8, dtype=torch.uint8)
        ones = torch.ones(128, 1)
        weight = QuantizedWeight(scheme=scheme, packed=packed, scales=ones.half(), zero_points=ones.byte())
        x = torch.ones(1, 128, dtype=torch.float16, device=device, requires_grad=True)
        TritonMatrix(weight).to(device)(x).sum().backward()  # training needs the product with the transposed weights
    torch.cuda.synchronize(device)
    if _kernels_failed:
        return "reference"
    logger.info("GPU backend: triton (%s)", torch.cuda.get_device_name(device))
    return "triton"


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
        return self._run(reference, x, out_dtype, None)

    def dequantize(self, rows: slice | Tensor) -> Tensor:
        """The chosen rows in float32."""
        dequantize = reference.dequantize_int4 if self.bits == 4 else reference.dequantize_int8
        zeros = None if self.zero_points is None else self.zero_points[:, rows]
        weights = dequantize(self._integers(rows), self.scales[:, rows], zeros, self.group_size)
        return weights[:, : self.in_features]

    def _integers(self, rows: slice | Tensor) -> Tensor:
        return self.qweight[rows]

    def _run(self, path: ModuleType, x: Tensor, out_dtype: torch.dtype | None, activation: str | None) -> Tensor:
        linear = path.int4_linear if self.bits == 4 else path.int8_linear
        x = F.pad(x, (0, self._num_filled)) if self._num_filled else x
        arguments = (x, self.qweight, self.scales, self.zero_points, self.bias)
        out: Tensor = linear(*arguments, group_size=self.group_size, activation=activation, out_dtype=out_dtype)
        return out


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


class TritonMatrix(ReferenceMatrix):
    """A quantized matrix multiplied by the Triton kernels in float16; where they fail, by the reference."""

    def forward(self, x: Tensor, out_dtype: torch.dtype | None = None, activation: str | None = None) -> Tensor:
        """(..., K) to (..., N) in float16, or in ``out_dtype``; after ``activation`` "swiglu" (..., N // 2).

        A gradient runs the kernels' own product with the weights as they are (``triton_kernels/autograd.py``).
        """
        global _kernels_failed
        x = x.half()
        if _kernels_failed:
            return self._run(reference, x, out_dtype, activation)
        try:
            return self._run(kernels, x, out_dtype, activation)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of Triton, its compiler or the driver: any type
            out = self._run(reference, x, out_dtype, activation)  # raises where the arguments are to blame
            _kernels_failed = True
            cause = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            logger.warning("GPU backend: reference (dequantize + cuBLAS), because Triton failed: %s", cause)
            return out
