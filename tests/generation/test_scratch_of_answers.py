"""What is kept free for answers at a time is what they take."""

import weakref
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glm_int4.checkpoint.build import ComputeSetup
from glm_int4.generation.memory_plan import scratch_bytes, slots_scratch_bytes
from glm_int4.generation.sampling import Sampler, SamplingParams, choose_together
from glm_int4.models.config_file import parse_config
from glm_int4.models.presets import CONFIGS

CONFIG = parse_config(CONFIGS["chatglm-6b"])
HALF = dict.fromkeys(("dense_dtype", "stream_dtype", "kv_dtype"), torch.float16)
CPU, GPU = (ComputeSetup(device=torch.device(d), backend="triton", half_tables=True, **HALF) for d in ("cpu", "cuda"))


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are alive at a time, at most."""

    def __init__(self):
        super().__init__()
        self.bytes = self.peak = 0
        self._users = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._use(storage.data_ptr(), storage.nbytes())
                weakref.finalize(tensor, self._leave, storage.data_ptr(), storage.nbytes())
        return out

    def _use(self, place, size):
        self.bytes += 0 if self._users[place] else size
        self._users[place] += 1
        self.peak = max(self.peak, self.bytes)

    def _leave(self, place, size):
        self._users[place] -= 1
        self.bytes -= 0 if self._users[place] else size


@pytest.mark.parametrize(
    ("params", "most"), [({}, 5), ({"top_k": 0, "min_p": 0.1, "presence_penalty": 0.5}, 2)], ids=str
)
def test_it_holds_what_sampling_takes(params, most):
    samplers = [Sampler(SamplingParams(**params), "1") for _ in range(4)]
    with PeakBytes() as mode:
        logits = torch.randn(4, CONFIG.vocab_size)
        choose_together(samplers, logits, [[1, 2]] * 4)
    assert mode.peak > 3 * logits.nbytes
    assert mode.peak <= slots_scratch_bytes(CONFIG, CPU, 4, 64) - scratch_bytes(CONFIG, CPU, 64) <= most * mode.peak


def test_it_holds_the_sums_of_attention_on_a_gpu():
    """A split of 64 columns leaves 128 sums and two numbers a head, in an eager step and in a graph."""
    short, long = (slots_scratch_bytes(CONFIG, GPU, 16, length) for length in (64, 2048))
    prompts = scratch_bytes(CONFIG, GPU, 2048) - scratch_bytes(CONFIG, GPU, 64)
    assert long - short - prompts == 2 * 4 * 16 * 32 * (32 - 1) * (128 + 2)
