"""What a prompt takes on a GPU, counted on tensors without values, is what the memory plan says."""

import functools
from dataclasses import replace

import pytest
import torch

from glm_int4.generation import memory_plan
from glm_int4.generation.cuda_graphs import GraphStepper
from glm_int4.generation.decoding import Decoder, _Sequence
from glm_int4.generation.memory_plan import scratch_bytes, size_pieces
from glm_int4.generation.padded_batch import Batch
from glm_int4.measuring.random_weights import open_random
from glm_int4.models.kv_cache import kv_bytes_per_token
from glm_int4.models.presets import CONFIGS
from tests.fake_gpu import META, SETUP, fake_gpu, fake_model

PRESETS = ["chatglm-6b", "chatglm2-6b", "chatglm3-6b"]
ON_GPU = replace(SETUP, device=torch.device("cuda"))
# Of INT4 weights with the defaults on a GPU (``resident_bytes``).
WEIGHT_BYTES = {"chatglm-6b": 3_490_659_264, "chatglm3-6b": 3_523_033_088}
# Two workspaces of cuBLAS, whose steps are captured on a stream of their own: 32 MiB each on sm_90, else 8.
WORKSPACE_BYTES = {75: 2 * 8_519_680, 80: 2 * 8_519_680, 90: 2 * (32 << 20)}
LIBRARY_BYTES = 250_000_000
# Planned without what takes the place of a kernel that fails.
OF_KERNELS = replace(ON_GPU, backend="reference")
MULTIPROCESSORS = {75: 30, 80: 108, 90: 132}


@functools.cache
def prompt_bytes(
    preset,
    num_tokens,
    architecture=80,
    kv_dtype=torch.float16,
    *,
    num_rows=1,
    piece=512,
    fused=True,
    dtype=torch.float16,
):
    """The most that a prompt takes beside weights and cache; the model's config; the ways of attention."""
    from triton_kernels import decode

    with fake_gpu(architecture, MULTIPROCESSORS[architecture]) as (memory, attention):
        length = "max_sequence_length" if preset == "chatglm-6b" else "seq_length"
        model = fake_model(preset, num_layers=1, dtype=dtype, **{length: max(num_tokens, 2048)})
        setup = replace(SETUP, kv_dtype=kv_dtype, stream_dtype=dtype, prompt_rows=piece)
        decoder = Decoder(model, setup, num_tokens)
        if fused:
            decoder._stepper = GraphStepper(model, decode, lambda run: run)
        sequence = _Sequence(decoder.new_cache(num_rows, num_tokens))
        rows = [[5] * (num_tokens - 3 * i) for i in range(num_rows)]
        if model.config.is_causal and num_rows == 1:  # of its pieces, the last ones take most
            sequence.ids = rows[0][: -2 * piece - 76]
            sequence.cache.length = len(sequence.ids)
        batch = Batch(model, rows, META)
        before = memory.live
        memory.reset()
        decoder.prefill(batch, sequence)
        assert not fused or decoder._stepper.fused
        return memory.peak - before, model.config, attention.paths


@pytest.mark.parametrize(("kv_dtype", "fused"), [(torch.float16, False), (torch.int8, False), (torch.float16, True)])
@pytest.mark.parametrize("num_tokens", [128, 2048, 8192])
@pytest.mark.parametrize("preset", PRESETS)
def test_the_plan_has_what_a_prompt_takes_and_little_more(preset, num_tokens, kv_dtype, fused):
    counted, config, _ = prompt_bytes(preset, num_tokens, kv_dtype=kv_dtype, fused=fused)
    planned = scratch_bytes(config, replace(OF_KERNELS, kv_dtype=kv_dtype), num_tokens) - LIBRARY_BYTES
    assert counted <= planned
    assert fused or num_tokens == 128 or planned < 1.15 * counted  # pieces of weights are smaller on some cards


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("num_tokens", [128, 2048])
@pytest.mark.parametrize(
    ("preset", "dtype", "kv_dtype", "architecture"),
    [
        ("chatglm-6b", torch.bfloat16, torch.bfloat16, 80),
        ("chatglm3-6b", torch.bfloat16, torch.int8, 80),
        ("chatglm-6b", torch.float32, torch.float32, 75),
        ("chatglm3-6b", torch.float32, torch.float32, 75),
        ("chatglm3-6b", torch.float32, torch.int8, 80),
    ],
    ids=str,
)
def test_the_plan_knows_a_wider_stream(preset, dtype, kv_dtype, architecture, num_tokens, fused):
    counted, config, _ = prompt_bytes(preset, num_tokens, architecture, kv_dtype, dtype=dtype, fused=fused)
    setup = replace(OF_KERNELS, stream_dtype=dtype, kv_dtype=kv_dtype)
    planned = scratch_bytes(config, setup, num_tokens) - LIBRARY_BYTES
    assert counted <= planned
    assert num_tokens == 128 or planned < 1.4 * counted


@pytest.mark.parametrize("piece", memory_plan._PIECES)
def test_the_plan_has_what_larger_pieces_take(piece):
    counted, config, _ = prompt_bytes("chatglm3-6b", 8192, piece=piece)
    planned = scratch_bytes(config, replace(OF_KERNELS, prompt_rows=piece), 8192) - LIBRARY_BYTES
    assert counted <= planned < 1.2 * counted


def peak_bytes(preset, num_tokens, architecture, kv_dtype, piece=512):
    """Weights, a cache that is as long as the prompt, what the prompt takes, and cuBLAS."""
    counted, config, _ = prompt_bytes(preset, num_tokens, architecture, kv_dtype, piece=piece)
    cache = num_tokens * kv_bytes_per_token(28, config.num_kv_heads, config.head_dim, kv_dtype)
    return WEIGHT_BYTES[preset] + cache + counted + WORKSPACE_BYTES[architecture]


@pytest.mark.parametrize("architecture", [75, 80, 90])
@pytest.mark.parametrize(("kv_dtype", "limit"), [(torch.float16, 4.6e9), (torch.int8, 4.2e9)], ids=["fp16", "int8"])
def test_chatglm_6b_with_2048_tokens_stays_under_its_bar(kv_dtype, limit, architecture):
    for num_tokens in (2048, 512):  # fewer rows have larger pieces of weights
        shorter = prompt_bytes("chatglm-6b", num_tokens, architecture, kv_dtype)[0]
        assert shorter <= prompt_bytes("chatglm-6b", 2048, architecture, kv_dtype)[0]
    assert peak_bytes("chatglm-6b", 2048, architecture, kv_dtype) <= limit


@pytest.mark.parametrize("piece", [512, 2048])
@pytest.mark.parametrize(("architecture", "limit"), [(75, 8e9), (80, 5.2e9)])
def test_chatglm3_6b_32k_with_32768_tokens_stays_under_its_bar(architecture, limit, piece):
    assert peak_bytes("chatglm3-6b", 32768, architecture, torch.float16, piece) <= limit


@pytest.mark.parametrize("architecture", [75, 80, 90])
@pytest.mark.parametrize("preset", PRESETS)
def test_prompts_and_padded_batches_never_take_plain_attention(preset, architecture):
    for fused in (False, True):
        alone, _, paths = prompt_bytes(preset, 700, architecture, fused=fused)
        assert set(paths) == {"efficient" if architecture == 75 else "flash"}
    together, config, paths = prompt_bytes(preset, 700, architecture, num_rows=2)
    assert set(paths) == {"efficient"}
    scores = 4 * 2 * config.num_heads * 700 * 700
    assert together < 2 * alone + scores / 4


@pytest.mark.parametrize(("preset", "most"), [("chatglm-6b", 8), ("chatglm3-6b", 6)])
def test_a_layer_of_a_prompt_is_few_launches_beside_its_products(preset, most):
    """Two norms with their sums, rotary embedding and cache, attention; and what finishes a product."""
    from triton_kernels import decode

    counts = []
    for num_layers in (1, 2):
        with fake_gpu() as (memory, _):
            model = fake_model(preset, num_layers)
            stepper = GraphStepper(model, decode, lambda run: run)
            cache = Decoder(model, SETUP, 512).new_cache(1, 512)
            batch = Batch(model, [[5] * 512], META)
            memory.launches.clear()
            stepper.last_hidden_state(batch.token_ids, batch.positions, batch.prefill_mask(torch.float16), cache)
            assert stepper.fused
            counts.append(memory.launches)
    a_layer = counts[1] - counts[0]
    assert a_layer["mm"] == a_layer["dequantize_kernel"] > 0
    assert a_layer.total() - 2 * a_layer["mm"] <= most


def test_pieces_are_as_large_as_the_memory_allows(monkeypatch):
    _, info = open_random("chatglm3-6b", CONFIGS["chatglm3-6b"], 4, torch.device("cpu"), num_layers=1)
    monkeypatch.setattr(memory_plan, "free_bytes", lambda device: 0)
    need = {rows: memory_plan._planner(info, replace(ON_GPU, prompt_rows=rows), 0)(8192) for rows in (512, 1024, 2048)}
    for free, rows in (
        (10**12, 2048),
        (need[2048].total_bytes, 2048),
        (need[2048].total_bytes - 1, 1024),
        (need[1024].total_bytes - 1, 512),
        (1, 512),
    ):
        monkeypatch.setattr(memory_plan, "free_bytes", lambda device, free=free: free)
        assert size_pieces(info, ON_GPU).prompt_rows == rows
    monkeypatch.setattr(memory_plan, "free_bytes", lambda device: 10**12)
    assert size_pieces(info, replace(ON_GPU, device=torch.device("cpu"))).prompt_rows == 512
    assert size_pieces(info, ON_GPU, 100).prompt_rows == 2048
