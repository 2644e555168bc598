"""The way from a question to the first matrix product stays short."""

import pytest

import glm_int4
from tools.trace_chat import trace

MOST_CALLS, MOST_FILES = 45, 20


@pytest.mark.parametrize("version", ["1", "2", "3"])
def test_a_question_reaches_its_first_product_in_few_calls(version, mini_int4, small_checkpoints, tmp_path):
    model = mini_int4
    if version != "1":
        model = tmp_path / "model"
        glm_int4.quantize_checkpoint(small_checkpoints[version], model, bits=4, group_size=32)
    calls = trace(model, "3加5等于几?", device="cpu")
    assert calls[0] == ("generation/engine.py", "Engine.chat")
    assert calls[-1] == ("quantization/linear.py", "QuantizedLinear.forward")
    assert len(calls) <= MOST_CALLS, calls
    assert len({file for file, _ in calls}) <= MOST_FILES, calls
