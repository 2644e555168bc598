"""The engine's way on a GPU, with all its kernels: prompts, fused steps, and a stand-in for CUDA graphs."""

import dataclasses
import logging
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

import glm_int4
from glm_int4.checkpoint.build import ComputeSetup, build_model
from glm_int4.generation import loading
from glm_int4.generation.cuda_graphs import GraphStepper
from glm_int4.generation.decoding import _Sequence
from glm_int4.generation.engine import Engine
from glm_int4.generation.padded_batch import Batch
from glm_int4.generation.sampling import SamplingParams
from glm_int4.measuring.random_weights import open_random
from glm_int4.models.prefix_encoder import PrefixEncoder
from glm_int4.models.presets import CONFIGS
from glm_int4.tuning.loss import IGNORED, prefix_loss
from tests.models.steps import run
from tests.models.wide_stream import FLOAT16_MAX, largest_activation, widen
from tests.tolerances import FLOAT16_RELATIVE_RMS, HALF_PRECISION_GRADIENT, relative_rms
from tests.triton_kernels.on_cpu import ARCHITECTURE, QUICK, WIDER
from triton_kernels import cublas, decode, dispatch, gpu, reference

CPU = torch.device("cpu")
# As ``choose_setup`` says for a GPU, but for the device.
SETUP = ComputeSetup(
    device=CPU,
    backend="triton",
    dense_dtype=torch.float16,
    stream_dtype=torch.float16,
    kv_dtype=torch.float16,
    half_tables=True,
)
GREEDY = SamplingParams(temperature=0)
# The shapes of ChatGLM2-6B in small: every matrix is one that the kernels take, heads share keys.
SMALL = CONFIGS["chatglm2-6b"] | {
    "hidden_size": 256,
    "ffn_hidden_size": 384,
    "num_attention_heads": 4,
    "kv_channels": 64,
    "multi_query_group_num": 2,
    "padded_vocab_size": 512,
    "seq_length": 64,
}


@pytest.fixture(autouse=True)
def on_kernels(monkeypatch):
    """Let CPU tensors take the way of a GPU."""
    properties = SimpleNamespace(major=ARCHITECTURE // 10, minor=ARCHITECTURE % 10, multi_processor_count=8)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(dispatch, "gpu", gpu)
    monkeypatch.setattr(dispatch, "obstacle", lambda device: None)


def refuse(*arguments):
    raise AssertionError("a product that no kernel computes")


@pytest.mark.parametrize("kv_dtype", [torch.int8] if QUICK else [torch.float16, torch.int8], ids=str)
def test_an_answer_has_the_tokens_of_the_cpu(kv_dtype, mini_int4, monkeypatch, caplog):
    on_cpu = glm_int4.load(mini_int4, device="cpu")
    rows = [on_cpu.tokenizer.encode_prompt(text) for text in ("12加7等于几?", "你好")]
    monkeypatch.setattr(loading, "choose_setup", lambda *_: dataclasses.replace(SETUP, kv_dtype=kv_dtype))
    glm = glm_int4.load(mini_int4, device="cpu")
    captured = []
    recorder = SimpleNamespace(new_pool=lambda: None, capture=lambda step, pool: captured.append(step) or step)
    stepper = GraphStepper(glm.model, decode, recorder)
    glm._decoder._stepper = stepper
    expected = on_cpu.generate(rows, 3, GREEDY, [])
    for path in (cublas, reference):
        monkeypatch.setattr(path, "multiply", refuse)
    with caplog.at_level(logging.WARNING):
        assert glm.generate(rows, 3, GREEDY, []) == expected
    assert not caplog.records
    assert captured
    assert stepper.fused


@pytest.mark.parametrize("bits", [4, 8])
def test_steps_of_heads_that_share_keys_have_the_logits_of_float32(bits, monkeypatch):
    reader, info = open_random("small", SMALL, bits, CPU, num_layers=2)
    exact, half = (
        dataclasses.replace(SETUP, backend="reference", dense_dtype=d, stream_dtype=d, kv_dtype=d)
        for d in (torch.float32, torch.float16)
    )
    rows = [[20, 31, 42, 44, 7], [17, 18, 19, 20, 21, 22, 43, 300]]

    def logits(setup, ops):
        engine = Engine(build_model(reader, info, setup), info, setup, None, 64)
        return run(engine, rows, 2, 0, ops)

    plain_steps, exact_steps = logits(half, None), logits(exact, None)
    for path in (cublas, reference):
        monkeypatch.setattr(path, "multiply", refuse)
    for ours, plain, expected in zip(logits(SETUP, decode), plain_steps, exact_steps, strict=True):
        assert relative_rms(ours, expected) < 2 * relative_rms(plain, expected) + FLOAT16_RELATIVE_RMS


@torch.inference_mode()
def answer(engine, row, count, ops=None):
    """Logits behind a prompt and behind each of the next tokens; by the modules, or eager and replayed fused steps."""
    decoder, captures = engine._decoder, []
    if ops is not None:
        recorder = SimpleNamespace(new_pool=lambda: None, capture=lambda run, pool: captures.append(run) or run)
        decoder._stepper = GraphStepper(engine.model, ops, recorder)
    batch, sequence = Batch(engine.model, [row], CPU), _Sequence(decoder.new_cache(1, 64))
    logits = [decoder.prefill(batch, sequence)]
    logits += [decoder.decode_one(batch, sequence, torch.tensor([30 + 7 * i]), i) for i in range(count)]
    assert ops is None or (decoder._stepper.fused and len(captures) == (count > 1))
    return logits


@pytest.mark.parametrize("dtype", WIDER, ids=str)
@pytest.mark.parametrize("bits", [4] if QUICK else [4, 8])
def test_activations_beyond_float16_give_the_logits_of_float32(bits, dtype, monkeypatch):
    """In prompts, in eager steps and in replayed ones."""
    reader, info = open_random("small", SMALL, bits, CPU, num_layers=2)
    row = [17, 18, 19, 20, 21, 22, 43, 300, 7, 8]

    def engine(kind, backend="reference"):
        floats = dict.fromkeys(("dense_dtype", "stream_dtype", "kv_dtype"), kind)
        setup = dataclasses.replace(SETUP, backend=backend, **floats)
        built = Engine(build_model(reader, info, setup), info, setup, None, 64)
        widen(built.model, 2.0**19, 2.0**22, 2.0**18)
        return built

    exact = engine(torch.float32)
    assert largest_activation(exact, row) > FLOAT16_MAX
    expected, plain = answer(exact, row, 2), answer(engine(torch.bfloat16), row, 2)
    for path in (cublas, reference):
        monkeypatch.setattr(path, "multiply", refuse)
    assert not answer(engine(torch.float16, "triton"), row, 0, decode)[0].isfinite().any()
    for ours, theirs, right in zip(answer(engine(dtype, "triton"), row, 2, decode), plain, expected, strict=True):
        assert ours.isfinite().all()
        assert relative_rms(ours, right) < 2 * relative_rms(theirs, right)


def test_a_prefix_is_trained_through_the_kernels_own_product(monkeypatch):
    """Every quantized matrix of the two layers passes its gradient on by ``gpu.multiply_transposed``."""
    reader, info = open_random("small", SMALL, 4, CPU, num_layers=2)
    exact = dataclasses.replace(
        SETUP, backend="reference", dense_dtype=torch.float32, stream_dtype=torch.float32, kv_dtype=torch.float32
    )
    ids, labels = torch.tensor([[5, 6, 7, 8, 9, 10]]), torch.tensor([[IGNORED, IGNORED, 7, 8, 9, 10]])
    encoder = PrefixEncoder(info.config, 3)
    grads, counted, product = [], [], gpu.multiply_transposed
    for setup in (exact, SETUP):
        engine = Engine(build_model(reader, info, setup), info, setup, None, 64)
        encoder.zero_grad()
        prefix_loss(engine, encoder, ids, labels).backward()
        grads.append(encoder.embedding.weight.grad.clone())
        if setup is exact:
            for path in (cublas, reference):
                monkeypatch.setattr(path, "multiply", refuse)
                monkeypatch.setattr(path, "multiply_transposed", refuse)
            monkeypatch.setattr(gpu, "multiply_transposed", lambda *args: counted.append(1) or product(*args))
    # The head, and four matrices a layer but for the first layer's projection, whose input has no gradient.
    assert len(counted) == 1 + 2 * 4 - 1
    assert relative_rms(grads[1], grads[0]) < HALF_PRECISION_GRADIENT
