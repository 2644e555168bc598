"""Adapters on INT4 weights in the fast arithmetic of a CPU, a token at a time through the fused step."""

import pytest
import torch

from glm_int4.quantization.cpu.instructions import instruction_set
from tests.adapters.test_applying import GREEDY, IDS, LORA, load, merge_by_hand


@pytest.mark.skipif(instruction_set() is None, reason="needs a CPU with AVX2, and Numba")
@pytest.mark.parametrize("name", ["lora", "dora", "bias", "all_linear"])
def test_int4_on_the_fast_path_picks_the_merged_models_tokens(name):
    """Wherever those are ahead by more than the fast path's own noise, which the base without an adapter shows."""
    base, exact = load("1", None, "tiny_int4", dtype=None), load("1", None, "tiny_int4")
    noise = 4 * (base.logits(IDS["1"]) - exact.logits(IDS["1"])).abs().max().item()
    fast, merged = load("1", LORA / "v1" / name, "tiny_int4", dtype=None), load("1", LORA / "v1" / name, "tiny_int4")
    merged = merge_by_hand(merged)
    tokens = merged.generate(IDS["1"], 20, GREEDY, stop_ids=[])
    logits = merged.logits([*IDS["1"], *tokens])[0]
    best = logits.topk(2, dim=-1).values
    clear = (best[:, 0] - best[:, 1]) > noise
    found = fast.logits([*IDS["1"], *tokens])[0]
    assert clear.float().mean() > 0.8
    assert torch.equal(found.argmax(-1)[clear], logits.argmax(-1)[clear])
    generated = fast.generate(IDS["1"], 20, GREEDY, stop_ids=[])  # one token at a time, through the fused step
    assert fast.model._fused_layers is not None
    behind = clear[len(IDS["1"]) - 1 : -1].tolist()
    sure = behind.index(False) if False in behind else len(behind)
    assert sure >= 5
    assert generated[:sure] == tokens[:sure]
