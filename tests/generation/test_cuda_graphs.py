"""When steps are captured and replayed, and what happens where that fails; on a CPU, with replays that run again."""

import gc
import logging
from types import SimpleNamespace

import pytest
import torch

import glm_int4
from glm_int4.generation import cuda_graphs
from glm_int4.generation.cuda_graphs import GraphStepper, column_bound, make_stepper
from glm_int4.generation.sampling import SamplingParams
from tests.conftest import FIXTURES
from triton_kernels import reference

GREEDY = SamplingParams(temperature=0)
PROMPT = [20, 31, 42, 141, 144]


class Capture:
    """Stands for CUDA graphs: a replay runs the function anew on the same static inputs."""

    def __init__(self):
        self.captured = self.replayed = 0

    def __call__(self, run):
        self.captured += 1

        def replay():
            self.replayed += 1
            return run()

        return replay


@pytest.fixture
def half():
    return glm_int4.load(FIXTURES / "v1_tiny", device="cpu", dtype=torch.float16)


@pytest.fixture
def capture(half, monkeypatch):
    """A model in half precision decodes through a stepper; its captures are counted."""
    monkeypatch.setattr(cuda_graphs, "_LEAST_COLUMNS", 16)
    counts = Capture()
    half._decoder._stepper = GraphStepper(half.model, reference, counts)
    return counts


def plain_tokens(prompt=PROMPT, count=40):
    return glm_int4.load(FIXTURES / "v1_tiny", device="cpu", dtype=torch.float16).generate(prompt, count, GREEDY, [])


def test_a_graph_is_captured_for_every_bound_and_replayed(half, capture):
    assert half.generate(PROMPT, 40, GREEDY, []) == plain_tokens()
    # 39 steps, at lengths 6 to 44: bounds 16, 32 and 64, and the first step of each runs eagerly.
    assert (capture.captured, capture.replayed) == (3, 36)
    half.generate(PROMPT, 12, GREEDY, [])
    assert (capture.captured, capture.replayed) == (3, 36 + 11)


def test_rows_of_a_batch_have_graphs_of_their_own_which_go_with_their_cache(half, capture):
    rows = [PROMPT, [17, 18, 19, 141, 144, 33], PROMPT[1:]]
    assert half.generate(rows, 6, GREEDY, []) == plain_tokens(rows, 6)
    assert capture.captured == 1
    gc.collect()
    assert len(half._decoder._stepper._caches) == 0
    half.generate(PROMPT, 4, GREEDY, [])
    gc.collect()
    assert len(half._decoder._stepper._caches) == 1  # of the sequence that is kept


def test_many_rows_run_without_graphs(half, capture, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "MAX_ROWS", 2)
    rows = [PROMPT] * 3
    assert half.generate(rows, 6, GREEDY, []) == plain_tokens(rows, 6)
    assert capture.captured == 0


def test_a_capture_that_fails_is_said_once_and_decoding_goes_on(half, caplog):
    def fail(run):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    half._decoder._stepper = GraphStepper(half.model, reference, fail)
    with caplog.at_level(logging.WARNING):
        assert half.generate(PROMPT, 40, GREEDY, []) == plain_tokens()
    assert [record.getMessage() for record in caplog.records] == [
        "GPU decoding: without CUDA graphs, because capturing one failed: "
        "RuntimeError: operation not permitted when stream is capturing"
    ]


@pytest.mark.parametrize("good_steps", [0, 3])
def test_a_step_that_fails_is_computed_by_the_modules(half, caplog, good_steps):
    calls = []

    def attention(*arguments, **options):
        calls.append(1)
        if len(calls) > 2 * good_steps:  # two layers
            raise RuntimeError("ptxas exited with code 1")
        return reference.one_token_attention(*arguments, **options)

    ops = SimpleNamespace(
        add_norm=reference.add_norm, rotary_to_cache=reference.rotary_to_cache, one_token_attention=attention
    )
    half._decoder._stepper = GraphStepper(half.model, ops, Capture())
    with caplog.at_level(logging.WARNING):
        assert half.generate(PROMPT, 20, GREEDY, []) == plain_tokens(count=20)
    assert [record.getMessage() for record in caplog.records] == [
        "GPU decoding: layer by layer in torch, because a fused step failed: RuntimeError: ptxas exited with code 1"
    ]


def test_memory_that_runs_out_is_not_hidden(half):
    def fail(*arguments, **options):
        raise torch.OutOfMemoryError("no")

    ops = SimpleNamespace(add_norm=fail, rotary_to_cache=fail, one_token_attention=fail)
    half._decoder._stepper = stepper = GraphStepper(half.model, ops, Capture())
    with pytest.raises(torch.OutOfMemoryError):
        half.generate(PROMPT, 3, GREEDY, [])
    assert stepper.fused


def test_bounds_are_powers_of_two_up_to_the_caches_end():
    assert [column_bound(n, 2048) for n in (1, 256, 257, 1024, 1025, 2048)] == [256, 256, 512, 1024, 2048, 2048]
    assert column_bound(1500, 1600) == 1600
    assert column_bound(1, 100) == 100


def test_a_cpu_and_other_precisions_have_no_stepper(half, caplog):
    assert make_stepper(half.model, half.plan) is None
    plan = SimpleNamespace(device=torch.device("cuda"), stream_dtype=torch.float16)
    with caplog.at_level(logging.WARNING):
        assert make_stepper(half.model, plan) is None or torch.cuda.is_available()
    assert "GPU decoding: layer by layer in torch, because" in caplog.text or torch.cuda.is_available()
