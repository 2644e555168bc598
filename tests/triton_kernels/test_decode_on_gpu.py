"""The kernels of a one-token step on a GPU, at the models' real sizes: ``pytest -m gpu``. Skips where there is none."""

import math

import pytest
import torch

from tests.tolerances import FLOAT16_RELATIVE_RMS, relative_rms
from triton_kernels import reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
# Query heads, key heads; heads have 128 elements.
VERSIONS = {"v1": (32, 32), "v2": (32, 2)}
HEAD_DIM = 128


def random(*shape):
    generator = torch.Generator("cuda").manual_seed(math.prod(shape) % 1000)
    return torch.randn(shape, generator=generator, device="cuda").half()


def cache(version, batch_size, length, int8):
    shape = (batch_size, VERSIONS[version][1], length, HEAD_DIM)
    k, v = random(*shape), random(*shape) + 0.1
    if not int8:
        return k, v, k.new_empty(0), v.new_empty(0)
    scales = random(*shape[:3]).abs() / 64 + 0.001
    return (*((40 * x).clamp(-127, 127).to(torch.int8) for x in (k, v)), scales, scales.flip(1).contiguous())


def attend(version, batch_size, length, int8, max_columns, path):
    padding = torch.arange(batch_size, device="cuda") % length
    q = random(batch_size, VERSIONS[version][0], HEAD_DIM)
    stored = cache(version, batch_size, max_columns, int8)
    slots = torch.arange(batch_size, device="cuda").flip(0)
    lengths = (length - slots).clamp(min=1)
    padding = padding.minimum(lengths - 1)
    return path.one_token_attention(q, *stored, slots, lengths, padding, max_columns=max_columns)


@pytest.fixture
def decode():
    return pytest.importorskip("triton_kernels.decode")


@pytest.mark.parametrize("int8", [False, True], ids=["fp16", "int8"])
@pytest.mark.parametrize("version", VERSIONS)
def test_attention_to_real_caches(decode, version, int8):
    lengths = (1, 63, 64, 65, 129, 2047, 2048) + ((8192, 32768) if version == "v2" else ())
    for length in lengths:
        for batch_size in (1, 4, 16) if length < 8192 else (1,):
            arguments = (version, batch_size, length, int8, max(length, 256))
            expected = attend(*arguments, reference)
            assert relative_rms(attend(*arguments, decode), expected) < FLOAT16_RELATIVE_RMS


@pytest.mark.parametrize("version", VERSIONS)
def test_attention_repeats_bit_for_bit_whatever_the_bound(decode, version):
    q = random(2, VERSIONS[version][0], HEAD_DIM)
    stored = cache(version, 2, 2048, False)
    numbers = torch.tensor([[1, 0], [700, 400], [0, 0]], device="cuda")
    first = decode.one_token_attention(q, *stored, *numbers, max_columns=1024)
    for bound in (2048,) * 100:
        assert torch.equal(decode.one_token_attention(q, *stored, *numbers, max_columns=bound), first)


@pytest.mark.parametrize("int8", [False, True], ids=["fp16", "int8"])
@pytest.mark.parametrize("version", VERSIONS)
def test_rotation_and_what_the_cache_keeps(decode, version, int8):
    num_heads, num_kv_heads = VERSIONS[version]
    two_dimensional = version == "v1"
    qkv = random(3, (num_heads + 2 * num_kv_heads) * HEAD_DIM)
    angles = 3 * torch.rand(2050, HEAD_DIM // 4, device="cuda")
    positions = torch.tensor([[3, 1999], [0, 7], [2049, 1]], device="cuda")[
        :, : 2 if two_dimensional else 1
    ].contiguous()
    slots, columns = torch.tensor([[2, 0, 1], [1000, 3, 2047]], device="cuda")
    results = []
    for path in (decode, reference):
        stored = [part.clone() for part in cache(version, 3, 2048, int8)]
        options = {"num_heads": num_heads, "two_dimensional": two_dimensional}
        q = path.rotary_to_cache(qkv, angles.cos(), angles.sin(), positions, slots, columns, *stored, **options)
        results.append([q, *(part.float() for part in stored)])
    for i, (ours, theirs) in enumerate(zip(*results, strict=True)):
        if i in (1, 2) and int8:
            assert (ours - theirs).abs().max() <= 1  # a tie that fell the other way
        elif ours.numel():
            assert relative_rms(ours, theirs) < FLOAT16_RELATIVE_RMS


@pytest.mark.parametrize("num_rows", [1, 7, 16])
@pytest.mark.parametrize("layer", [False, True], ids=["rms", "layer"])
def test_norms_of_sums(decode, layer, num_rows):
    x, residual = 3 * random(num_rows, 4096) + 1, random(num_rows, 4096)
    given = (random(4096), random(4096) if layer else None, residual)
    results = [path.add_norm(x, *given, alpha=7.4833) for path in (decode, reference)]
    for ours, theirs in zip(*results, strict=True):
        assert relative_rms(ours, theirs) < FLOAT16_RELATIVE_RMS


def test_each_kernel_once(decode):
    """For compute-sanitizer (``make sanitize``)."""
    for version in VERSIONS:
        for int8 in (False, True):
            assert attend(version, 2, 100, int8, 256, decode).isfinite().all()
    test_rotation_and_what_the_cache_keeps(decode, "v1", True)
    test_norms_of_sums(decode, True, 2)
