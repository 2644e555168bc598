"""Whether Triton's kernels run on a GPU, tried once, and the backend that follows from it."""

import functools
import logging
from dataclasses import dataclass

import torch

from glm_int4.quantization.gpu import launch_table
from glm_int4.quantization.gpu.cuda_device import has_cuda
from glm_int4.quantization.gpu.kernel_cache import prepare_kernel_cache
from glm_int4.quantization.gpu.kernel_faults import KernelFault, cure_of, fault_of
from glm_int4.quantization.kernels import Epilogue, Matrix, obstacle, packing, product_path, quantized_linear
from glm_int4.quantization.scheme import QuantizationScheme

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProbedMatrix:
    """A quantized matrix (N, K) of a model, as far as kernels are compiled for it."""

    scheme: QuantizationScheme
    out_features: int
    in_features: int
    has_bias: bool = False


# For a probe before it is known which model will run.
ANY_MODEL = tuple(
    ProbedMatrix(QuantizationScheme(bits=bits, group_size=128, symmetric=False), 128, 256) for bits in (4, 8)
)


@functools.cache
def kernel_fault(device: torch.device, matrices: tuple[ProbedMatrix, ...] = ANY_MODEL) -> KernelFault | None:
    """Why a GPU runs no kernels; None where those of these matrices compile and run.

    Matrices whose shape no kernel takes are left out; others stand in where none is left.
    """
    absent = device.type == "cuda" and not has_cuda()  # a plan may be made for a GPU that is elsewhere
    cause = "there is no CUDA device here" if absent else obstacle(device)
    if cause is not None:
        return KernelFault(cause=cause, cure=cure_of(cause))
    launch_table.adopt(device)
    prepare_kernel_cache()
    try:
        for matrix in [each for each in matrices if each.in_features % packing.RUN == 0] or ANY_MODEL:
            _run(matrix, device)
        torch.cuda.synchronize(device)
    except torch.OutOfMemoryError:  # no fault of the kernels: the memory plan says what does not fit
        return None
    except Exception as error:  # of Triton, its compiler or the driver: any type
        return fault_of(error)
    return None


def choose_gpu_backend(device: torch.device, matrices: tuple[ProbedMatrix, ...] = ANY_MODEL) -> str:
    """ "triton" where the kernels of these matrices compile and run, otherwise "cublas"; said in the log."""
    fault = kernel_fault(device, matrices)
    if fault is not None:
        logger.warning("GPU backend: cublas (dequantizes all weights for every product), because %s", fault)
        return "cublas"
    logger.info("GPU backend: triton (%s)", torch.cuda.get_device_name(device))
    return "triton"


def _run(probed: ProbedMatrix, device: torch.device) -> None:
    """A product with a matrix of zeros as an answer takes it, and another with its gradient, which training needs."""
    n, k, bits = probed.out_features, probed.in_features, probed.scheme.bits
    group_size = probed.scheme.row_group_size(k)
    shape, dtype = ((n, k // 4), torch.int16) if bits == 4 else ((n, k), torch.uint8)
    scales = torch.ones(k // group_size, n, dtype=torch.float16, device=device)
    zeros = None if probed.scheme.symmetric else scales.byte()
    qweight = torch.zeros(shape, dtype=dtype, device=device)
    matrix = Matrix(bits=bits, qweight=qweight, scales=scales, zero_points=zeros, group_size=group_size)
    epilogue = Epilogue(bias=torch.zeros(n, device=device) if probed.has_bias else None)
    x = torch.ones(1, k, dtype=torch.float16, device=device)
    path = product_path(x, matrix)
    path.multiply(x, matrix, epilogue)
    x.requires_grad_()
    quantized_linear(x, matrix, epilogue, path.multiply, path.multiply_transposed).sum().backward()
