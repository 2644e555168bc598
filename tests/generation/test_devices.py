"""Which device a model runs on: what "auto" takes, and what is said of GPUs that are of no use."""

import logging
from types import SimpleNamespace

import pytest
import torch

import glm_int4
from glm_int4.checkpoint.opening import open_checkpoint
from glm_int4.cli import info
from glm_int4.conversion import quantizing
from glm_int4.errors import InputError
from glm_int4.generation import loading, memory_plan
from glm_int4.generation.cuda_graphs import GraphStepper, make_stepper
from glm_int4.generation.loading import choose_device, choose_setup
from glm_int4.measuring import speed
from glm_int4.quantization.gpu.gpu_probe import ANY_MODEL
from glm_int4.quantization.gpu.kernel_faults import KernelFault
from tests.conftest import FIXTURES, TINY
from triton_kernels import reference

TINY_INT4 = FIXTURES / "v1_tiny_int4"
NO_COMPILER = KernelFault(cause="Triton failed: RuntimeError: Failed to find C compiler", cure="apt install gcc")


@pytest.fixture
def card(monkeypatch):
    """Let torch see a GPU; returns a function that says which, and how torch was built."""

    def see(capability=(8, 6), cuda="13.0", hip=None, compiled=("sm_75", "sm_80", "sm_86", "sm_90", "compute_90")):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Some GPU")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(compiled))

    loading._warn_once.cache_clear()
    yield see
    loading._warn_once.cache_clear()


@pytest.fixture
def kernels(monkeypatch):
    """Say whether the GPU's kernels run."""

    def say(fault):
        monkeypatch.setattr(loading, "kernel_fault", lambda device, matrices: fault)

    return say


def test_without_kernels_auto_takes_the_cpu_and_says_why(card, kernels, caplog):
    card()
    kernels(NO_COMPILER)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            glm = glm_int4.load(TINY_INT4)
    assert glm.device.type == "cpu"
    assert glm.setup.backend not in ("reference", "triton", "cublas")
    assert caplog.messages == [
        "the CPU computes, because the GPU runs no kernels: Triton failed: RuntimeError: Failed to find C compiler; "
        "apt install gcc; or pass --device cuda, which dequantizes all weights for every token"
    ]


def test_auto_asks_for_kernels_only_where_weights_are_quantized(card, kernels):
    card()
    kernels(NO_COMPILER)
    assert choose_device("auto").type == "cuda"
    assert choose_device("auto", ANY_MODEL).type == "cpu"
    kernels(None)
    assert choose_device("auto", ANY_MODEL).type == "cuda"
    asked = []
    for model, dtype in ((TINY, None), (TINY_INT4, torch.float32), (TINY_INT4, None)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loading, "choose_device", lambda device, *given: asked.append(given) or torch.device("cpu"))
            glm_int4.load(model, dtype=dtype)
    assert [bool(matrices) for (matrices,) in filter(None, asked)] == [False, False, True]


def test_a_benchmark_and_the_plan_of_info_take_the_device_of_loading(card, kernels, monkeypatch, capsys):
    card()
    kernels(NO_COMPILER)
    info.run(str(TINY_INT4), device="auto", as_json=True)
    assert '"device": "cpu"' in capsys.readouterr().out
    monkeypatch.setattr(speed.bandwidth, "measure_bandwidth", lambda place: pytest.exit(place.type))
    for model, bits, place in (("chatglm-6b", None, "cpu"), ("chatglm-6b", 16, "cuda"), (TINY, None, "cuda")):
        with pytest.raises(pytest.exit.Exception, match=place):
            speed.bench(model, bits=bits)


def test_an_explicit_gpu_without_kernels_dequantizes_with_its_scratch_in_the_plan(card, monkeypatch):
    from triton_kernels import cublas

    card()
    monkeypatch.setattr(memory_plan, "free_bytes", lambda device: None)
    info_ = open_checkpoint(TINY_INT4)[1]
    plans = {}
    for backend in ("triton", "cublas", "reference"):
        monkeypatch.setattr(loading, "choose_gpu_backend", lambda device, matrices, backend=backend: backend)
        setup = choose_setup(info_, choose_device("cuda"))
        assert setup.backend == backend
        plans[backend] = memory_plan.plan_memory(info_, setup).scratch_bytes
    more = cublas.SCRATCH_BYTES - memory_plan._PRODUCT_BYTES
    assert plans["triton"] == plans["cublas"] == plans["reference"] + more


def test_without_kernels_no_fused_step_is_tried(monkeypatch, caplog):
    model = SimpleNamespace(config=SimpleNamespace(head_dim=64))
    setup = SimpleNamespace(device=torch.device("cuda"), backend="cublas")
    monkeypatch.setattr("glm_int4.generation.cuda_graphs.decode_kernels", lambda device: pytest.fail("was tried"))
    assert make_stepper(model, setup) is model
    assert not caplog.records  # the backend's line has said why


@pytest.mark.parametrize(
    ("capability", "dtype", "stream"),
    [
        ((8, 0), torch.bfloat16, torch.bfloat16),
        ((9, 0), torch.float32, torch.float32),
        ((7, 5), torch.bfloat16, torch.float32),
        ((7, 5), torch.float32, torch.float32),
    ],
)
def test_a_wider_stream_on_a_gpu_runs_the_kernels_with_graphs(card, monkeypatch, capability, dtype, stream):
    card(capability)
    monkeypatch.setattr(loading, "choose_gpu_backend", lambda device: "triton")
    quantized, device = open_checkpoint(TINY_INT4)[1], choose_device("cuda")
    setup = choose_setup(quantized, device, dtype)
    assert (setup.backend, setup.stream_dtype, setup.kv_dtype) == ("triton", stream, stream)
    assert setup.half_tables == (dtype == torch.bfloat16)
    assert choose_setup(quantized, device, dtype, kv_bits=8).kv_dtype == torch.int8
    monkeypatch.setattr("glm_int4.generation.cuda_graphs.decode_kernels", lambda device: reference)
    model = glm_int4.load(TINY_INT4, device="cpu").model
    assert isinstance(make_stepper(model, setup), GraphStepper)


def test_float16_by_name_and_any_dtype_on_a_cpu_are_plain_torch(card, monkeypatch):
    card()
    monkeypatch.setattr(loading, "choose_gpu_backend", lambda device: pytest.fail("was asked"))
    quantized = open_checkpoint(TINY_INT4)[1]
    for device, dtype in (("cuda", torch.float16), ("cpu", torch.float32), ("cpu", torch.bfloat16)):
        setup = choose_setup(quantized, choose_device(device), dtype)
        assert (setup.backend, setup.stream_dtype) == ("reference", dtype)
    dense = open_checkpoint(TINY)[1]
    assert choose_setup(dense, choose_device("cuda"), torch.bfloat16).backend == "reference"


def test_a_build_for_rocm_is_not_taken_for_cuda(card, monkeypatch, caplog):
    card(cuda=None, hip="6.4.1")
    with caplog.at_level(logging.WARNING):
        assert glm_int4.load(TINY_INT4).device.type == "cpu"
    assert caplog.messages == [
        "the CPU computes: expected a CUDA build of torch, got one for ROCm 6.4.1, whose GPUs run nothing here; "
        "install a CUDA build of torch where there is a GPU of NVIDIA"
    ]
    with pytest.raises(InputError, match=r"got one for ROCm 6\.4\.1, .*pass --device cpu, or install a CUDA build"):
        choose_device("cuda")
    taken = []
    monkeypatch.setattr(quantizing, "QuantizationOptions", lambda **options: taken.append(options["device"]) or 1 // 0)
    with pytest.raises(ZeroDivisionError):
        glm_int4.quantize_checkpoint(TINY, "unused", bits=4)
    assert taken == ["cpu"]


@pytest.mark.parametrize(
    ("capability", "runs"),
    [((6, 1), False), ((7, 0), False), ((7, 5), True), ((8, 9), True), ((10, 0), True), ((12, 1), True)],
)
def test_a_gpu_that_torch_has_no_code_for_names_the_cpu(card, capability, runs, caplog):
    card(capability)
    if runs:
        assert choose_device("cuda") == choose_device("auto") == torch.device("cuda")
        return
    with pytest.raises(InputError, match=r"sm_75, .*got Some GPU \(sm_\d\d\); pass --device cpu, or install a build"):
        choose_device("cuda")
    with caplog.at_level(logging.WARNING):
        assert choose_device("auto").type == "cpu"
    assert "the CPU computes: expected a GPU that this torch has code for" in caplog.text


def test_a_gpu_that_cannot_be_used_now_names_the_cpu(card, monkeypatch, caplog):
    def busy(device=None):
        raise RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable\nCUDA kernel errors might")

    card()
    monkeypatch.setattr(torch.cuda, "get_device_capability", busy)
    with pytest.raises(InputError, match=r"busy or unavailable\); pass --device cpu, or see what nvidia-smi says$"):
        choose_device("cuda")
    with caplog.at_level(logging.WARNING):
        assert choose_device("auto").type == "cpu"
    assert "the CPU computes: expected a CUDA device that can be used" in caplog.text


def test_a_card_that_is_too_small_names_the_cpu(card, monkeypatch):
    card()
    monkeypatch.setattr(memory_plan, "free_bytes", lambda device: 1000)
    monkeypatch.setattr(loading, "choose_gpu_backend", lambda device, matrices: "triton")
    with pytest.raises(InputError, match="or pass --device cpu"):
        glm_int4.load(TINY_INT4, device="cuda")
    with pytest.raises(InputError, match=r"fewer bits$"):
        glm_int4.load(TINY_INT4, device="cpu")


def test_another_gpu_is_chosen_with_a_variable(card):
    card()
    assert choose_device("cuda:0") == torch.device("cuda")
    for device in ("cuda:1", "cuda:", "cuda:x"):
        with pytest.raises(InputError, match=f"got {device}; choose another with CUDA_VISIBLE_DEVICES"):
            choose_device(device)
    with pytest.raises(InputError, match="expected the device auto, cuda or cpu, got 'mps'"):
        choose_device("mps")
