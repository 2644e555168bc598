"""How fast is one quantized linear, beside half precision and other packages? On a GPU, or on a CPU without one.

pytest benchmarks/kernels/bench_linear.py --benchmark-json=linear.json
python -m benchmarks.report.tables --linear linear.json

Every way is timed over copies of its weights that together exceed the cache four times. On a GPU a
captured graph runs over all copies, so that the host's part does not count. The bandwidth of a large copy
is measured first; ``share`` is the weights' bytes over the time, by that bandwidth. Ways whose package or
device is missing skip. Choose with -k, for example -k "ours and 4096x4096"; QUICK=1 takes fewer shapes and rows.
"""

import functools
import importlib
import math
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import triton_kernels
from benchmarks.machine import device_facts
from benchmarks.peers.official import OfficialLinear
from glm_int4.measuring import bandwidth
from glm_int4.quantization.cpu.instructions import choose_backend
from glm_int4.quantization.linear import QuantizedLinear
from glm_int4.quantization.scheme import QuantizationScheme, QuantizedWeight
from triton_kernels.launch_search import graph_seconds

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
# (N, K) of the linears of ChatGLM-6B, ChatGLM2-6B and ChatGLM3-6B.
SHAPES = [(12288, 4096), (4096, 4096), (16384, 4096), (4096, 16384), (130528, 4096)]
SHAPES += [(4608, 4096), (27392, 4096), (4096, 13696), (65024, 4096)]
ROWS: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 512, 2048)
if os.environ.get("QUICK"):  # a sample for a lent GPU
    SHAPES = [(4096, 4096), (16384, 4096), (27392, 4096), (4096, 13696), (65024, 4096)]
    ROWS = (1, 4, 16, 64, 512, 2048)
GROUP_SIZE = 128
CPU_CACHE_BYTES = 64 << 20
# Launches in a graph, at least: a replay then takes much longer than starting it.
MIN_LAUNCHES = 32

# A way makes, from (N, K), one copy of a layer: a function of x, and the bytes of its weights.
Layer = tuple[Callable[[torch.Tensor], torch.Tensor], int]


def ours(bits: int, n: int, k: int) -> Layer:
    """This package: the kernels on a GPU, the backend that suits the processor on a CPU."""
    group_size = GROUP_SIZE if bits == 4 else k
    q = torch.randint(0, 256, (n, k * bits // 8), dtype=torch.uint8, device=DEVICE)
    scales = torch.rand(n, k // group_size, device=DEVICE).half() / 64
    zeros = torch.randint(0, 16, scales.shape, dtype=torch.uint8, device=DEVICE) if bits == 4 else None
    if not ON_GPU:
        scheme = QuantizationScheme(bits=bits, group_size=GROUP_SIZE if bits == 4 else None, symmetric=bits == 8)
        weight = QuantizedWeight(scheme=scheme, packed=q, scales=scales, zero_points=zeros)
        module = QuantizedLinear(weight, None, choose_backend())
        return module, sum(buffer.nbytes for buffer in module.buffers())
    linear = triton_kernels.int4_linear if bits == 4 else triton_kernels.int8_linear
    qweight = triton_kernels.packing.to_planar(q) if bits == 4 else q
    scales = scales.T.contiguous()
    zeros = None if zeros is None else zeros.T.contiguous()
    num_bytes = sum(tensor.nbytes for tensor in (qweight, scales, zeros) if tensor is not None)
    return lambda x: linear(x, qweight, scales, zeros, group_size=group_size), num_bytes


def half(n: int, k: int) -> Layer:
    """Unquantized: float16 on a GPU, bfloat16 on a CPU."""
    weight = torch.randn(n, k, dtype=torch.float16 if ON_GPU else torch.bfloat16, device=DEVICE)
    return lambda x: F.linear(x.to(weight.dtype), weight), weight.nbytes


def official(n: int, k: int) -> Layer:
    """As ChatGLM's own code; see its module."""
    module = OfficialLinear(n, k, torch.device("cuda"))
    return module, module.packed.nbytes + module.scales.nbytes


def tinygemm(n: int, k: int) -> Layer:
    """torch's own INT4 product, bfloat16."""
    packed = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, device="cuda")
    weight = torch.ops.aten._convert_weight_to_int4pack(packed, 8)
    params = torch.rand(k // GROUP_SIZE, n, 2, dtype=torch.bfloat16, device="cuda") / 64
    multiply = torch.ops.aten._weight_int4pack_mm
    return lambda x: multiply(x.bfloat16(), weight, GROUP_SIZE, params), weight.nbytes + params.nbytes


def torchao(n: int, k: int) -> Layer:
    quantization = pytest.importorskip("torchao.quantization")
    module = torch.nn.Sequential(torch.nn.Linear(k, n, bias=False, device="cuda", dtype=torch.bfloat16))
    quantization.quantize_(
        module, quantization.Int4WeightOnlyConfig(group_size=GROUP_SIZE, int4_packing_format="tile_packed_to_4d")
    )
    return lambda x: module(x.bfloat16()), n * k // 2 + 4 * n * k // GROUP_SIZE


def bitsandbytes(n: int, k: int) -> Layer:
    layers = pytest.importorskip("bitsandbytes").nn
    module = layers.Linear4bit(k, n, bias=False, compute_dtype=torch.float16, quant_type="nf4").cuda()
    return module, n * k // 2 + 4 * n * k // 64  # a float32 scale for 64 weights


def cpm_kernels(n: int, k: int) -> Layer:
    """The package that the official code's kernels are loaded through; its INT8 product for a few rows."""
    try:
        kernels = importlib.import_module("cpm_kernels").kernels
    except Exception as error:  # it looks for the driver's libraries when it is imported
        pytest.skip(f"cpm_kernels cannot be imported: {type(error).__name__}: {error}")
    weight = torch.randint(-128, 128, (n, k), dtype=torch.int8, device="cuda")
    scales = torch.rand(n, device="cuda").half() / 64

    def linear(x: torch.Tensor) -> torch.Tensor:
        out = x.new_empty(x.shape[0], n)
        tensors = (tensor.data_ptr() for tensor in (scales, weight, x, out))
        kernels.gemv_broadcast_mat_int8(x.shape[0], n, k, *tensors, torch.cuda.current_stream().cuda_stream)
        return out

    try:
        linear(torch.zeros(1, k, device="cuda").half())
        torch.cuda.synchronize()
    except Exception as error:  # its binaries are for sm_61 to sm_86
        pytest.skip(f"cpm_kernels does not run on this GPU: {type(error).__name__}: {error}")
    return linear, weight.nbytes + scales.nbytes


def gemlite(n: int, k: int) -> Layer:
    helper = pytest.importorskip("gemlite.helper")
    q = torch.randint(0, 16, (n, k), dtype=torch.uint8, device="cuda")
    scales = torch.rand(n, k // GROUP_SIZE, device="cuda").half() / 64
    module = helper.A16Wn().from_weights(q, scales, torch.full_like(scales, 8), 4, GROUP_SIZE)
    return module, n * k // 2 + 2 * scales.nbytes


Way = Callable[[int, int], Layer]
WAYS: dict[str, Way] = {
    "ours int4": functools.partial(ours, 4),
    "ours int8": functools.partial(ours, 8),
    "half": half,
}
GPU_WAYS: dict[str, Way] = {
    "official int4": official,
    "cpm_kernels int8": cpm_kernels,
    "torch int4pack": tinygemm,
    "gemlite int4": gemlite,
    "torchao int4": torchao,
    "bitsandbytes nf4": bitsandbytes,
}


@pytest.fixture(scope="session")
def machine() -> dict[str, Any]:
    """What is measured on, with the bandwidth of a copy (read and written bytes) or, on a CPU, of a sum."""
    found = device_facts()
    if ON_GPU:
        import triton

        found["triton"] = triton.__version__
    return found | {"bandwidth_gb_s": bandwidth.measure_bandwidth(torch.device(DEVICE)) / 1e9}


@functools.cache
def layers(way: str, shape: tuple[int, int]) -> list[Layer]:
    """Copies of a layer that together exceed the cache four times."""
    layers.cache_clear()  # one way and shape at a time in memory
    make = (WAYS | GPU_WAYS)[way]
    first = make(*shape)
    cache = torch.cuda.get_device_properties(0).L2_cache_size if ON_GPU else CPU_CACHE_BYTES
    return [first] + [make(*shape) for _ in range(math.ceil(4 * cache / first[1]) - 1)]


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
@pytest.mark.parametrize("way", WAYS | GPU_WAYS)
def test_linear(benchmark, machine, way, shape, num_rows):
    if way in GPU_WAYS and not ON_GPU:
        pytest.skip("needs a CUDA device")
    if way == "torch int4pack" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs sm_80")
    copies = layers(way, shape)
    x = torch.randn(num_rows, shape[1], dtype=torch.float16 if ON_GPU else torch.float32)
    x = x.cuda() if ON_GPU else x
    repeats = math.ceil(MIN_LAUNCHES / len(copies)) if ON_GPU else 1

    def run() -> None:
        for _ in range(repeats):
            for function, _ in copies:
                function(x)

    with torch.inference_mode():
        if ON_GPU:
            total = graph_seconds(run)
            benchmark.pedantic(lambda: None)  # it has timed none of the graph's replays
        else:
            benchmark.pedantic(run, rounds=5, warmup_rounds=1)
            total = benchmark.stats.stats.median
    seconds = total / (repeats * len(copies))
    speed = copies[0][1] / seconds / 1e9
    benchmark.extra_info |= machine | {
        "way": way,
        "shape": shape,
        "rows": num_rows,
        "microseconds": 1e6 * seconds,
        "weight_gb_s": speed,
        "share": speed / machine["bandwidth_gb_s"],
        "teraflops": 2 * num_rows * shape[0] * shape[1] / seconds / 1e12,
    }
