"""Whole one-token steps of the tiny models on the kernels have the logits of the modules."""

import pytest

from tests.models.steps import compare
from triton_kernels import decode


@pytest.mark.parametrize(
    ("version", "kv_bits", "prefix_length"), [("1", 16, 3), ("1", 8, 0), ("2", 8, 3), ("3", 16, 0)]
)
def test_steps_have_the_logits_of_the_modules(version, kv_bits, prefix_length):
    compare(version, decode, kv_bits, prefix_length=prefix_length, num_steps=2)
