"""Models and tokenizers as transformers loads them."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import glm_int4
import glm_int4.hf
from tests.conftest import FIXTURES, MINI


@pytest.fixture(scope="session")
def tiny_models():
    """The official code's tiny models of all versions, on the exact path."""
    return {
        version: AutoModelForCausalLM.from_pretrained(FIXTURES / f"v{version}_tiny", dtype=torch.float32)
        for version in "123"
    }


@pytest.fixture(scope="session")
def hf_mini():
    """The mini model on the exact path."""
    return AutoModelForCausalLM.from_pretrained(MINI, dtype=torch.float32)


@pytest.fixture(scope="session")
def hf_mini_tokenizer():
    return AutoTokenizer.from_pretrained(MINI)


@pytest.fixture(scope="session")
def packed(mini_int4):
    """The mini model in INT4 on the fast path: transformers' and the engine's."""
    return AutoModelForCausalLM.from_pretrained(mini_int4, device_map="cpu"), glm_int4.load(mini_int4, device="cpu")
