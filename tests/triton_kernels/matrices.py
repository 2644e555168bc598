"""Random quantized matrices, what a linear with them gives in float64, and memory that shows stray accesses."""

import math

import torch
import torch.nn.functional as F

from triton_kernels import packing, reference
from triton_kernels.operands import Epilogue, Matrix

GUARD = 512


def quantized(bits, shape, group_size, asymmetric, device="cpu", dtype=torch.float16):
    """A Matrix of shape (N, K); group_size None is the whole row."""
    out_features, in_features = shape
    group_size = group_size or in_features
    generator = torch.Generator().manual_seed(1000 * bits + group_size + asymmetric)
    q = torch.randint(0, 1 << bits, shape, generator=generator, dtype=torch.uint8)
    scales = (torch.rand(in_features // group_size, out_features, generator=generator) + 0.5).to(dtype) / 64
    zeros = torch.randint(0, 1 << bits, scales.shape, generator=generator, dtype=torch.uint8)
    return Matrix(
        bits=bits,
        qweight=(packing.to_planar(packing.pack_int4(q)) if bits == 4 else q).to(device),
        scales=guarded(scales.to(device)),
        zero_points=zeros.to(device) if asymmetric else None,
        group_size=group_size,
    )


def weights64(matrix):
    """The weights (N, K) in float64; exact, since the product of scale and integer fits in float32."""
    dequantize = reference.dequantize_int4 if matrix.bits == 4 else reference.dequantize_int8
    return dequantize(matrix.qweight, matrix.scales, matrix.zero_points, matrix.group_size).double()


def linear64(x, matrix, epilogue=Epilogue()):  # noqa: B008, immutable
    """A quantized linear in float64, in pieces that a small GPU holds."""
    pieces = reference._weight_chunks(matrix, torch.float64)
    out = torch.cat([x.double() @ weight.T for _, weight in pieces], dim=-1)
    if epilogue.bias is not None:
        out += epilogue.bias.double()
    if epilogue.activation == "gelu":
        out = F.gelu(out, approximate="tanh")
    elif epilogue.activation == "swiglu":
        gate, up = out.chunk(2, dim=-1)
        out = F.silu(gate) * up
    return out if epilogue.residual is None else out + epilogue.alpha * epilogue.residual.double()


def guarded(tensor):
    """A copy between stretches of NaN, which show when they are read."""
    copy = guarded_buffer(tensor.shape, tensor.dtype, tensor.device)[0]
    return copy.copy_(tensor)


def guarded_buffer(shape, dtype, device="cpu"):
    """A tensor of NaN, and the larger buffer of NaN in whose middle it lies."""
    size = math.prod(shape)
    buffer = torch.full((size + 2 * GUARD,), math.nan, dtype=dtype, device=device)
    return buffer[GUARD : GUARD + size].view(tuple(shape)), buffer


def poison(monkeypatch):
    """Let ``torch.empty`` give guarded tensors of NaN; returns a function that checks their guards."""
    empty, buffers = torch.empty, []

    def guarded_empty(*shape, **options):
        out = empty(*shape, **options)
        if out.is_floating_point():
            out, buffer = guarded_buffer(out.shape, out.dtype, out.device)
            buffers.append(buffer)
        return out

    def check():
        for buffer in buffers:
            assert buffer[:GUARD].isnan().all(), "written before the start of an output"
            assert buffer[-GUARD:].isnan().all(), "written past the end of an output"

    monkeypatch.setattr(torch, "empty", guarded_empty)
    return check
