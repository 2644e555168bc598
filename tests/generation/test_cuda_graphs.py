"""When steps are captured and replayed, and what happens where that fails; on a CPU, with replays that run again."""

import gc
import logging
from types import SimpleNamespace

import pytest
import torch

import glm_int4
from glm_int4.generation import cuda_graphs
from glm_int4.generation.continuous import Batcher
from glm_int4.generation.cuda_graphs import GraphStepper, TokenReading, column_bound, make_stepper, row_bucket
from glm_int4.generation.decoding import Decoder
from glm_int4.generation.sampling import SamplingParams
from glm_int4.models.gpu_step import DecodeStep
from tests.conftest import FIXTURES
from tests.triton_kernels.graph_stand_in import GraphStandIn
from triton_kernels import reference

GREEDY = SamplingParams(temperature=0)
PROMPT = [20, 31, 42, 141, 144]


class Capture:
    """Stands for CUDA graphs: a replay runs the function anew on the same static inputs.

    Attributes:
        pools: of the captures, in their order. errors: what the next captures raise, None where they succeed.
    """

    def __init__(self, errors=()):
        self.captured = self.replayed = self.made = 0
        self.pools, self.errors = [], list(errors)

    def new_pool(self):
        self.made += 1
        return self.made

    def capture(self, run, pool):
        self.pools.append(pool)
        if error := self.errors.pop(0) if self.errors else None:
            raise error
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


@pytest.fixture
def gpu(monkeypatch):
    return GraphStandIn(monkeypatch)


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


def test_a_step_runs_for_a_power_of_two_of_rows_filled_up_with_the_first(half, capture, monkeypatch):
    shapes = []

    class Step(DecodeStep):
        def __call__(self, token_ids, *inputs, **options):
            shapes.append(token_ids.shape)
            for x in (token_ids, *inputs):
                assert torch.equal(x[-1], x[0])
            return super().__call__(token_ids, *inputs, **options)

    monkeypatch.setattr(cuda_graphs, "DecodeStep", Step)
    rows = [PROMPT, [17, 18, 19, 141, 144, 33], PROMPT[1:]]
    assert half.generate(rows, 6, GREEDY, []) == plain_tokens(rows, 6)
    assert shapes == [(4,)] * 5


def test_sequences_that_come_and_go_share_the_graphs_of_their_numbers(half, capture):
    prompts = [[20 + i, 31, 42, *range(17, 17 + 3 * i), 141, 144] for i in range(7)]
    alone = [half.generate(prompt, 12 + i, GREEDY, []) for i, prompt in enumerate(prompts)]
    batcher = Batcher(half, 5)
    batcher._stepper = stepper = GraphStepper(half.model, reference, Capture())
    sequences = [batcher.sequence(prompt, 12 + i, GREEDY, frozenset()) for i, prompt in enumerate(prompts)]
    for sequence in sequences:
        batcher.add(sequence)
    while batcher.num_running or batcher.num_waiting:
        for event in batcher.step():
            assert event.error is None
    assert [sequence.ids for sequence in sequences] == alone
    ((cache, graphs),) = stepper._caches.items()
    assert cache is batcher._cache
    assert {rows for rows, _ in graphs.replays} == {1, 2, 4, 8}
    assert {bound for _, bound in graphs.replays} == {16, 32, 64}


def test_a_sequence_whose_slot_is_full_ends_alone(half, capture):
    half = glm_int4.load(FIXTURES / "v1_tiny", device="cpu", dtype=torch.float16, max_length=16)
    batcher = Batcher(half, 2)
    batcher._stepper = GraphStepper(half.model, reference, Capture())
    long, short = (batcher.sequence(prompt, None, GREEDY, frozenset()) for prompt in (PROMPT * 2, PROMPT))
    for sequence in (long, short):
        batcher.add(sequence)
    while batcher.num_running or batcher.num_waiting:
        assert all(event.error is None for event in batcher.step())
    assert (len(long.ids), len(short.ids)) == (16 - 10, 16 - 5)


@pytest.mark.parametrize("version", ["1", "2"])
def test_the_next_step_runs_while_tokens_are_read(version, monkeypatch):
    """A step too many, where an answer ends, leaves nothing behind."""
    order = []
    half = glm_int4.load(FIXTURES / f"v{version}_tiny", device="cpu", dtype=torch.float16, model_version=version)
    prompt = PROMPT if version == "1" else [20, 31, 42, 44]
    expected = half.generate(prompt, 12, GREEDY, [])
    stop = next(i for i in range(3, 12) if expected[i] not in expected[:i])
    half._decoder = Decoder(half.model, half.setup, half.max_length)
    half._decoder._stepper = stepper = GraphStepper(half.model, reference, Capture())
    step, read = stepper.step, TokenReading.read
    monkeypatch.setattr(stepper, "step", lambda *inputs: order.append("step") or step(*inputs))
    monkeypatch.setattr(TokenReading, "read", lambda reading: order.append("read") or read(reading))
    assert half.generate(prompt, 12, GREEDY, [expected[stop]]) == expected[:stop]
    assert order == ["step", "read"] * (stop + 1)
    sequence = half._decoder._kept
    assert sequence.ids == [*prompt, *expected[:stop]]
    assert sequence.cache.length == len(sequence.ids)
    order.clear()
    assert half.generate(prompt, 5, GREEDY, []) == expected[:5]
    assert order == [*["step", "read"] * 4, "read"]  # none behind the last
    order.clear()
    half.generate(prompt, 3, SamplingParams(temperature=0, repetition_penalty=1.1), [])
    assert order == ["read", "step", "read", "step", "read"]  # the tokens so far decide about the next


def test_many_rows_run_without_graphs(half, capture, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "MAX_ROWS", 2)
    rows = [PROMPT] * 3
    assert half.generate(rows, 6, GREEDY, []) == plain_tokens(rows, 6)
    assert capture.captured == 0


def test_a_capture_that_fails_is_said_once_with_its_cause_and_decoding_goes_on(half, caplog, gpu):
    """Through torch's own steps of a capture, on a stand-in for a GPU: of two errors it is the first that counts."""

    def attention(*arguments, **options):
        if gpu.capturing:
            gpu.invalidate()
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        assert gpu.current is gpu.default  # whatever has failed before
        return reference.one_token_attention(*arguments, **options)

    ops = SimpleNamespace(
        add_norm=reference.add_norm, rotary_to_cache=reference.rotary_to_cache, one_token_attention=attention
    )
    half._decoder._stepper = stepper = GraphStepper(half.model, ops)
    with caplog.at_level(logging.WARNING):
        assert half.generate(PROMPT, 40, GREEDY, []) == plain_tokens()
    assert caplog.messages == [
        "GPU decoding: without CUDA graphs, because capturing one failed: "
        "RuntimeError: operation not permitted when stream is capturing"
    ]
    assert gpu.current is gpu.default
    assert not gpu.underway
    assert stepper.fused


def test_a_graph_that_finds_no_memory_leaves_the_others(half, caplog, monkeypatch):
    """Where there was none, decoding goes on without; other rows and tokens have theirs, and a new cache too."""
    monkeypatch.setattr(cuda_graphs, "_LEAST_COLUMNS", 16)
    capture = Capture([torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: out of memory")])
    half._decoder._stepper = stepper = GraphStepper(half.model, reference, capture)
    with caplog.at_level(logging.WARNING):
        assert half.generate(PROMPT, 40, GREEDY, []) == plain_tokens()
    assert caplog.messages == [
        "GPU decoding: without a CUDA graph for 1 rows of 16 tokens, because there is no memory for one; a smaller "
        "--max-length leaves some"
    ]
    # Bounds 16 and 32 have none; a pool that has lost its only graph is not used again.
    assert (len(capture.pools), capture.captured) == (3, 1)
    assert len(set(capture.pools)) == 3
    rows = [PROMPT, PROMPT[1:]]
    assert half.generate(rows, 6, GREEDY, []) == plain_tokens(rows, 6)
    assert capture.captured == 2
    assert stepper.captures


def test_every_cache_has_a_pool_of_its_own(half, capture):
    """A pool whose graphs are gone is lost where a tensor in it lives: the logits of the last step, say."""
    half.generate(PROMPT, 40, GREEDY, [])
    for _ in range(2):
        half.generate([PROMPT, PROMPT[1:]], 6, GREEDY, [])
    assert len(capture.pools) == 3 + 2
    assert len(set(capture.pools[:3])) == 1
    assert len(set(capture.pools)) == 3


@pytest.mark.parametrize("good_steps", [0, 3])
def test_a_step_that_fails_is_computed_by_the_modules(half, caplog, good_steps):
    calls = []

    def attention(*arguments, **options):
        calls.append(1)
        if len(calls) > 2 * good_steps:  # two layers
            raise RuntimeError("no C compiler")
        return reference.one_token_attention(*arguments, **options)

    ops = SimpleNamespace(
        add_norm=reference.add_norm, rotary_to_cache=reference.rotary_to_cache, one_token_attention=attention
    )
    half._decoder._stepper = GraphStepper(half.model, ops, Capture())
    with caplog.at_level(logging.WARNING):
        assert half.generate(PROMPT, 20, GREEDY, []) == plain_tokens(count=20)
    (line,) = caplog.messages
    assert line.startswith("GPU decoding: layer by layer in torch, because a fused step failed: RuntimeError: no C com")
    assert "apt install gcc python3-dev" in line


def test_memory_that_runs_out_is_not_hidden(half):
    def fail(*arguments, **options):
        raise torch.OutOfMemoryError("no")

    ops = SimpleNamespace(add_norm=fail, rotary_to_cache=fail, one_token_attention=fail)
    half._decoder._stepper = stepper = GraphStepper(half.model, ops, Capture())
    with pytest.raises(torch.OutOfMemoryError):
        half.generate(PROMPT, 3, GREEDY, [])
    assert stepper.fused


def test_rows_are_counted_in_powers_of_two_up_to_sixteen():
    assert [row_bucket(n) for n in (1, 2, 3, 5, 8, 9, 16, 17, 30)] == [1, 2, 4, 8, 8, 16, 16, 17, 30]


def test_bounds_are_powers_of_two_up_to_the_caches_end():
    assert [column_bound(n, 2048) for n in (1, 256, 257, 1024, 1025, 2048)] == [256, 256, 512, 1024, 2048, 2048]
    assert column_bound(1500, 1600) == 1600
    assert column_bound(1, 100) == 100


def test_on_a_cpu_and_without_kernels_the_model_takes_the_steps(half, caplog):
    assert make_stepper(half.model, half.setup) is half.model
    setup = SimpleNamespace(device=torch.device("cuda"), backend="triton")
    with caplog.at_level(logging.WARNING):
        assert make_stepper(half.model, setup) is half.model or torch.cuda.is_available()
    assert "GPU decoding: layer by layer in torch, because" in caplog.text or torch.cuda.is_available()
