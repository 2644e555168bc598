"""Constraints on the way through the engine: versions, batches, guesses, graphs, ends."""

import json

import pytest
import torch

import glm_int4
from glm_int4 import SamplingParams
from glm_int4.generation.continuous import Batcher
from glm_int4.generation.records import StreamRecord

QUESTION = [{"role": "user", "content": "3加5等于几?"}]
ITEM = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["n"]}
FORMS = {
    "schema": {"json_schema": ITEM},
    "regex": {"regex": r"\d{1,3}(\.\d{2})?元"},
    "choices": {"choices": ["是,否", " no", "[[训练时间]]"]},
    "grammar": {"grammar": 'start: "a" b+\nb: "b" | "\\n"'},
}


@pytest.fixture(scope="module")
def engine(mini_int4):
    return glm_int4.load(mini_int4, device="cpu")


def is_of_form(form, text):
    if form == "schema":
        return json.loads(text)["n"] in range(100)
    if form == "regex":
        return text.endswith("元") and text[0].isdigit()
    if form == "choices":
        return text in FORMS["choices"]["choices"]
    return text[0] == "a" and set(text[1:]) <= {"b", "\n"} and len(text) > 1


def chat(engine, max_new_tokens=100, **sampling):
    record = StreamRecord()
    text = "".join(engine.stream_chat(QUESTION, max_new_tokens, SamplingParams(**sampling), record))
    return text, record


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("version", "1234")
def test_an_answer_of_every_version_has_its_form(request, version, form):
    engine = request.getfixturevalue({"1": "engine", "2": "v2_engine", "3": "v3_engine", "4": "v4_engine"}[version])
    for seed in range(5):
        text, record = chat(engine, temperature=1.0, seed=seed, **FORMS[form])
        assert record.cut or is_of_form(form, text), text
        assert text == record.text == engine.tokenizer.decode(record.ids)
        assert not record.cut or form == "grammar"


def test_nothing_of_an_answer_is_cleaned_away(engine, v3_engine, v4_engine):
    for text in ("  是,否 ", "[[训练时间]]", "a\n", " \n"):
        for one in (engine, v3_engine, v4_engine):
            assert chat(one, choices=[text], temperature=0)[0] == text
            assert one.reply(QUESTION, 50, SamplingParams(choices=[text])).content == text


def test_models_with_roles_write_their_line_of_metadata_first(v3_engine, v4_engine):
    for engine in (v3_engine, v4_engine):
        _, record = chat(engine, choices=["a"])
        plain = engine.count_tokens(QUESTION)
        assert record.prompt_tokens == plain + len(engine.tokenizer.encode("\n"))


@pytest.mark.parametrize("form", FORMS)
def test_guessing_changes_no_answer(engine, form):
    for sampling in ({"temperature": 0}, {"temperature": 1.0, "seed": 3}):
        expected, _ = chat(engine, 40, **sampling, **FORMS[form])
        text, _ = chat(engine, 40, **sampling, **FORMS[form], prompt_lookup=8)
        assert text == expected
    repeated = [*engine.tokenizer.encode("42元42元42元"), *engine.tokenizer.suffix_ids]
    text = "".join(engine.stream_text(repeated, 40, SamplingParams(**FORMS["regex"], temperature=0, prompt_lookup=8)))
    assert is_of_form("regex", text)


def test_rows_of_a_batch_end_by_themselves(engine):
    prompts = [engine.tokenizer.encode_prompt(text) for text in ("3加5等于几?", "你好", "What is 12 plus 30?")]
    params = SamplingParams(temperature=0, choices=["八", "十二加三十"])
    rows = engine.generate(prompts, 50, params)
    assert all(engine.tokenizer.decode(row) in params.choices for row in rows)
    assert len({len(row) for row in rows}) == 2  # one of them ended before the others


def test_a_limit_before_the_end_is_told(engine):
    text, record = chat(engine, 3, json_schema=ITEM, temperature=0)
    assert record.cut
    whole, record = chat(engine, json_schema=ITEM, temperature=0)
    assert whole.startswith(text)
    assert not record.cut
    exact, record = chat(engine, len(record.ids), json_schema=ITEM, temperature=0)
    assert exact == whole
    assert not record.cut


def test_stop_texts_and_penalties_count_beside_a_constraint(engine):
    text, record = chat(engine, regex="8{4}9", temperature=0, stop=("888",))
    assert (text, record.cut) == ("", False)
    assert chat(engine, regex="8{4}9", temperature=0, frequency_penalty=2.0, repetition_penalty=5.0)[0] == "88889"


def test_it_goes_on_where_no_id_ends_an_answer(engine):
    prompt = engine.tokenizer.encode_prompt("你好")
    assert len(engine.generate(prompt, 9, SamplingParams(regex="a+", temperature=0), stop_ids=[])) == 9
    ids = engine.generate(prompt, 9, SamplingParams(regex="a{1,3}", temperature=0), stop_ids=[])
    assert engine.tokenizer.decode(ids) == "aaa"


def test_a_step_that_runs_ahead_keeps_the_form_and_the_cache(engine, monkeypatch):
    expected, _ = chat(engine, json_schema=ITEM, temperature=0)
    next_question = [*QUESTION, {"role": "assistant", "content": expected}, {"role": "user", "content": "你好"}]
    after = engine.chat(next_question, 10, SamplingParams(temperature=0))
    monkeypatch.setattr(engine._decoder._stepper, "runs_ahead", True)
    assert chat(engine, json_schema=ITEM, temperature=0)[0] == expected
    sequence = engine._decoder._kept
    assert sequence.cache.length in (len(sequence.ids), len(sequence.ids) - 1)
    assert engine.chat(next_question, 10, SamplingParams(temperature=0)) == after


class Noted:
    """A sequence's sampler that notes the logits it is given."""

    def __init__(self, sampler):
        self._sampler, self.logits = sampler, []

    def __getattr__(self, name):
        return getattr(self._sampler, name)

    def choose(self, logits, seen):
        self.logits.append(logits.clone())
        return self._sampler.choose(logits, seen)


def run(engine, params):
    """Ids and logits of a sequence for every entry, all at once."""
    batcher = Batcher(engine, len(params))
    prompt = engine.tokenizer.encode_prompt("3加5等于几?")
    sequences = [batcher.sequence([*prompt], 30, one, frozenset(engine.stop_ids)) for one in params]
    ends = {}
    for sequence in sequences:
        sequence.sampler = Noted(sequence.sampler)
        batcher.add(sequence)
    while batcher.num_running or batcher.num_waiting:
        for event in batcher.step():
            assert event.error is None
            if event.end:
                ends[event.sequence] = event.end
    return [(s.ids, s.sampler.logits, ends[s]) for s in sequences]


def test_a_row_without_a_constraint_keeps_its_bits(engine):
    free = [SamplingParams(temperature=0), SamplingParams(seed=5)]
    alone = [run(engine, [one])[0] for one in free]
    forms = [SamplingParams(seed=7, **form) for form in FORMS.values()]
    together = run(engine, [free[0], *forms, free[1]])
    for (ids, logits, end), (other_ids, other_logits, other_end) in zip(
        alone, together[:: len(forms) + 1], strict=True
    ):
        assert ids == other_ids
        assert end == other_end
        assert all(torch.equal(a, b) for a, b in zip(logits, other_logits, strict=True))
    for form, (ids, _, end) in zip(FORMS, together[1:-1], strict=True):
        assert end == "length" or is_of_form(form, engine.tokenizer.decode(ids))
        assert end == "stop" or form == "grammar"


def test_a_constrained_row_says_what_it_says_alone(engine):
    params = [SamplingParams(temperature=0, **form) for form in FORMS.values()]
    alone = [run(engine, [one])[0] for one in params]
    for (ids, _, end), (other_ids, _, other_end) in zip(alone, run(engine, params), strict=True):
        assert (ids, end) == (other_ids, other_end)
