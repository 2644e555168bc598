"""What loading will take is said beforehand, and refused where it cannot work."""

import logging
import re
from pathlib import Path

import pytest
import torch

import glm_int4
from glm_int4 import SamplingParams
from glm_int4.checkpoint.opening import open_checkpoint
from glm_int4.errors import InputError
from glm_int4.generation import memory_plan
from glm_int4.generation.loading import choose_setup
from tests.conftest import MINI, TINY

GREEDY = SamplingParams(temperature=0)


@pytest.fixture
def free(monkeypatch):
    """Say how much memory is free, from now on."""

    def say(count):
        monkeypatch.setattr(memory_plan, "free_bytes", lambda device: count)

    return say


def plan_for(max_length=None, kv_bits=16):
    _, info = open_checkpoint(MINI)
    return memory_plan.plan_memory(info, choose_setup(info, torch.device("cpu"), kv_bits=kv_bits), max_length)


def test_the_parts_add_up_to_what_is_needed(free):
    free(10**12)
    plan = plan_for(100)
    assert plan.fits
    assert plan.total_bytes == plan.weight_bytes + plan.kv_bytes + plan.scratch_bytes
    assert plan.kv_bytes == 100 * plan.kv_bytes_per_token
    for part in (r"weights 0\.0\d\d GB", "cache .* for 100 tokens", "scratch .* GB", r"1000\.0 GB free"):
        assert re.search(part, str(plan))


def test_without_a_wish_the_model_and_the_memory_decide_on_the_length(free, caplog):
    free(10**12)
    whole = plan_for()
    assert whole.max_length == 512  # what the mini model was made for
    free(whole.total_bytes - 1)
    with caplog.at_level(logging.WARNING):
        shorter = plan_for()
    assert shorter.fits
    assert 400 < shorter.max_length < 512
    assert f"taking a max length of {shorter.max_length} tokens in place of 512" in caplog.text


def test_an_impossible_wish_is_refused_with_numbers_and_what_to_try(free):
    free(10**12)
    whole, in_int8 = plan_for(512), plan_for(512, kv_bits=8)
    free(in_int8.total_bytes)
    with pytest.raises(InputError, match=r"needs .* GB, .* GB free: try --kv-bits 8 or --max-length \d+$") as caught:
        plan_for(512)
    advised = int(re.search(r"--max-length (\d+)", str(caught.value))[1])
    assert plan_for(advised).fits
    assert plan_for(512, kv_bits=8).fits
    free(whole.weight_bytes)
    for max_length in (None, 512):
        with pytest.raises(InputError, match="close other programs, or take a model of fewer bits"):
            plan_for(max_length)


def test_where_the_system_does_not_say_everything_fits(free):
    free(None)
    assert plan_for().fits
    assert "free" not in str(plan_for())


def test_nothing_is_loaded_for_a_plan_that_is_refused(free, monkeypatch):
    free(1000)
    monkeypatch.setattr("glm_int4.generation.loading.build_model", lambda *arguments: pytest.fail("was loaded"))
    with pytest.raises(InputError, match="expected enough memory for this model"):
        glm_int4.load(MINI, device="cpu")


def test_a_prefix_counts_in_the_cache(free):
    free(10**12)
    _, info = open_checkpoint(TINY)
    plan = choose_setup(info, torch.device("cpu"))
    with_prefix = memory_plan.plan_memory(info, plan, 16, prefix_length=8)
    assert with_prefix.kv_bytes == 24 * with_prefix.kv_bytes_per_token


def rss_bytes():
    """Resident memory of this process now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux to tell its memory")
def test_memory_does_not_grow_over_fifty_turns(mini_int4):
    glm = glm_int4.load(mini_int4, device="cpu")
    cache, sizes = None, []
    messages = []
    for turn in range(50):
        messages.append({"role": "user", "content": f"{turn}加5等于几?"})
        messages = messages[-9:]
        messages.append({"role": "assistant", "content": glm.chat(messages, 8, GREEDY)})
        kept = glm._decoder._kept.cache
        assert cache is None or kept.k.data_ptr() == cache
        cache = kept.k.data_ptr()
        if turn >= 10:  # by then every loop is compiled, and the longest prompt was read
            sizes.append(rss_bytes())
    assert max(sizes) - sizes[0] < 4e6
