"""What goes wrong in the middle of an answer ends the answer, not the engine."""

import logging

import pytest
import torch

import glm_int4
from glm_int4 import SamplingParams
from glm_int4.errors import InputError, NotFiniteError
from glm_int4.quantization.cpu.instructions import instruction_set
from tests.conftest import FIXTURES, MINI

GREEDY = SamplingParams(temperature=0)
VERSIONS = ("1", "2", "3")
QUESTION = [{"role": "user", "content": "3加5等于几?"}]


def load_tiny(version, kind="", **arguments):
    return glm_int4.load(FIXTURES / f"v{version}_tiny{kind}", device="cpu", model_version=version, **arguments)


def ids_for(version):
    return [9, 12, 40, 33, 7] + ([141, 144] if version == "1" else [])


def layers_of(glm):
    return list(glm.model.layers)


class Failing:
    """A forward hook that raises on its call number ``count``."""

    def __init__(self, layer, error, count):
        self.error, self.count = error, count
        self.handle = layer.register_forward_hook(self)

    def __call__(self, module, arguments, output):
        self.count -= 1
        if self.count == 0:
            raise self.error


FAULTS = [MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.")]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("error", [*FAULTS, KeyboardInterrupt()], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("call", [1, 4], ids=["prompt", "answer"])
def test_after_a_fault_the_next_answer_is_what_it_would_have_been(version, error, call):
    glm, ids = load_tiny(version, dtype=torch.float32), ids_for(version)
    expected = glm.generate(ids, 10, GREEDY, stop_ids=[])
    glm.generate([*ids[:2], 50, *ids[3:]], 10, GREEDY, stop_ids=[])
    failing = Failing(layers_of(glm)[1], error, call)
    with pytest.raises(type(error)):
        glm.generate(ids, 10, GREEDY, stop_ids=[])
    failing.handle.remove()
    assert glm.generate(ids, 10, GREEDY, stop_ids=[]) == expected


@pytest.mark.parametrize("error", FAULTS, ids=lambda e: type(e).__name__)
def test_memory_that_ran_out_is_freed_with_the_cache(error):
    glm = load_tiny("2", dtype=torch.float32)
    glm.generate([1, 2, 3], 2, GREEDY, stop_ids=[])
    assert glm._decoder._kept is not None
    failing = Failing(layers_of(glm)[1], error, 2)
    with pytest.raises(type(error)):
        glm.generate([1, 2, 3], 5, GREEDY, stop_ids=[])
    failing.handle.remove()
    assert glm._decoder._kept is None
    assert len(glm.generate([1, 2, 3], 5, GREEDY, stop_ids=[])) == 5


@pytest.mark.parametrize("version", VERSIONS)
def test_an_answer_that_was_broken_off_leaves_a_cache_to_go_on_with(version):
    glm, ids = load_tiny(version, dtype=torch.float32), ids_for(version)
    expected = glm.generate(ids, 10, GREEDY, stop_ids=[])
    for lookup in (0, 4):
        stream = glm.stream_ids(ids, 10, SamplingParams(temperature=0, prompt_lookup=lookup), stop_ids=[])
        assert [next(stream) for _ in range(3)] == expected[:3]
        stream.close()
        assert glm.generate(ids, 10, GREEDY, stop_ids=[]) == expected


@pytest.mark.parametrize("version", VERSIONS)
def test_with_the_log_on_the_layer_that_made_nan_is_named(version, caplog):
    glm = load_tiny(version, dtype=torch.float32)
    with torch.no_grad():
        layers_of(glm)[1].input_layernorm.weight[0] = float("nan")
    with pytest.raises(NotFiniteError, match="--debug names the layer"):
        glm.generate(ids_for(version), 4, GREEDY)
    with caplog.at_level(logging.INFO), pytest.raises(NotFiniteError, match="come out of layer 1 of 2, counted from 0"):
        glm.generate(ids_for(version), 4, GREEDY)


def test_a_head_that_makes_nan_is_named(caplog):
    glm = load_tiny("2", dtype=torch.float32)
    with torch.no_grad():
        glm.model.transformer.output_layer.weight[5, 0] = float("inf")
    with caplog.at_level(logging.INFO), pytest.raises(NotFiniteError, match="come out of the final norm or the head"):
        glm.generate([1, 2, 3], 4, GREEDY)


@pytest.mark.skipif(instruction_set() is None, reason="needs a CPU with AVX2, and Numba")
def test_nan_in_a_compiled_step_is_noticed(mini_int4):
    glm = glm_int4.load(mini_int4, device="cpu")
    stream = glm.stream_ids(glm.tokenizer.encode_prompt("你好"), 10, GREEDY, stop_ids=[])
    next(stream)
    fused = glm.model._fused_layers or pytest.fail("the mini model should run compiled")
    fused._norm_weights[1, 0, 3] = float("nan")
    with pytest.raises(NotFiniteError):
        next(stream)


@pytest.mark.parametrize("value", ["8", 2.5, True])
def test_a_number_of_tokens_that_is_none_is_refused(value):
    glm = glm_int4.load(MINI, device="cpu")
    with pytest.raises(InputError, match="max_new_tokens to be a whole number"):
        glm.generate([9, 12], value)


@pytest.mark.parametrize("kind", ["", "_int8", "_int4"])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", [None, torch.float32], ids=["fast", "exact"])
def test_every_row_of_a_batch_says_what_it_says_alone(version, kind, dtype):
    glm = load_tiny(version, kind, dtype=dtype)
    end = [141, 144] if version == "1" else []
    rows = [[9, 12, 40, *end], [33, *end], [7, 100, 31, 90, 55, 21, 17, *end]]
    alone = [glm.generate(row, 16, GREEDY, stop_ids=[]) for row in rows]
    assert glm.generate(rows, 16, GREEDY, stop_ids=[]) == alone
