"""The kernels of a one-token step compute what the reference says."""

import math

import pytest
import torch

from tests.tolerances import BFLOAT16_RELATIVE_RMS, FLOAT16_RELATIVE_RMS, FLOAT32_RELATIVE_RMS, relative_rms
from tests.triton_kernels.matrices import guarded, poison
from tests.triton_kernels.on_cpu import WIDER
from triton_kernels import decode, launch, reference

# (query heads, key heads, elements of a head), rows: version 1 and versions 2 and 3, in small.
VERSIONS = {"v1": (3, 3, 32, True), "v2": (8, 2, 16, False)}


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    check = poison(monkeypatch)
    yield
    check()


def random(*shape, dtype=torch.float16):
    return guarded(torch.randn(shape, generator=torch.Generator().manual_seed(math.prod(shape))).to(dtype))


def tolerance(dtype):
    return BFLOAT16_RELATIVE_RMS if dtype == torch.bfloat16 else FLOAT16_RELATIVE_RMS


def cache(num_kv_heads, head_dim, length, kind, num_slots=3):
    """Keys and values of slots whose last quarter was never written."""
    valid = 3 * length // 4
    parts = []
    for _ in range(2):
        floats = torch.float16 if kind == torch.int8 else kind
        values = random(num_slots, num_kv_heads, length, head_dim, dtype=floats)
        if kind == torch.int8:
            values = (40 * values).clamp(-127, 127).to(torch.int8)
        else:
            values[:, :, valid:] = math.nan
        parts.append(values)
    scales = [torch.rand(num_slots, num_kv_heads, length if kind == torch.int8 else 0).half() / 64 for _ in range(2)]
    for scale in scales:
        scale[:, :, valid:] = math.nan
    return (*parts, *scales), valid


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float16], ids=str)
@pytest.mark.parametrize("columns", [30, 3000])
def test_rows_of_a_table_by_their_numbers(columns, dtype):
    table, ids = (100 * random(5, columns)).to(dtype), torch.tensor([4, 0, 4])
    assert torch.equal(decode.gather_rows(table, ids), table[ids])


@pytest.mark.parametrize("dtype", [torch.float16, *WIDER], ids=str)
@pytest.mark.parametrize("columns", [64, 100, 256])
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("bias", [False, True], ids=["rms", "layer"])
def test_norms_of_sums(bias, residual, columns, dtype):
    size = 1 if dtype == torch.float16 else 1e5
    x, weight = random(3, columns, dtype=dtype) * 4 * size + size, random(columns, dtype=dtype)
    given = (weight, random(columns) if bias else None, random(3, columns, dtype=dtype) * size if residual else None)
    total, out = decode.add_norm(x, *given, alpha=7.5, eps=1e-5)
    expected_total, expected = reference.add_norm(x, *given, alpha=7.5, eps=1e-5)
    if dtype == torch.float32:
        assert relative_rms(total, expected_total) < FLOAT32_RELATIVE_RMS
    else:
        assert torch.equal(total, expected_total)
    assert out.dtype == total.dtype == dtype
    assert relative_rms(out, expected) < tolerance(dtype)


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [(torch.float16, torch.float16), *((dtype, dtype) for dtype in WIDER)]
    + [(dtype, torch.int8) for dtype in (torch.float16, *WIDER)],
    ids=str,
)
@pytest.mark.parametrize("version", VERSIONS)
def test_rotated_queries_and_what_the_cache_keeps(version, dtype, kind):
    num_heads, num_kv_heads, head_dim, two_dimensional = VERSIONS[version]
    qkv = random(2, (num_heads + 2 * num_kv_heads) * head_dim, dtype=dtype)[[0, 1, 0]]  # the last row copies the first
    angles = 3 * torch.rand(20, head_dim // 4)
    positions = torch.tensor([[3, 19], [0, 7], [3, 19]])[:, : 2 if two_dimensional else 1].contiguous()
    slots, columns = torch.tensor([2, 0, 2]), torch.tensor([10, 4, 10])
    options = {"num_heads": num_heads, "two_dimensional": two_dimensional}
    before, results = cache(num_kv_heads, head_dim, 12, kind)[0], []
    for path in (decode, reference):
        stored = [part.clone() for part in before]
        arguments = (qkv, guarded(angles.cos()), guarded(angles.sin()), positions, slots, columns)
        results.append((path.rotary_to_cache(*arguments, *stored, **options), stored))
    (q, stored), (expected_q, expected) = results
    assert q.dtype == dtype
    assert relative_rms(q, expected_q) < tolerance(dtype)
    for part, other, old in zip(stored, expected, before, strict=True):
        if part.numel():
            difference = part[slots, :, columns].float() - other[slots, :, columns].float()
            assert difference.abs().max() <= (1 if kind == torch.int8 else 4 * tolerance(kind))  # a rounding of either
            for written in (part, other):
                written[slots, :, columns] = old[slots, :, columns]
                assert torch.equal(written.nan_to_num(), old.nan_to_num())


def test_integers_of_the_cache_are_rounded_to_even_and_zeros_stay_zeros():
    stored = [torch.zeros(1, 1, 1, 16, dtype=torch.int8) for _ in range(2)]
    stored += [torch.zeros(1, 1, 1).half() for _ in range(2)]
    value = torch.zeros(16).half()
    value[:5] = torch.tensor([127, 0.5, 1.5, -2.5, -127]).half()
    qkv = torch.cat((torch.zeros(32).half(), value))[None]
    tables = torch.ones(1, 4), torch.zeros(1, 4)
    zero = torch.zeros(1, dtype=torch.int64)
    decode.rotary_to_cache(qkv, *tables, zero[None], zero, zero, *stored, num_heads=1, two_dimensional=False)
    assert stored[1][0, 0, 0, :5].tolist() == [127, 0, 2, -2, -127]
    assert not stored[0].any()


@pytest.mark.parametrize(
    ("dtype", "kind", "tensor_cores"),
    [
        (dtype, kind, tensor_cores)
        for dtype in (torch.float16, *WIDER)
        for kind in (dtype, torch.int8)
        for tensor_cores in (False, True)
        if not tensor_cores or dtype != torch.float32
    ],
    ids=str,
)
@pytest.mark.parametrize("version", VERSIONS)
def test_attention_to_a_cache(version, dtype, kind, tensor_cores, monkeypatch):
    num_heads, num_kv_heads, head_dim, _ = VERSIONS[version]
    row = launch.attention(num_heads // num_kv_heads, tensor_cores=tensor_cores)
    monkeypatch.setattr(launch, "attention", lambda heads, tensor_cores: row)
    stored, valid = cache(num_kv_heads, head_dim, 200, kind)
    q, slots = random(2, num_heads, head_dim, dtype=dtype), torch.tensor([2, 0])
    for lengths, padding, prefix_length in (
        ([valid, valid], [0, 70], 0),
        ([1, 1], [0, 0], 0),
        ([130, 130], [65, 3], 2),
        ([7, 129], [0, 0], 0),
    ):
        arguments = (q, *stored, slots, torch.tensor(lengths), torch.tensor(padding))
        out = decode.one_token_attention(*arguments, prefix_length=prefix_length, max_columns=200)
        expected = reference.one_token_attention(*arguments, prefix_length=prefix_length, max_columns=max(lengths))
        assert out.dtype == dtype
        assert relative_rms(out, expected) < tolerance(dtype)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_bound_of_the_length_does_not_show(version):
    num_heads, num_kv_heads, head_dim, _ = VERSIONS[version]
    stored, _ = cache(num_kv_heads, head_dim, 400, torch.float16)
    numbers = torch.tensor([[0, 1], [90, 70], [0, 5]])
    arguments = (random(2, num_heads, head_dim), *stored, *numbers)
    first, second = (decode.one_token_attention(*arguments, max_columns=columns) for columns in (90, 400))
    assert torch.equal(first, second)


def test_many_splits_are_merged():
    stored, valid = cache(1, 16, 1600, torch.float16, num_slots=1)
    arguments = (8 * random(1, 2, 16), *stored, torch.tensor([0]), torch.tensor([valid]), torch.tensor([0]))
    assert valid > launch.MERGE_BLOCK * launch.attention(2, tensor_cores=True).block_s
    out = decode.one_token_attention(*arguments, max_columns=1600)
    expected = reference.one_token_attention(*arguments, max_columns=1600)
    assert relative_rms(out, expected) < FLOAT16_RELATIVE_RMS
