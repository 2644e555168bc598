"""Whether Triton's kernels run on a GPU, tried once, and the backend that follows from it."""

import functools
import logging

import torch

from glm_int4.quantization.gpu import launch_table
from glm_int4.quantization.gpu.cuda_device import has_cuda
from glm_int4.quantization.gpu.kernel_cache import prepare_kernel_cache
from glm_int4.quantization.gpu.kernel_faults import KernelFault, cure_of, fault_of
from glm_int4.quantization.kernels import Epilogue, Matrix, obstacle, product_path, quantized_linear

logger = logging.getLogger(__name__)


@functools.cache
def kernel_fault(device: torch.device) -> KernelFault | None:
    """Why a GPU runs no kernels; None where they compile and run."""
    absent = device.type == "cuda" and not has_cuda()  # a plan may be made for a GPU that is elsewhere
    cause = "there is no CUDA device here" if absent else obstacle(device)
    if cause is not None:
        return KernelFault(cause=cause, cure=cure_of(cause))
    launch_table.adopt(device)
    prepare_kernel_cache()
    try:
        for bits in (4, 8):
            _run(bits, device)
        torch.cuda.synchronize(device)
    except Exception as error:  # of Triton, its compiler or the driver: any type
        return fault_of(error)
    return None


def choose_gpu_backend(device: torch.device) -> str:
    """ "triton" where the kernels compile and run, otherwise "cublas"; said in the log."""
    fault = kernel_fault(device)
    if fault is not None:
        logger.warning("GPU backend: cublas (dequantizes all weights for every product), because %s", fault)
        return "cublas"
    logger.info("GPU backend: triton (%s)", torch.cuda.get_device_name(device))
    return "triton"


def _run(bits: int, device: torch.device) -> None:
    """A product with a matrix of zeros and its gradient, which training needs."""
    columns = 128 // 4 if bits == 4 else 128
    qweight = torch.zeros(128, columns, dtype=torch.int16 if bits == 4 else torch.uint8, device=device)
    scales = torch.ones(1, 128, dtype=torch.float16, device=device)
    matrix = Matrix(bits=bits, qweight=qweight, scales=scales, zero_points=scales.byte(), group_size=128)
    x = torch.ones(1, 128, dtype=torch.float16, device=device, requires_grad=True)
    path = product_path(x, matrix)
    quantized_linear(x, matrix, Epilogue(), path.multiply, path.multiply_transposed).sum().backward()
