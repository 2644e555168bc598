"""Guessing from the prompt changes how many passes an answer takes, and nothing else."""

import pytest
import torch
from safetensors.torch import load_file

import glm_int4
from glm_int4 import SamplingParams
from glm_int4.errors import InputError
from glm_int4.generation.prompt_lookup import PromptLookup
from glm_int4.generation.records import StreamRecord
from tests.conftest import FIXTURES

PLAIN = SamplingParams(temperature=0)
LOOKUP = SamplingParams(temperature=0, prompt_lookup=5)


@pytest.fixture(scope="module", params=["1", "2", "3"])
def engine(request):
    folder = FIXTURES / f"v{request.param}_tiny"
    return glm_int4.load(folder, device="cpu", dtype=torch.float32, model_version=request.param)


@pytest.fixture
def prompt(engine):
    """Ids that repeat, so that there is something to guess."""
    ids = [9, 12, 40, 33, 7] * 4
    return [*ids, 141, 144] if engine.config.version == "1" else ids


class Looking(PromptLookup):
    """Notes what was guessed."""

    last = None

    def __init__(self, most):
        super().__init__(most)
        Looking.last = self


@pytest.fixture
def looking(monkeypatch):
    monkeypatch.setattr("glm_int4.generation.engine.PromptLookup", Looking)


@pytest.mark.usefixtures("looking")
@pytest.mark.parametrize("new", [1, 2, 7, 40])
def test_greedy_answers_are_the_same(engine, prompt, new):
    expected = engine.generate(prompt, new, PLAIN, stop_ids=[])
    assert engine.generate(prompt, new, LOOKUP, stop_ids=[]) == expected
    assert Looking.last.accepted <= Looking.last.drafted
    if new == 40:
        assert Looking.last.drafted > 0


def test_the_oracles_greedy_tokens_come_out(engine):
    version = engine.config.version
    cases = load_file(FIXTURES / f"v{version}_tiny" / "cases.safetensors")
    case = "gmask_prompt" if version == "1" else "long"
    ids, expected = cases[f"{case}.input_ids"][0].tolist(), cases[f"{case}.greedy"][0].tolist()
    assert engine.generate(ids, len(expected), LOOKUP, stop_ids=[]) == expected


@pytest.mark.usefixtures("looking")
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_right_and_wrong_guesses_leave_the_same_answer(engine, prompt, share, monkeypatch):
    expected = engine.generate(prompt, 24, PLAIN, stop_ids=[])

    def draft(self, seen, room):
        said = len(seen) - len(prompt)
        guess = expected[said : said + min(self.most, room)]
        guess = [token if i < share * len(guess) else (token + 1) % 100 for i, token in enumerate(guess)]
        self.drafted += len(guess)
        return guess

    monkeypatch.setattr(PromptLookup, "draft", draft)
    assert engine.generate(prompt, 24, LOOKUP, stop_ids=[]) == expected
    rate = Looking.last.accepted / Looking.last.drafted
    assert rate == share if share in (0.0, 1.0) else 0 < rate < 1
    assert engine.generate([*prompt, *expected[:3]], 5, PLAIN, stop_ids=[]) == engine.generate(
        [*prompt, *expected[:3]], 5, LOOKUP, stop_ids=[]
    ), "what was guessed wrongly is not in the cache"


def test_a_stop_id_among_the_guesses_ends_the_answer(engine, prompt):
    expected = engine.generate(prompt, 24, PLAIN, stop_ids=[])
    stop = expected[10]
    assert engine.generate(prompt, 24, LOOKUP, stop_ids=[stop]) == expected[: expected.index(stop)]


def test_penalties_and_seeds_give_what_they_give_without(engine, prompt):
    for settings in ({"temperature": 0, "repetition_penalty": 1.3}, {"seed": 3, "temperature": 1.5}):
        plain, guessed = (SamplingParams(**settings, prompt_lookup=most) for most in (0, 4))
        answers = [engine.generate(prompt, 24, sampling, stop_ids=[]) for sampling in (plain, guessed)]
        assert answers[0] == answers[1]


def test_the_context_may_end_amid_guesses(engine, prompt):
    glm = glm_int4.generation.engine.Engine(engine.model, engine.info, engine.setup, None, len(prompt) + 6)
    assert glm.generate(prompt, 50, LOOKUP, stop_ids=[]) == engine.generate(prompt, 6, PLAIN, stop_ids=[])


def test_the_record_tells_what_was_guessed(mini):
    record = StreamRecord()
    messages = [{"role": "user", "content": "3加5等于几?"}]
    list(mini.stream_chat(messages, sampling=LOOKUP, record=record))
    assert record.acceptance_rate == (record.accepted / record.drafted if record.drafted else None)
    assert StreamRecord(drafted=4, accepted=1).acceptance_rate == 0.25


def test_guesses_follow_the_latest_place_that_agrees_longest():
    lookup = PromptLookup(3)
    assert lookup.draft([1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3], 10) == [4, 9, 2]  # 1 2 3 before 2 3
    assert lookup.draft([2, 3, 4, 8, 2, 3, 5, 6, 2, 3], 2) == [5, 6]  # the later of two
    assert lookup.draft([1, 2, 3], 10) == []
    assert lookup.draft([1, 2, 1, 2], 0) == []
    assert lookup.drafted == 5


@pytest.mark.parametrize("value", [-1, 65, 1.5, None, True])
def test_other_numbers_of_guesses_are_refused(value):
    with pytest.raises(InputError, match="prompt_lookup"):
        SamplingParams(prompt_lookup=value)
