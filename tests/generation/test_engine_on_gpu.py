"""Whole models on a GPU: ``pytest -m gpu``. Skips where there is none."""

import logging

import pytest
import torch
from safetensors.torch import load_file

import glm_int4
from glm_int4.generation.continuous import Batcher
from glm_int4.generation.cuda_graphs import GraphStepper
from glm_int4.generation.decoding import _Sequence
from glm_int4.generation.padded_batch import Batch
from glm_int4.generation.sampling import SamplingParams
from glm_int4.measuring.speed import random_engine
from glm_int4.measuring.timing import random_row
from glm_int4.models.presets import CONFIGS
from tests.conftest import FIXTURES, MINI
from tests.tolerances import FLOAT16_RELATIVE_RMS, relative_rms

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GREEDY = SamplingParams(temperature=0)
CUDA = torch.device("cuda")


@pytest.mark.parametrize("version", ["1", "2", "3"])
def test_the_official_logits_in_half_precision(version):
    folder = FIXTURES / f"v{version}_tiny"
    cases = load_file(folder / "cases.safetensors")
    name = "gmask_prompt" if version == "1" else "long"
    ids, expected = cases[f"{name}.input_ids"][0].tolist(), cases[f"{name}.logits"]
    plain = glm_int4.load(folder, device="cuda", dtype=torch.float16, model_version=version).logits(ids).cpu()
    ours = glm_int4.load(folder, device="cuda", model_version=version).logits(ids).cpu()
    assert relative_rms(ours, expected) < 2 * relative_rms(plain, expected) + FLOAT16_RELATIVE_RMS


def decode_ways(engine, prompt, count):
    """Greedy ids with graphs, with fused steps alone, and by the modules; each way's stepper is checked."""
    results = {}
    for way in ("graphs", "fused", "modules"):
        stepper = engine._decoder._stepper
        assert isinstance(stepper, GraphStepper)
        stepper.captures, stepper.fused = way == "graphs", way != "modules"
        engine._decoder._kept = None
        results[way] = engine.generate(prompt, count, GREEDY, [])
        assert (stepper.captures, stepper.fused) == (way == "graphs", way != "modules"), "a way has failed"
    return results


@pytest.mark.parametrize("kv_bits", [16, 8])
@pytest.mark.parametrize("bits", [4, 8])
def test_greedy_ids_are_the_same_with_and_without_graphs(bits, kv_bits, tmp_path, caplog):
    glm_int4.quantize_checkpoint(MINI, tmp_path / "mini", bits=bits)
    glm = glm_int4.load(tmp_path / "mini", device="cuda", kv_bits=kv_bits)
    prompt = glm.tokenizer.encode_prompt("12加7等于几?")
    with caplog.at_level(logging.WARNING):
        for rows in (prompt, [prompt, glm.tokenizer.encode_prompt("一周有几天?")]):
            ways = decode_ways(glm, rows, 40)
            assert ways["graphs"] == ways["fused"] == ways["modules"]
    assert not caplog.records


def test_sequences_that_come_and_go_say_the_same_with_and_without_graphs(tmp_path, caplog):
    glm_int4.quantize_checkpoint(MINI, tmp_path / "mini", bits=4)
    glm = glm_int4.load(tmp_path / "mini", device="cuda")
    prompts = [glm.tokenizer.encode_prompt(f"{i}加{3 * i}等于几?" + "你好" * i) for i in range(12)]
    results = []
    for captures in (True, False):
        batcher = Batcher(glm, 5)
        batcher._stepper.captures = captures
        sequences = [batcher.sequence(prompt, 20 + i, GREEDY, frozenset()) for i, prompt in enumerate(prompts)]
        with caplog.at_level(logging.WARNING):
            for sequence in sequences:
                batcher.add(sequence)
            while batcher.num_running or batcher.num_waiting:
                assert all(event.error is None for event in batcher.step())
        assert batcher._stepper.fused
        assert batcher._stepper.captures == captures
        results.append([sequence.ids for sequence in sequences])
    assert results[0] == results[1]
    assert not caplog.records


@pytest.mark.parametrize("preset", CONFIGS)
def test_a_thousand_tokens_of_real_widths_without_drift_or_growth(preset):
    engine = random_engine(preset, CONFIGS[preset], 4, CUDA, num_layers=2)
    prompt = random_row(engine, 100, seed=0)
    assert len(engine.generate(prompt, 300, GREEDY, [])) == 300
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    first = engine.generate(prompt, 1000, GREEDY, [])
    middle = torch.cuda.memory_allocated()
    assert engine.generate(prompt, 1000, GREEDY, []) == first
    assert torch.cuda.memory_allocated() <= middle
    assert middle - before < 64 << 20  # graphs of the longer bounds
    assert engine._decoder._stepper.captures
    assert engine._decoder._stepper.fused


@pytest.mark.parametrize("preset", ["chatglm2-6b", "chatglm3-6b"])
def test_a_long_prompt_in_chunks_has_bounded_memory_and_the_last_tokens_logits(preset):
    engine = random_engine(preset, CONFIGS[preset] | {"seq_length": 32768}, 4, CUDA, num_layers=2)
    prompt = random_row(engine, 3000, seed=0)
    expected = engine.logits(prompt)[0, -1]
    decoder = engine._decoder
    sequence = _Sequence(decoder.new_cache(1, engine.max_length))
    logits = decoder.prefill(Batch(engine.model, prompt, engine.device), sequence)[0]
    assert relative_rms(logits, expected) < 10 * FLOAT16_RELATIVE_RMS  # sums of attention in another order
    del sequence, logits, expected
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    assert len(engine.generate(random_row(engine, 32000, seed=1), 2, GREEDY, [])) == 2
    assert torch.cuda.max_memory_allocated() - before < 600e6  # scores alone would take more


def test_peak_memory_of_chatglm_6b_at_2048_tokens():
    """At most 4.6 GB in INT4, 4.2 GB with an INT8 cache."""
    for kv_bits, limit in ((16, 4.6e9), (8, 4.2e9)):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        engine = random_engine("chatglm-6b", CONFIGS["chatglm-6b"], 4, CUDA, kv_bits=kv_bits)
        engine.generate(random_row(engine, 2000, seed=0), 48, GREEDY, [])
        peak = torch.cuda.max_memory_allocated()
        del engine
        assert peak <= limit, f"{peak / 1e9:.2f} GB"
