"""A capture on a stand-in for a GPU: what it does, and what it leaves behind where it fails."""

import pytest
import torch

from tests.triton_kernels.graph_stand_in import GraphStandIn
from triton_kernels.graph_capture import GraphRecorder


@pytest.fixture
def gpu(monkeypatch):
    return GraphStandIn(monkeypatch)


def failing(gpu, error, *, invalidates=True):
    def run():
        if invalidates:
            gpu.invalidate()
        raise error

    return run


def test_the_stand_in_fails_as_torch_s_own_context_does(gpu):
    """It stays on the capture's stream, raises the second error, and leaves the allocator in the middle of it."""
    pool = torch.cuda.graph_pool_handle()
    graph = torch.cuda.graph(torch.cuda.CUDAGraph(), pool=pool, stream=torch.cuda.Stream())
    with pytest.raises(RuntimeError, match="previous error during capture") as raised, graph:
        failing(gpu, ZeroDivisionError("the cause"))()
    assert isinstance(raised.value.__context__, ZeroDivisionError)
    assert gpu.current is not gpu.default
    assert gpu.underway == [pool]


def test_a_capture_that_fails_raises_its_cause_and_leaves_nothing_behind(gpu):
    recorder = GraphRecorder()
    for error in (ZeroDivisionError("the cause"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as raised:
            recorder.capture(failing(gpu, error), recorder.new_pool())
        assert raised.value is error
        assert gpu.current is gpu.default
        assert not gpu.underway
        assert set(gpu.uses.values()) == {0}


def test_a_capture_that_cannot_begin_or_end_leaves_nothing_behind(gpu, monkeypatch):
    recorder, pool = GraphRecorder(), object()
    monkeypatch.setattr(gpu.graph_class, "capture_begin", lambda graph, **options: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        recorder.capture(lambda: None, pool)
    monkeypatch.undo()
    gpu = GraphStandIn(monkeypatch)
    with pytest.raises(RuntimeError, match="previous error during capture"):
        recorder.capture(gpu.invalidate, pool)  # nothing was raised where it happened
    assert gpu.current is gpu.default
    assert not gpu.underway


def test_memory_that_runs_out_ends_a_capture_that_is_still_whole(gpu):
    recorder, pool = GraphRecorder(), object()
    with pytest.raises(torch.OutOfMemoryError):
        recorder.capture(failing(gpu, torch.OutOfMemoryError("no"), invalidates=False), pool)
    assert not gpu.underway
    assert gpu.uses == {pool: 1}  # which the graph itself gives back when it goes


def test_captures_share_a_stream_that_cublas_knows_and_mind_no_other_thread(gpu):
    recorder, ran = GraphRecorder(), []
    for _ in range(2):
        replay = recorder.capture(lambda: ran.append(gpu.current) or len(ran), object())
    assert replay() == replay() == 2
    assert len(ran) == 2
    assert len({*gpu.streams}) == 1
    assert gpu.default not in gpu.streams
    assert gpu.products == gpu.streams  # each before its capture
    assert gpu.modes == ["thread_local"] * 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_after_a_failed_capture_a_gpu_captures_and_frees_memory_again():
    recorder, x = GraphRecorder(), torch.ones(64, 64, device="cuda").half()
    before = torch.cuda.current_stream()
    with pytest.raises(Exception, match="captur"):
        recorder.capture(lambda: (x @ x).cpu(), recorder.new_pool())
    assert torch.cuda.current_stream() == before
    left = torch.empty(1 << 26, dtype=torch.uint8, device="cuda")
    del left
    reserved = torch.cuda.memory_reserved()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < reserved
    replay = recorder.capture(lambda: x @ x, recorder.new_pool())
    assert torch.equal(replay(), x @ x)
