"""A step on fused operations is the step of the modules: here in plain torch, on_cpu/ runs the kernels."""

import pytest

from tests.models.steps import compare
from triton_kernels import reference


@pytest.mark.parametrize("kv_bits", [16, 8])
@pytest.mark.parametrize("version", ["1", "2", "3"])
def test_steps_have_the_logits_of_the_modules(version, kv_bits):
    for batch_size, prefix_length in ((1, 0), (2, 0), (2, 3)):
        logits = compare(version, reference, kv_bits, batch_size, prefix_length)
        assert logits[0].shape == (batch_size, 160)
