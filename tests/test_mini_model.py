"""The shipped model: what it can do, and how little quantizing takes from it."""

import json

import pytest
import torch

import glm_int4
from tests.conftest import EXAMPLES, MINI

GREEDY = glm_int4.SamplingParams(temperature=0)
QUESTIONS = [json.loads(line) for line in (EXAMPLES / "heldout.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def one_thread():
    """Matrices of 256 columns are too small to share between threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_nine_of_ten_held_out_questions_are_answered_exactly(mini, one_thread):
    answers = [mini.chat(q["messages"], max_new_tokens=64, sampling=GREEDY) for q in QUESTIONS]
    right = [answer == q["answer"] for answer, q in zip(answers, QUESTIONS, strict=True)]
    assert sum(right) >= 0.9 * len(right)
    for kind in ("addition", "subtraction", "comparison"):  # their numbers are the ones really held out
        of_kind = [good for good, q in zip(right, QUESTIONS, strict=True) if q["kind"] == kind]
        assert sum(of_kind) >= 0.9 * len(of_kind), kind


def test_it_takes_at_most_14_megabytes():
    assert sum(path.stat().st_size for path in MINI.iterdir()) <= 14e6


@pytest.mark.parametrize(("bits", "bound"), [(4, 0.13), (8, 0.02)])
def test_every_quantized_matrix_is_close(tmp_path, bits, bound):
    report = glm_int4.quantize_checkpoint(MINI, tmp_path / "out", bits=bits)
    assert len(report.layers) == 1 + 4 * 7
    for layer in report.layers:
        assert layer.rel_error <= bound, layer


def test_the_official_layout_names_shapes_and_types():
    state = {}
    for path in sorted(MINI.glob("*.bin")):
        state |= torch.load(path, weights_only=True)
    index = json.loads((MINI / "pytorch_model.bin.index.json").read_text())
    assert index["weight_map"].keys() == state.keys()
    assert torch.equal(state["lm_head.weight"], state["transformer.word_embeddings.weight"])
    for name, tensor in state.items():
        assert tensor.dtype == (torch.float32 if "layernorm" in name else torch.float16)
    assert state["transformer.layers.6.attention.rotary_emb.inv_freq"].shape == (8,)
    assert state["transformer.layers.0.attention.query_key_value.weight"].shape == (768, 256)
