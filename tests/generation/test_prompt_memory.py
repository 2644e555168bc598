"""What a prompt takes on a GPU, counted on tensors without values, is what the memory plan says."""

import functools
from dataclasses import replace

import pytest
import torch

from glm_int4.generation.decoding import Decoder, _Sequence
from glm_int4.generation.memory_plan import scratch_bytes
from glm_int4.generation.padded_batch import Batch
from glm_int4.models.kv_cache import kv_bytes_per_token
from tests.fake_gpu import META, SETUP, fake_gpu, fake_model

PRESETS = ["chatglm-6b", "chatglm2-6b", "chatglm3-6b"]
# Of INT4 weights with the defaults on a GPU (``resident_bytes``).
WEIGHT_BYTES = {"chatglm-6b": 3_490_659_264, "chatglm3-6b": 3_523_033_088}
# What cuBLAS takes for a stream.
WORKSPACE_BYTES = {75: 8.6e6, 80: 8.6e6, 90: 33.6e6}


@functools.cache
def prompt_bytes(preset, num_tokens, architecture=80, kv_dtype=torch.float16, num_rows=1):
    """The most that a prompt takes beside weights and cache, the cache's bytes a token, and the ways of attention."""
    with fake_gpu(architecture) as (memory, attention):
        length = "max_sequence_length" if preset == "chatglm-6b" else "seq_length"
        model = fake_model(preset, num_layers=1, **{length: max(num_tokens, 2048)})
        decoder = Decoder(model, replace(SETUP, kv_dtype=kv_dtype), num_tokens)
        sequence = _Sequence(decoder.new_cache(num_rows, num_tokens))
        rows = [[5] * (num_tokens - 3 * i) for i in range(num_rows)]
        if model.config.is_causal and num_rows == 1:  # of its pieces, the last ones take most
            sequence.ids = rows[0][:-1100]
            sequence.cache.length = len(sequence.ids)
        batch = Batch(model, rows, META)
        before = memory.live
        memory.reset()
        decoder.prefill(batch, sequence)
        return memory.peak - before, model.config, attention.paths


def planned_bytes(config, num_tokens, kv_dtype=torch.float16):
    """Of the plan, without what libraries take."""
    setup = replace(SETUP, device=torch.device("cuda"), kv_dtype=kv_dtype)
    return scratch_bytes(config, setup, num_tokens) - 250_000_000


@pytest.mark.parametrize("kv_dtype", [torch.float16, torch.int8], ids=["fp16", "int8"])
@pytest.mark.parametrize("num_tokens", [128, 2048, 8192])
@pytest.mark.parametrize("preset", PRESETS)
def test_the_plan_has_what_a_prompt_takes_and_little_more(preset, num_tokens, kv_dtype):
    counted, config, _ = prompt_bytes(preset, num_tokens, kv_dtype=kv_dtype)
    planned = planned_bytes(config, num_tokens, kv_dtype)
    assert counted <= planned
    assert num_tokens == 128 or planned < 1.07 * counted


def peak_bytes(preset, num_tokens, architecture, kv_dtype):
    """Weights, a cache that is as long as the prompt, what the prompt takes, and cuBLAS."""
    counted, config, _ = prompt_bytes(preset, num_tokens, architecture, kv_dtype)
    cache = num_tokens * kv_bytes_per_token(28, config.num_kv_heads, config.head_dim, kv_dtype)
    return WEIGHT_BYTES[preset] + cache + counted + WORKSPACE_BYTES[architecture]


@pytest.mark.parametrize("architecture", [75, 80, 90])
@pytest.mark.parametrize(("kv_dtype", "limit"), [(torch.float16, 4.6e9), (torch.int8, 4.2e9)], ids=["fp16", "int8"])
def test_chatglm_6b_with_2048_tokens_stays_under_its_bar(kv_dtype, limit, architecture):
    assert peak_bytes("chatglm-6b", 2048, architecture, kv_dtype) <= limit


@pytest.mark.parametrize(("architecture", "limit"), [(75, 8e9), (80, 5.2e9)])
def test_chatglm3_6b_32k_with_32768_tokens_stays_under_its_bar(architecture, limit):
    assert peak_bytes("chatglm3-6b", 32768, architecture, torch.float16) <= limit


@pytest.mark.parametrize("architecture", [75, 80, 90])
@pytest.mark.parametrize("preset", PRESETS)
def test_prompts_and_padded_batches_never_take_plain_attention(preset, architecture):
    alone, _, paths = prompt_bytes(preset, 700, architecture)
    assert "math" not in paths
    together, config, paths = prompt_bytes(preset, 700, architecture, num_rows=2)
    assert "math" not in paths
    scores = 4 * 2 * config.num_heads * 700 * 700
    assert together < 2 * alone + scores / 4
