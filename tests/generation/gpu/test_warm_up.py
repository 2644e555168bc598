"""What is compiled before the first prompt is all that prompts and steps will ask for."""

import logging
import os
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1: nothing is compiled", allow_module_level=True)

from glm_int4.checkpoint.build import ComputeSetup, build_model
from glm_int4.errors import NotFiniteError
from glm_int4.generation import continuous, decoding, loading
from glm_int4.generation.continuous import Batcher
from glm_int4.generation.cuda_graphs import GraphStepper
from glm_int4.generation.engine import Engine
from glm_int4.generation.gpu import warm_up
from glm_int4.generation.sampling import SamplingParams
from glm_int4.measuring.random_weights import open_random
from glm_int4.models.presets import CONFIGS
from glm_int4.quantization.gpu import gpu_probe, guarded
from tests.generation.test_cuda_graphs import Capture
from tests.triton_kernels.recording import recorded
from triton_kernels import decode, dispatch, gpu

CPU = torch.device("cpu")
GREEDY = SamplingParams(temperature=0)
# The official models' kernels in small: split products, heads of 128 elements, biases where they have them.
SMALL = {
    "chatglm-6b": {"hidden_size": 1024, "inner_hidden_size": 4096, "num_attention_heads": 8, "vocab_size": 4096}
    | {name: 100 + i for i, name in enumerate(("bos_token_id", "eos_token_id", "gmask_token_id", "mask_token_id"))},
    "chatglm2-6b": {"hidden_size": 1024, "ffn_hidden_size": 1792, "num_attention_heads": 8, "padded_vocab_size": 2048},
}


@pytest.fixture
def architecture(request):
    return getattr(request, "param", 90)


@pytest.fixture
def variants(architecture, monkeypatch):
    """Let CPU tensors take the way of a GPU, on which kernels are only noted."""
    properties = SimpleNamespace(major=architecture // 10, minor=architecture % 10, multi_processor_count=8)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch, "mm", lambda a, b, out: out.zero_())
    monkeypatch.setattr(dispatch, "gpu", gpu)
    for module in (dispatch, gpu_probe):
        monkeypatch.setattr(module, "obstacle", lambda device: None)
    monkeypatch.setattr(guarded, "_try", lambda kernel, run, dequantized: run())  # a fault is this test's
    choose = decode.launch.attention
    monkeypatch.setattr(
        decode.launch, "attention", lambda heads, tensor_cores: choose(heads, tensor_cores=architecture >= 80)
    )
    for module in (decoding, continuous):
        monkeypatch.setattr(module, "make_stepper", lambda model, setup: GraphStepper(model, decode, Capture()))
    with recorded(architecture, gpu, decode) as variants:
        yield variants


def make_engine(name, bits, kv_dtype, stream=torch.float16, max_length=704):
    raw = CONFIGS[name] | SMALL[name]
    reader, info = open_random(name, raw, bits, CPU, num_layers=1)
    dtypes = dict.fromkeys(("dense_dtype", "stream_dtype"), stream)
    backend = "triton" if bits != 16 else "reference"
    setup = ComputeSetup(device=CPU, backend=backend, kv_dtype=kv_dtype, half_tables=True, **dtypes)
    return Engine(build_model(reader, info, setup), info, setup, None, max_length)


def warm(engine, monkeypatch):
    """As ``load`` does, on a device that says it is a GPU."""
    monkeypatch.setattr(Engine, "device", property(lambda self: SimpleNamespace(type="cuda")))
    run = warm_up._run

    def run_on_cpu(engine, batches):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Engine, "device", property(lambda self: CPU))
            run(engine, batches)

    monkeypatch.setattr(warm_up, "_run", run_on_cpu)
    warm_up.warm_up(engine)
    monkeypatch.setattr(Engine, "device", property(lambda self: self.setup.device))


CASES = [
    (75, "chatglm-6b", 4, torch.int8, torch.float16),
    (80, "chatglm-6b", 8, torch.float16, torch.float16),
    (90, "chatglm2-6b", 4, torch.int8, torch.float16),
    (90, "chatglm-6b", 4, torch.float16, torch.float16),
    (80, "chatglm2-6b", 16, torch.float16, torch.float16),
    (75, "chatglm2-6b", 4, torch.float32, torch.float32),
    (80, "chatglm2-6b", 4, torch.bfloat16, torch.bfloat16),
]


@pytest.mark.parametrize(
    ("architecture", "name", "bits", "kv_dtype", "stream"), CASES, ids=str, indirect=["architecture"]
)
def test_no_prompt_and_no_step_asks_for_a_kernel_that_is_not_compiled(
    variants, architecture, name, bits, kv_dtype, stream, monkeypatch
):
    engine = make_engine(name, bits, kv_dtype, stream)
    warm(engine, monkeypatch)
    compiled = set(variants)
    assert len(compiled) > (10 if bits != 16 else 4)
    variants.clear()
    for length in (1, 2, 8, 9, 16, 17, 32, 33, 256, 257, 513, 600):
        engine.generate([5] * length, 3, GREEDY, [])
    for num_rows in (1, 3, 9, 16):
        engine.generate([[6] * (i % 3 + 1) for i in range(num_rows)], 2, GREEDY, [])
    batcher = Batcher(engine, 16)
    for i in range(16):
        batcher.add(batcher.sequence([7] * (i + 2), 18, GREEDY, frozenset()))
    while batcher.num_running or batcher.num_waiting:
        batcher.step()
    assert len(variants) > (10 if bits != 16 else 4)
    assert variants - compiled == set()


def test_the_probe_compiles_kernels_that_the_model_runs(variants, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    engine = make_engine("chatglm-6b", 4, torch.float16)
    arguments = []
    monkeypatch.setattr(loading, "choose_gpu_backend", lambda *given: arguments.append(given[1:]) or "triton")
    loading.choose_setup(engine.info, torch.device("cuda"))
    variants.clear()
    assert gpu_probe.kernel_fault.__wrapped__(CPU, *arguments[0]) is None
    probed = set(variants)
    variants.clear()
    engine.generate([5] * 300, 2, GREEDY, [])
    assert {"dot_kernel", "dequantize_kernel"} <= {variant[0] for variant in probed & variants}
    assert len(probed - variants) <= 1  # a gradient's product has no bias


def test_loading_warms_up(mini_int4, monkeypatch):
    warmed = []
    monkeypatch.setattr(loading, "warm_up", warmed.append, raising=False)
    engine = loading.load(mini_int4, device="cpu")
    assert warmed == [engine]


def stand_in(device="cuda", backend="triton"):
    """As much of an engine as decides whether it is warmed up."""
    device, setup = SimpleNamespace(type=device), SimpleNamespace(backend=backend)
    return SimpleNamespace(device=device, setup=setup, info=SimpleNamespace(schemes={"linear": "INT4"}))


def test_a_start_that_takes_long_is_said_in_one_line(monkeypatch, caplog):
    engine = stand_in()
    monkeypatch.setattr(warm_up, "architecture", lambda device: 90)
    monkeypatch.setattr(warm_up, "warm_up_batches", lambda engine, architecture: [[[1]], [[2]]])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(warm_up, "_SILENT_SECONDS", 0.02)
    monkeypatch.setattr(warm_up, "_run", lambda engine, batches: time.sleep(0.2))
    with caplog.at_level(logging.WARNING):
        warm_up.warm_up(engine)
    (record,) = caplog.records
    assert record.getMessage().startswith("compiling kernels for this GPU")
    caplog.clear()
    monkeypatch.setattr(warm_up, "_run", lambda engine, batches: None)
    with caplog.at_level(logging.WARNING):
        warm_up.warm_up(engine)
        time.sleep(0.05)
    assert not caplog.records


@pytest.mark.parametrize("fault", [torch.OutOfMemoryError("CUDA out of memory"), NotFiniteError("nan")], ids=str)
def test_what_an_answer_would_say_is_no_fault_of_the_start(monkeypatch, fault):
    engine = stand_in()

    def fail(engine, batches):
        raise fault

    released = []
    monkeypatch.setattr(warm_up, "architecture", lambda device: 90)
    monkeypatch.setattr(warm_up, "warm_up_batches", lambda engine, architecture: [[[1]]])
    monkeypatch.setattr(warm_up, "release_memory", lambda error, device: released.append(error))
    monkeypatch.setattr(warm_up, "_run", fail)
    warm_up.warm_up(engine)
    assert released == [fault]


@pytest.mark.parametrize("other", [{"device": "cpu"}, {"backend": "cublas"}], ids=str)
def test_where_no_kernels_run_nothing_is_run(monkeypatch, other):
    monkeypatch.setattr(warm_up, "_run", lambda engine, batches: pytest.fail("was run"))
    monkeypatch.setattr(warm_up, "architecture", lambda device: 90)
    monkeypatch.setattr(warm_up, "warm_up_batches", lambda engine, architecture: [[[1]]])
    warm_up.warm_up(stand_in(**other))
