"""Fused operations give what the modules give: here in plain torch, on_cpu/ runs the kernels."""

import pytest
import torch

import glm_int4
from glm_int4.models import gpu_step
from tests.conftest import FIXTURES
from tests.models.steps import ROWS, compare, compare_prompts
from tests.models.wide_stream import FLOAT16_MAX, largest_activation, widen
from triton_kernels import reference


@pytest.mark.parametrize("kv_bits", [16, 8])
@pytest.mark.parametrize("version", ["1", "2", "3"])
def test_steps_have_the_logits_of_the_modules(version, kv_bits):
    for batch_size, prefix_length in ((1, 0), (2, 0), (2, 3)):
        logits = compare(version, reference, kv_bits, batch_size, prefix_length)
        assert logits[0].shape == (batch_size, 160)


@pytest.mark.parametrize("kv_bits", [16, 8])
@pytest.mark.parametrize("version", ["1", "2", "3"])
def test_prompts_have_the_hidden_states_and_the_cache_of_the_modules(version, kv_bits, monkeypatch):
    monkeypatch.setattr(gpu_step, "_WIDE_ROWS", 4)
    for prefix_length in (0, 3):
        compare_prompts(version, reference, kv_bits, prefix_length)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("version", ["1", "2", "3"])
def test_a_wider_stream_passes_the_range_of_float16(version, dtype):
    folder, ids = FIXTURES / f"v{version}_tiny", ROWS[min(version, "2")][1]
    exact, narrow = (
        glm_int4.load(folder, device="cpu", dtype=kind, model_version=version)
        for kind in (torch.float32, torch.float16)
    )
    widen(exact.model)
    widen(narrow.model)
    assert largest_activation(exact, ids) > FLOAT16_MAX
    assert not narrow.logits(ids).isfinite().all()
    for kv_bits in (16, 8):
        compare(version, reference, kv_bits, prefix_length=3, dtype=dtype, change=widen)
        compare_prompts(version, reference, kv_bits, prefix_length=3, dtype=dtype, change=widen)


def test_padded_prompts_and_single_tokens_are_left_to_others():
    glm = glm_int4.load(FIXTURES / "v2_tiny", device="cpu", dtype=torch.float16)
    cache = glm._decoder.new_cache(2, 8)
    ids, mask = torch.tensor([[5, 6, 7]]), gpu_step.AttentionMask()
    assert gpu_step.PromptPass.takes(ids, mask, cache)
    assert not gpu_step.PromptPass.takes(ids[:, :1], mask, cache)
    assert not gpu_step.PromptPass.takes(ids.expand(2, -1), mask, cache)
    assert not gpu_step.PromptPass.takes(ids, mask, None)


@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize("name", ["all_linear", "dora", "bias"])
def test_steps_run_a_models_adapters(version, name):
    adapter = FIXTURES / "lora" / f"v{version}" / name
    with_it, without = compare(version, reference, adapter=adapter), compare(version, reference)
    assert not torch.allclose(with_it[0], without[0], rtol=0.01)
