"""Compile the kernels through Triton's own calls, as on an H200, without one; test_gate.py runs this.

Arguments, their specialization and the options go the way they go on a GPU; nothing is launched.
"""

import sys

import torch
import triton
from triton.backends.compiler import GPUTarget

from tests.triton_kernels.matrices import quantized
from triton_kernels import decode, gpu, launch
from triton_kernels.operands import Epilogue


class Driver:
    """As much of a driver as compiling asks for."""

    def __init__(self, architecture):
        self.architecture = architecture

    def get_current_target(self):
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


class Compiled:
    """A kernel whose launches compile it."""

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        assert all(size <= 65535 for size in grid[1:])
        return lambda *arguments, **options: self.kernel.warmup(*arguments, grid=grid, **options)


def main(architecture):
    triton.runtime.driver.set_active(Driver(architecture))
    for name in ("dot_kernel", "gemv_kernel", "finish_kernel", "dequantize_kernel"):
        setattr(gpu, name, Compiled(getattr(gpu, name)))
    for name in ("add_norm_kernel", "rotary_kernel", "attend_kernel", "merge_kernel"):
        setattr(decode, name, Compiled(getattr(decode, name)))
    for num_kv_heads, dtype in ((4, torch.float16), (2, torch.int8)):
        one_token(num_kv_heads, dtype)
    for bits, group_size in ((4, 128), (8, None)):
        matrix = quantized(bits, (176, 256), group_size, asymmetric=bits == 4)
        for row in (launch.choose(bits, architecture, 1), launch.choose(bits, 75, 2)):
            x = torch.zeros(2, 256, dtype=torch.float16)
            gpu.run(row, 1, x, matrix, Epilogue(bias=torch.zeros(176), activation="gelu"))
            gpu.run(row, 2, x, matrix, Epilogue(activation="swiglu", residual=x[:, :88].contiguous(), alpha=0.5))
        gpu.multiply_dequantized(torch.zeros(300, 256, dtype=torch.float16), matrix, Epilogue(bias=torch.zeros(176)))
        gpu.multiply_transposed(torch.zeros(300, 176, dtype=torch.float16), matrix)


def one_token(num_kv_heads, dtype):
    """The kernels of a step that are no products, of 4 query heads."""
    x, vector = torch.zeros(2, 256, dtype=torch.float16), torch.zeros(256, dtype=torch.float16)
    decode.add_norm(x, vector, vector if dtype == torch.int8 else None, x.clone(), alpha=0.5)
    decode.add_norm(x, vector)
    scale_length = 300 if dtype == torch.int8 else 0
    stored = [torch.zeros(2, num_kv_heads, 300, 128, dtype=dtype) for _ in range(2)]
    stored += [torch.zeros(2, num_kv_heads, scale_length, dtype=torch.float16) for _ in range(2)]
    tables, (slots, columns, padding) = torch.zeros(300, 32), torch.zeros(3, 2, dtype=torch.int64)
    two_dimensional = num_kv_heads == 4
    positions = torch.zeros(2, 2 if two_dimensional else 1, dtype=torch.int64)
    qkv = torch.zeros(2, (4 + 2 * num_kv_heads) * 128, dtype=torch.float16)
    options = {"num_heads": 4, "two_dimensional": two_dimensional}
    q = decode.rotary_to_cache(qkv, tables, tables, positions, slots, columns, *stored, **options)
    for bound in (256, 300):
        decode.one_token_attention(q, *stored, slots, columns + 1, padding, max_columns=bound)


if __name__ == "__main__":
    main(int(sys.argv[1]))
