"""Whole one-token steps and prompts of the tiny models on the kernels give what the modules give."""

import pytest

from tests.models.steps import compare, compare_prompts
from tests.models.wide_stream import widen
from tests.triton_kernels.on_cpu import WIDER
from triton_kernels import decode


@pytest.mark.parametrize(
    ("version", "kv_bits", "prefix_length"), [("1", 16, 3), ("1", 8, 0), ("2", 8, 3), ("3", 16, 0)]
)
def test_steps_have_the_logits_of_the_modules(version, kv_bits, prefix_length):
    compare(version, decode, kv_bits, prefix_length=prefix_length, num_steps=2)


@pytest.mark.parametrize(("version", "kv_bits", "prefix_length"), [("1", 16, 3), ("2", 8, 0)])
def test_prompts_have_the_hidden_states_of_the_modules(version, kv_bits, prefix_length):
    compare_prompts(version, decode, kv_bits, prefix_length)


@pytest.mark.parametrize("dtype", WIDER, ids=str)
@pytest.mark.parametrize(("version", "kv_bits", "prefix_length"), [("1", 16, 3), ("2", 8, 0)])
def test_a_wider_stream_passes_the_range_of_float16(version, kv_bits, prefix_length, dtype):
    compare(version, decode, kv_bits, prefix_length=prefix_length, num_steps=1, dtype=dtype, change=widen)
    compare_prompts(version, decode, kv_bits, prefix_length, dtype=dtype, change=widen)
