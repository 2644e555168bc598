"""An embedding in the host's memory gives the rows of one on the device, and takes no memory there."""

import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from glm_int4.checkpoint.build import build_model, resident_bytes
from glm_int4.errors import InputError
from glm_int4.generation import memory_plan
from glm_int4.generation.loading import place_embedding
from glm_int4.measuring.random_weights import open_random
from glm_int4.models.presets import CONFIGS
from glm_int4.quantization.host_rows import HostRows
from tests.cli.test_commands import glm, refused
from tests.conftest import TINY
from tests.fake_gpu import META, SETUP, fake_gpu, fake_model
from triton_kernels import reference

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMALL = {
    "hidden_size": 256,
    "ffn_hidden_size": 384,
    "num_attention_heads": 4,
    "kv_channels": 64,
    "padded_vocab_size": 512,
    "seq_length": 64,
}
ON_CPU = replace(SETUP, device=CPU, backend="reference", stream_dtype=torch.float32)
ON_GPU = replace(SETUP, device=CUDA)


def small(bits, preset="chatglm2-6b"):
    return open_random("small", CONFIGS[preset] | (SMALL if preset != "chatglm-6b" else {}), bits, CPU, num_layers=1)


@pytest.mark.parametrize("bits", [4, 16])
def test_a_model_has_the_same_rows_and_logits(bits):
    reader, info = small(bits)
    ids = torch.tensor([[5, 500, 5], [7, 0, 511]])
    here, there = (build_model(reader, info, replace(ON_CPU, host_embedding=host)) for host in (False, True))
    assert isinstance(there.embedding._rows if bits == 16 else there.embedding.matrix._rows, HostRows)
    assert torch.equal(there.embedding(ids), here.embedding(ids))
    assert torch.equal(there.embedding(ids[0, :1]), here.embedding(ids[0, :1]))
    assert not {name for name, _ in there.named_buffers()} & {"transformer.embedding.word_embeddings.matrix.qweight"}


@pytest.mark.parametrize("bits", [4, 16])
def test_the_plan_leaves_the_matrix_out(bits):
    _, info = small(bits)
    saved = resident_bytes(info, ON_GPU) - resident_bytes(info, replace(ON_GPU, host_embedding=True))
    assert saved == 512 * 256 * (2 if bits == 16 else 1)


def test_a_prompt_on_a_gpu_asks_for_no_values_and_holds_no_matrix():
    """Tensors without values stop whoever would wait for them."""
    from triton_kernels import decode

    with fake_gpu() as (memory, _):
        ids = torch.zeros(1, 300, dtype=torch.int64, device=META)
        live = []
        for host in (False, True):
            before = memory.live
            model = fake_model("chatglm2-6b", num_layers=1, host_embedding=host, padded_vocab_size=512)
            if host:
                model.embedding.matrix._rows._ops = decode
            live.append(memory.live - before)
            assert model.embedding(ids).shape == (1, 300, 4096)
            del model
        assert live[0] - live[1] == 512 * 4096


def test_where_the_kernel_fails_the_host_gathers(caplog):
    def fail(table, ids):
        raise RuntimeError("no such pointer")

    rows = HostRows(torch.arange(12).view(4, 3), CPU)
    rows._ops = SimpleNamespace(gather_rows=fail)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert rows[torch.tensor([3, 1])].tolist() == [[9, 10, 11], [3, 4, 5]]
    assert [record.message for record in caplog.records] == [
        "rows of the embedding are gathered by the CPU, because Triton failed: no such pointer"
    ]


def test_where_memory_cannot_be_locked_the_host_gathers(monkeypatch, caplog):
    def fail(self):
        raise RuntimeError("no memory to lock")

    monkeypatch.setattr(torch.Tensor, "pin_memory", fail)
    with caplog.at_level(logging.INFO):
        rows = HostRows(torch.arange(12).view(4, 3), CUDA)
    assert rows[torch.tensor([3, 1])].tolist() == [[9, 10, 11], [3, 4, 5]]
    assert "gathered by the CPU, because no memory to lock" in caplog.text


def test_rows_are_those_of_a_table_in_the_hosts_memory():
    for table, ids in (
        (torch.zeros(4), torch.tensor([0])),
        (torch.zeros(4, 4).T[:2], torch.tensor([0])),
        (torch.zeros(4, 4), torch.tensor([[0]])),
        (torch.zeros(4, 4), torch.tensor([0], dtype=torch.int32)),
    ):
        with pytest.raises(ValueError, match="must be"):
            reference.gather_rows(table.T if table.ndim == 2 and table.shape[0] == 2 else table, ids)


def test_auto_takes_the_hosts_memory_only_where_the_gpu_is_too_small(monkeypatch):
    _, info = small(4)
    monkeypatch.setattr(memory_plan, "free_bytes", lambda device: 10**12)
    whole, saved = memory_plan._planner(info, ON_GPU, 0)(64).total_bytes, 512 * 256
    for free, host in ((10**12, False), (whole, False), (whole - 1, True), (whole - saved, True), (1000, True)):
        monkeypatch.setattr(memory_plan, "free_bytes", lambda device, free=free: free)
        assert place_embedding(info, ON_GPU, "auto").host_embedding == host
    assert not place_embedding(info, ON_GPU, "cuda").host_embedding
    monkeypatch.setattr(memory_plan, "free_bytes", lambda device: 10**12)
    assert place_embedding(info, ON_GPU, "cpu").host_embedding
    assert not place_embedding(info, replace(ON_GPU, device=CPU), "cpu").host_embedding
    assert memory_plan.plan_memory(info, place_embedding(info, ON_GPU, "cpu")).total_bytes == whole - saved


def test_an_embedding_that_is_the_head_too_stays_on_the_gpu(monkeypatch):
    _, info = open_random("tiny", CONFIGS["chatglm-6b"] | {"vocab_size": 130528, "hidden_size": 128}, 4, CPU, 1)
    monkeypatch.setattr(memory_plan, "free_bytes", lambda device: 1000)
    assert not place_embedding(info, ON_GPU, "auto").host_embedding
    with pytest.raises(
        InputError, match=r"expected ChatGLM2-6B, ChatGLM3-6B or GLM-4-9B .* got ChatGLM-6B, which multiplies"
    ):
        place_embedding(info, ON_GPU, "cpu")
    with pytest.raises(InputError, match="expected the embedding device auto, cuda or cpu, got 'disk'"):
        place_embedding(info, ON_GPU, "disk")
    with pytest.raises(InputError, match="expected a model on a GPU for the embedding device cuda"):
        place_embedding(info, ON_CPU, "cuda")


def test_the_command_line_says_what_it_expected():
    run = glm("generate", TINY, "--prompt", "5", "--embedding-device", "disk")
    refused(run, "expected the embedding device auto, cuda or cpu, got 'disk'")
