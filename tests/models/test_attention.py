"""Attention over every kind of cache against plain attention."""

import threading
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention.bias import causal_lower_right

from glm_int4.models import attention
from glm_int4.models.attention import attention_fn, cached_attention
from glm_int4.models.kv_cache import KVCache, kv_bytes_per_token
from glm_int4.models.past import AttentionMask
from tests.fake_gpu import fake_gpu
from tests.tolerances import FLOAT32_RELATIVE_RMS, INT8_CACHE_RELATIVE_RMS, relative_rms

SHAPES = {"v1": (4, 4), "v2": (8, 2)}  # query heads, key/value heads


def filled(num_heads, num_kv_heads, batch_size, num_tokens, dtype):
    """A cache of num_tokens - 1 columns, the last token's q, k, v, and all keys and values in float32."""
    generator = torch.Generator().manual_seed(num_tokens)
    k, v = torch.randn(2, batch_size, num_tokens, num_kv_heads, 16, generator=generator)
    q = torch.randn(batch_size, 1, num_heads, 16, generator=generator)
    cache = KVCache(1, batch_size, num_kv_heads, 16, num_tokens + 3, dtype=dtype)
    cache.append(0, k[:, :-1], v[:, :-1])
    cache.advance(num_tokens - 1)
    return cache, q, k, v


@pytest.mark.parametrize("heads", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("num_tokens", [1, 2, 37])
@pytest.mark.parametrize("padding", [None, [0, 0], [0, 1]])
def test_one_token_over_a_half_precision_cache_is_plain_attention(heads, num_tokens, padding):
    padding = None if padding is None else torch.tensor(padding).clamp(max=num_tokens - 1)
    cache, q, k, v = filled(*heads, 2, num_tokens, torch.float16)
    mask = AttentionMask(padding=padding)
    out = cached_attention(q, k[:, -1:], v[:, -1:], mask, cache, 0)
    k, v = k.half().float().transpose(1, 2), v.half().float().transpose(1, 2)
    expected = attention_fn(q.transpose(1, 2), k, v, mask)
    assert out.shape == expected.shape
    assert relative_rms(out, expected) < FLOAT32_RELATIVE_RMS


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["loop", "torch"])
@pytest.mark.parametrize("heads", SHAPES.values(), ids=SHAPES)
def test_padding_stands_behind_the_prefix(heads, dtype):
    cache, q, k, v = filled(*heads, 2, 37, dtype)
    out = cached_attention(
        q, k[:, -1:], v[:, -1:], AttentionMask(padding=torch.tensor([0, 9]), prefix_length=4), cache, 0
    )
    k, v = (x.to(dtype).float().transpose(1, 2) for x in (k, v))
    for row, columns in enumerate(([*range(37)], [*range(4), *range(13, 37)])):
        rows = slice(row, row + 1)
        expected = attention_fn(q[rows].transpose(1, 2), k[rows, :, columns], v[rows, :, columns], AttentionMask())
        assert relative_rms(out[rows], expected) < FLOAT32_RELATIVE_RMS


@pytest.mark.parametrize("heads", SHAPES.values(), ids=SHAPES)
def test_an_int8_cache_errs_by_its_rounding_alone(heads):
    cache, q, k, v = filled(*heads, 2, 37, torch.int8)
    mask = AttentionMask(padding=torch.tensor([0, 5]))
    out = cached_attention(q, k[:, -1:], v[:, -1:], mask, cache, 0)
    exact = attention_fn(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask)
    assert 0 < relative_rms(out, exact) < INT8_CACHE_RELATIVE_RMS
    stored = attention_fn(q.transpose(1, 2), *cache.read(0, 37, torch.float32), mask)
    assert relative_rms(out, stored) < FLOAT32_RELATIVE_RMS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8])
def test_extreme_keys_and_values_stay_finite_in_the_cache(dtype):
    k = torch.tensor([0.0, 65504.0, -65504.0, 6e-8, -6e-8, 1.0, 1e-5, -0.0]).view(1, 2, 1, 4)
    cache = KVCache(1, 1, 1, 4, 2, dtype=dtype)
    cache.append(0, k, torch.zeros_like(k))
    keys, values = cache.read(0, 2, torch.float32)
    bound = (
        (k.abs().amax(-1, keepdim=True) / 127).clamp(min=2**-24) if dtype == torch.int8 else k.abs() * 2**-11 + 2**-24
    )
    assert ((keys.transpose(1, 2) - k).abs() <= bound).all()
    assert (values == 0).all()


def test_a_new_token_of_many_rows_attends_causally_to_what_was_there():
    cache, q, k, v = filled(8, 2, 1, 12, torch.float32)
    q = torch.randn(1, 12, 8, 16, generator=torch.Generator().manual_seed(1))
    full = attention_fn(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), AttentionMask())
    cache.truncate(7)
    rest = cached_attention(q[:, 7:], k[:, 7:], v[:, 7:], AttentionMask(), cache, 0)
    torch.testing.assert_close(rest, full[:, 7:])


def test_bytes_per_token_are_those_of_the_tensors():
    for dtype in (torch.float16, torch.float32, torch.int8):
        cache = KVCache(3, 1, 2, 16, 10, dtype=dtype)
        tensors = (cache.k, cache.v, cache.k_scales, cache.v_scales)
        assert sum(x.numel() * x.element_size() for x in tensors) == 10 * kv_bytes_per_token(3, 2, 16, dtype)


@pytest.mark.parametrize("num_kv_heads", [1, 4])
def test_the_triangle_of_a_gpu_is_that_of_the_mask(num_kv_heads):
    q, k, v = torch.randn(2, 4, 3, 16), torch.randn(2, num_kv_heads, 7, 16), torch.randn(2, num_kv_heads, 7, 16)
    expected = attention._causal_attention(q, k, v)
    torch.testing.assert_close(attention._lower_right_attention(q, k, v), expected)


@pytest.mark.parametrize("kind", ["all", "causal", "lower right", "bias", "padding"])
def test_heads_that_share_keys_say_the_same_group_by_group(kind):
    num_rows = {"causal": 7, "padding": 1}.get(kind, 3)
    q, k, v = torch.randn(2, 6, num_rows, 16), torch.randn(2, 2, 7, 16), torch.randn(2, 2, 7, 16)
    mask = {
        "bias": torch.randn(2, 1, num_rows, 7),
        "padding": torch.tensor([0, 3])[:, None, None, None] <= torch.arange(7),
        "lower right": causal_lower_right(num_rows, 7),
    }.get(kind)
    expected = attention._attend(q, k, v, mask, is_causal=kind == "causal")
    out = attention._attend_by_key_head(q, k, v, mask, is_causal=kind == "causal")
    assert out.shape == expected.shape
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(("architecture", "path"), [(75, "efficient"), (80, "flash"), (90, "flash")])
@pytest.mark.parametrize("num_rows", [1, 5, 9])
def test_shared_keys_take_no_plain_attention_on_any_card(num_rows, architecture, path):
    with fake_gpu(architecture) as (_, ways):
        q = torch.empty(2, 32, num_rows, 128, device="meta", dtype=torch.float16)
        k = torch.empty(2, 2, 9, 128, device="meta", dtype=torch.float16)
        attention_fn(q, k, k, AttentionMask())
        assert set(ways.paths) == {path}
        padded = AttentionMask(padding=torch.zeros(2, dtype=torch.int64, device="meta"))
        bias = AttentionMask(bias=torch.empty(2, 1, num_rows, 9, device="meta", dtype=torch.float16))
        ways.paths.clear()
        attention_fn(q, k, k, padded if num_rows == 1 else bias)
        assert set(ways.paths) == {"efficient"}
        ways.paths.clear()
        attention_fn(q.float(), k.float(), k.float(), AttentionMask())
        assert set(ways.paths) == {"efficient"}


WAYS = ("flash_sdp", "mem_efficient_sdp", "math_sdp", "cudnn_sdp")


def ways():
    """Which of torch's ways to compute attention on a GPU may be taken now."""
    return [name for name in WAYS if getattr(torch.backends.cuda, f"{name}_enabled")()]


@pytest.fixture
def on_gpu(monkeypatch):
    """Let attention take CPU tensors for a GPU's; collects the ways that each call may take."""
    seen = []

    class OnGPU(torch.Tensor):
        is_cuda = True

    def record(q, k, v, **options):
        seen.append(ways())
        plain = [x.as_subclass(torch.Tensor) for x in (q, k, v)]
        if hasattr(options["attn_mask"], "_materialize"):  # torch's triangle, which knows its own function alone
            options["attn_mask"] = options["attn_mask"]._materialize()
        return attend_by_torch(*plain, **options)

    attend_by_torch = attention.F.scaled_dot_product_attention
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", record)
    return SimpleNamespace(seen=seen, tensor=lambda *shape: torch.randn(*shape).as_subclass(OnGPU), record=record)


@pytest.mark.parametrize(
    ("num_new", "mask"),
    [
        (1, AttentionMask()),
        (1, AttentionMask(padding=torch.tensor([2]))),
        (7, AttentionMask()),
        (4, AttentionMask()),
        (7, AttentionMask(context_length=5)),
        (7, AttentionMask(bias=torch.zeros(1, 1, 7, 7))),
    ],
    ids=["token", "padded token", "causal", "piece", "context", "bias"],
)
def test_no_attention_on_a_gpu_is_cudnn_s_which_plans_every_shape_anew(on_gpu, num_new, mask):
    before = ways()
    assert "cudnn_sdp" in before
    attention_fn(on_gpu.tensor(1, 4, num_new, 16), *(on_gpu.tensor(1, 4, 7, 16) for _ in range(2)), mask)
    assert on_gpu.seen
    assert all(seen == ["flash_sdp", "mem_efficient_sdp", "math_sdp"] for seen in on_gpu.seen)
    assert ways() == before


def test_what_a_program_has_chosen_for_itself_comes_back(on_gpu):
    inputs = [on_gpu.tensor(1, 4, 7, 16) for _ in range(3)]
    for allowed in ([], ["cudnn_sdp"], ["math_sdp", "cudnn_sdp"], list(WAYS)):
        with pytest.MonkeyPatch.context() as patch:
            try:
                for name in WAYS:
                    getattr(torch.backends.cuda, f"enable_{name}")(name in allowed)
                attention_fn(*inputs, AttentionMask())
                assert ways() == allowed
                patch.setattr(attention.F, "scaled_dot_product_attention", lambda *inputs, **options: 1 // 0)
                with pytest.raises(ZeroDivisionError):
                    attention_fn(*inputs, AttentionMask())
                assert ways() == allowed
            finally:
                for name in WAYS:
                    getattr(torch.backends.cuda, f"enable_{name}")(True)


def test_threads_that_attend_together_leave_no_trace(on_gpu, monkeypatch):
    """The first to come sees cuDNN allowed, the others do not: who leaves last gives back what the first has seen."""
    first_in, second_in = threading.Event(), threading.Event()

    def meet(q, k, v, **options):
        mine, others = (first_in, second_in) if threading.current_thread() is first else (second_in, first_in)
        mine.set()
        assert others.wait(10)
        return on_gpu.record(q, k, v, **options)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", meet)
    inputs = [on_gpu.tensor(1, 4, 7, 16) for _ in range(3)]
    first, second = (threading.Thread(target=attention_fn, args=(*inputs, AttentionMask())) for _ in range(2))
    first.start()
    assert first_in.wait(10)
    second.start()
    for thread in (first, second):
        thread.join(10)
    assert len(on_gpu.seen) == 2
    assert all("cudnn_sdp" not in seen for seen in on_gpu.seen)
    assert ways() == list(WAYS)


def test_on_a_cpu_nothing_is_switched(monkeypatch):
    monkeypatch.setattr(attention._OtherThanCudnn, "__enter__", lambda self: pytest.fail("was entered"))
    attention_fn(*(torch.randn(1, 4, 7, 16) for _ in range(3)), AttentionMask())
