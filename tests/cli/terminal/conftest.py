"""Conversations with the mini model."""

import pytest

import glm_int4
from glm_int4.cli.terminal.conversation import Conversation


@pytest.fixture(scope="package")
def glm(mini_int4):
    return glm_int4.load(mini_int4, max_length=128)


@pytest.fixture
def conversation(glm):
    return Conversation(glm, glm_int4.SamplingParams(temperature=0), name="mini")


@pytest.fixture
def said(conversation):
    """The same conversation after a round."""
    assert "小明" in "".join(conversation.ask("我叫小明。"))
    return conversation
