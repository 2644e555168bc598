"""Continuous batching: whoever runs beside a sequence, it says what it says alone."""

import random
from dataclasses import replace

import pytest
import torch

import glm_int4
from glm_int4.errors import InputError, NotFiniteError
from glm_int4.generation import continuous, sampling
from glm_int4.generation.continuous import Batcher
from glm_int4.generation.decoding import Decoder
from glm_int4.generation.sampling import SamplingParams
from tests.conftest import MINI

GREEDY = SamplingParams(temperature=0)
QUESTIONS = ["3加5等于几?", "What is 12 plus 30?", "我叫小明。", "法国的首都是哪里?", "你好", "7减2等于几?"]


def run(batcher, sequences, seed=0):
    """Let sequences arrive at odd moments; returns their errors."""
    chance, waiting, errors = random.Random(seed), list(sequences), {}
    while waiting or batcher.num_running or batcher.num_waiting:
        while waiting and chance.random() < 0.4:
            batcher.add(waiting.pop(0))
        for event in batcher.step():
            if event.error:
                errors[event.sequence] = event.error
    return errors


def with_pieces(engine, rows):
    """An engine that reads prompts in pieces of so many rows."""
    engine.setup = replace(engine.setup, prompt_rows=rows)
    engine._decoder = Decoder(engine.model, engine.setup, engine.max_length)
    return engine


def make(batcher, engine, prompts, limit, sampling=GREEDY):
    stops = frozenset(engine.stop_ids)
    return [batcher.sequence(prompt, limit + i, sampling, stops) for i, prompt in enumerate(prompts)]


def generate_alone(engine, prompt, limit, sampling=GREEDY, **options):
    engine._decoder._kept = None  # what an earlier prompt has left would be read with another rounding
    return engine.generate(prompt, limit, sampling, **options)


def check(engine, prompts, limit, num_slots, sampling=GREEDY):
    alone = [generate_alone(engine, prompt, limit + i, sampling) for i, prompt in enumerate(prompts)]
    batcher = Batcher(engine, num_slots)
    sequences = make(batcher, engine, prompts, limit, sampling)
    assert run(batcher, sequences) == {}
    assert [sequence.ids for sequence in sequences] == alone
    assert batcher.num_running == 0


@pytest.mark.parametrize("kv_bits", [16, 8])
@pytest.mark.parametrize("num_slots", [1, 3, 16])
def test_version_1_in_int4_says_what_it_says_alone(mini_int4, num_slots, kv_bits):
    engine = glm_int4.load(mini_int4, device="cpu", kv_bits=kv_bits)
    prompts = [engine.tokenizer.encode_prompt(question) for question in QUESTIONS * 2]
    check(engine, prompts, 12, num_slots)


def test_version_1_in_float32_says_what_it_says_alone(mini):
    check(mini, [mini.tokenizer.encode_prompt(question) for question in QUESTIONS], 12, 4)


@pytest.mark.parametrize("version", ["2", "3"])
@pytest.mark.parametrize("bits", [None, 4, 8])
def test_causal_versions_say_what_they_say_alone(small_checkpoints, tmp_path, version, bits):
    folder = small_checkpoints[version]
    if bits:
        glm_int4.quantize_checkpoint(folder, tmp_path / "q", bits=bits)
        folder = tmp_path / "q"
    engine = glm_int4.load(folder, device="cpu")
    prompts = [engine.tokenizer.encode_prompt(text) for text in ("你好 world", "the weather 12", "price", "你" * 40)]
    check(engine, prompts * 2, 20, 3)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_row_of_a_batch_has_the_bits_of_the_row_alone(tmp_path, bits):
    glm_int4.quantize_checkpoint(MINI, tmp_path / "q", bits=bits)
    engine = glm_int4.load(tmp_path / "q", device="cpu")
    batcher = Batcher(engine, continuous.MAX_SLOTS)
    prompts = [engine.tokenizer.encode_prompt(f"{i}加{i + 3}等于几?") for i in range(continuous.MAX_SLOTS)]
    sequences = make(batcher, engine, prompts, 40)
    for sequence in sequences:
        batcher.add(sequence)
        batcher._begin(batcher._waiting.popleft())
        batcher._read(sequence)
    together = batcher._forward(sequences)
    for sequence, row in zip(sequences, together, strict=True):
        sequence.cache.length -= 1
        assert torch.equal(batcher._forward([sequence])[0], row)


def test_a_seed_makes_sampling_repeatable_whoever_runs_beside(mini_int4):
    engine = glm_int4.load(mini_int4, device="cpu")
    sampling = SamplingParams(temperature=1.0, top_p=1.0, seed=7, presence_penalty=0.5, frequency_penalty=0.5)
    prompts = [engine.tokenizer.encode_prompt(question) for question in QUESTIONS]
    check(engine, prompts, 12, 4, sampling)


def test_a_prefix_stands_in_front_of_every_slot(mini_int4, tmp_path):
    from safetensors.torch import save_file

    width = 2 * 7 * 256
    generator = torch.Generator().manual_seed(0)
    save_file({"embedding.weight": torch.randn(4, width, generator=generator)}, tmp_path / "prefix.safetensors")
    engine = glm_int4.load(mini_int4, device="cpu", prefix=tmp_path / "prefix.safetensors")
    prompts = [engine.tokenizer.encode_prompt(question) for question in QUESTIONS]
    check(engine, prompts, 12, 3)


def test_long_causal_prompts_are_read_in_pieces_between_the_tokens_of_others(small_checkpoints):
    engine = with_pieces(glm_int4.load(small_checkpoints["3"], device="cpu"), 16)
    batcher = Batcher(engine, 2)
    short, long = make(batcher, engine, [[5, 6, 7], list(range(5, 105))], 30)
    batcher.add(short)
    batcher.step()
    batcher.add(long)
    before = len(short.ids)
    while not long.ids:
        batcher.step()
    assert len(short.ids) - before == 7  # pieces of 100 tokens


def test_a_slot_that_has_read_whole_pieces_of_a_prompt_does_not_read_them_again(small_checkpoints, monkeypatch):
    engine = with_pieces(glm_int4.load(small_checkpoints["2"], device="cpu"), 16)
    prompts = [list(range(5, 45)), [*range(5, 45), 9, 9], list(range(5, 25)), list(range(5, 37))]
    fresh = []
    for prompt in prompts:
        batcher = Batcher(engine, 1)
        (sequence,) = make(batcher, engine, [prompt], 10)
        run(batcher, [sequence])
        fresh.append(sequence.ids)
    batcher = Batcher(engine, 2)
    reused = []
    for prompt in prompts:
        (sequence,) = make(batcher, engine, [prompt], 10)
        batcher.add(sequence)
        prefill = batcher._prefill
        monkeypatch.setattr(batcher, "_prefill", lambda s, kept, read=prefill: reused.append(kept) or read(s, kept))
        run(batcher, [])
        monkeypatch.undo()
        assert sequence.ids == fresh[len(reused) - 1]
    assert reused == [0, 32, 16, 16]


def test_whoever_comes_first_is_served_first(mini_int4):
    engine = glm_int4.load(mini_int4, device="cpu")
    batcher = Batcher(engine, 2)
    sequences = make(batcher, engine, [engine.tokenizer.encode_prompt("你好")] * 6, 8)
    for sequence in sequences:
        batcher.add(sequence)
    begun = []
    while batcher.num_running or batcher.num_waiting:
        batcher.step()
        begun += [i for i, sequence in enumerate(sequences) if sequence.ids and i not in begun]
    assert begun == sorted(begun)
    assert len(begun) == 6


def test_a_sequence_that_is_removed_frees_its_slot_and_disturbs_nobody(mini_int4):
    engine = glm_int4.load(mini_int4, device="cpu")
    prompts = [engine.tokenizer.encode_prompt(question) for question in QUESTIONS[:3]]
    alone = generate_alone(engine, prompts[1], 11, stop_ids=[])
    batcher = Batcher(engine, 2)
    gone, stays, later = (batcher.sequence(prompt, 11, GREEDY, frozenset()) for prompt in prompts)
    for sequence in (gone, stays, later):
        batcher.add(sequence)
    for _ in range(3):
        batcher.step()
    assert later.slot == -1
    batcher.remove(gone)
    batcher.remove(gone)
    batcher.step()
    assert later.slot >= 0
    run(batcher, [])
    assert stays.ids == alone
    assert len(gone.ids) < 11


def test_a_fault_of_one_row_ends_that_row_alone(mini_int4, monkeypatch):
    engine = glm_int4.load(mini_int4, device="cpu")
    prompts = [engine.tokenizer.encode_prompt(question) for question in QUESTIONS[:3]]
    alone = [generate_alone(engine, prompt, 12 + i) for i, prompt in enumerate(prompts)]
    batcher = Batcher(engine, 3)
    sequences = make(batcher, engine, prompts, 12)
    forward = batcher._forward

    def faulty(rows):
        if sequences[1] in rows and len(sequences[1].ids) >= 2:
            raise RuntimeError("boom")
        return forward(rows)

    monkeypatch.setattr(batcher, "_forward", faulty)
    errors = run(batcher, sequences)
    assert [str(errors.pop(sequences[1])), errors] == ["boom", {}]
    assert [sequences[0].ids, sequences[2].ids] == [alone[0], alone[2]]


def test_rows_of_equal_parameters_are_sampled_together_and_read_in_one_copy(mini_int4, monkeypatch):
    engine = glm_int4.load(mini_int4, device="cpu")
    prompts = [engine.tokenizer.encode_prompt(question) for question in QUESTIONS]
    kinds = [{}, {}, {"temperature": 0}, {}, {"temperature": 0}, {"top_k": 3}]
    wishes = [SamplingParams(seed=7 + i, **kind) for i, kind in enumerate(kinds)]
    alone = [generate_alone(engine, prompt, 9, wish, stop_ids=[]) for prompt, wish in zip(prompts, wishes, strict=True)]
    batcher, sizes, readings = Batcher(engine, len(prompts)), [], []
    draw, reading = sampling.Sampler._choose, continuous.TokenReading

    def choose(self, logits, *others):
        sizes[-1].append(len(logits))
        return draw(self, logits, *others)

    monkeypatch.setattr(sampling.Sampler, "_choose", choose)
    monkeypatch.setattr(continuous, "TokenReading", lambda tokens: readings.append(len(tokens)) or reading(tokens))
    sequences = [batcher.sequence(p, 9, wish, frozenset()) for p, wish in zip(prompts, wishes, strict=True)]
    for sequence in sequences:
        batcher.add(sequence)
    while batcher.num_running or batcher.num_waiting:
        sizes.append([])
        batcher.step()
    assert [sequence.ids for sequence in sequences] == alone
    assert sizes[6] == [3, 2, 1]
    assert readings[2 * 5 + 1] == 6  # two a step while prompts are read


def test_where_sampling_together_fails_one_fault_ends_one_answer(mini_int4, monkeypatch):
    engine = glm_int4.load(mini_int4, device="cpu")
    prompts = [engine.tokenizer.encode_prompt(question) for question in QUESTIONS[:3]]
    alone = [generate_alone(engine, prompt, 12 + i) for i, prompt in enumerate(prompts)]
    batcher = Batcher(engine, 3)
    sequences = make(batcher, engine, prompts, 12)
    together = sampling.Sampler._choose

    def choose(self, logits, seen, picked, samplers):
        if sequences[1].sampler in samplers and len(sequences[1].ids) >= 2:
            raise RuntimeError("boom")
        return together(self, logits, seen, picked, samplers)

    monkeypatch.setattr(sampling.Sampler, "_choose", choose)
    errors = run(batcher, sequences)
    assert [str(errors.pop(sequences[1])), errors] == ["boom", {}]
    assert [sequences[0].ids, sequences[2].ids] == [alone[0], alone[2]]


def test_logits_that_are_not_finite_end_one_answer(mini_int4, monkeypatch):
    engine = glm_int4.load(mini_int4, device="cpu")
    batcher = Batcher(engine, 2)
    bad, good = make(batcher, engine, [engine.tokenizer.encode_prompt("你好")] * 2, 4)
    forward = batcher._forward

    def poisoned(rows):
        logits = forward(rows)
        return torch.where(torch.tensor([[row is bad] for row in rows]), torch.nan, logits)

    monkeypatch.setattr(batcher, "_forward", poisoned)
    ((sequence, error),) = run(batcher, [bad, good]).items()
    assert sequence is bad
    assert isinstance(error, NotFiniteError)
    assert good.ids


def test_a_prompt_without_room_and_a_wrong_number_of_slots_are_refused(mini_int4):
    engine = glm_int4.load(mini_int4, device="cpu", max_length=8)
    with pytest.raises(InputError, match="expected a prompt of less than 8 tokens, got 8"):
        Batcher(engine, 1).sequence([5] * 8, 4, GREEDY, frozenset())
    for number in (0, continuous.MAX_SLOTS + 1):
        with pytest.raises(InputError, match="expected from 1 to 16 answers"):
            Batcher(engine, number)


def test_an_answer_ends_where_the_context_ends(mini_int4):
    engine = glm_int4.load(mini_int4, device="cpu", max_length=12)
    batcher = Batcher(engine, 1)
    sequence = batcher.sequence(engine.tokenizer.encode_prompt("你好"), None, GREEDY, frozenset())
    run(batcher, [sequence])
    assert len(sequence.prompt) + len(sequence.ids) == 12


@pytest.mark.parametrize(("version", "pieces"), [("1", [40]), ("3", [16, 16, 8])])
def test_a_prompt_is_read_in_the_pieces_in_which_it_is_read_alone(small_checkpoints, monkeypatch, version, pieces):
    """Another cut would round otherwise: an answer's bits would depend on who reads the prompt."""
    engine = with_pieces(glm_int4.load(MINI if version == "1" else small_checkpoints[version], device="cpu"), 16)
    prompt = [*range(9, 47), engine.tokenizer.gmask_id, engine.tokenizer.bos_id]
    widths = []
    read = engine.model.last_hidden_state
    monkeypatch.setattr(
        engine.model, "last_hidden_state", lambda ids, *rest: widths.append(ids.shape[1]) or read(ids, *rest)
    )
    engine.generate(prompt, 1, GREEDY)
    assert widths == pieces
    widths.clear()
    batcher = Batcher(engine, 1)
    run(batcher, [batcher.sequence(prompt, 1, GREEDY, frozenset())])
    assert widths == pieces


@pytest.mark.parametrize("kv_bits", [16, 8])
@pytest.mark.parametrize("num_slots", [2, 8])
def test_sequences_with_one_prompt_in_common_read_it_once(mini_int4, monkeypatch, num_slots, kv_bits):
    engine = glm_int4.load(mini_int4, device="cpu", kv_bits=kv_bits)
    prompt = engine.tokenizer.encode_prompt(QUESTIONS[0])
    draws = [SamplingParams(temperature=2.0, top_p=1.0, top_k=0, seed=seed) for seed in range(6)]
    alone = [engine.generate(prompt, 9, sampling, stop_ids=[]) for sampling in draws]
    assert len(set(map(tuple, alone))) >= 4
    batcher, lengths = Batcher(engine, num_slots), []
    transform = engine.model.last_hidden_state

    def counted(ids, *more):
        lengths.append(ids.shape[1])
        return transform(ids, *more)

    monkeypatch.setattr(engine.model, "last_hidden_state", counted)
    sequences = [batcher.sequence(prompt, 9, sampling, frozenset()) for sampling in draws]
    for sequence in sequences:
        batcher.add(sequence)
    while batcher.num_running or batcher.num_waiting:
        batcher.step()
    assert [sequence.ids for sequence in sequences] == alone
    assert lengths.count(len(prompt)) == 1  # each of two slots hands it on before it is left


def test_an_equal_prompt_of_somebody_else_is_read_again(mini_int4):
    engine = glm_int4.load(mini_int4, device="cpu")
    prompt = engine.tokenizer.encode_prompt(QUESTIONS[0])
    batcher = Batcher(engine, 2)
    first, second = (batcher.sequence([*prompt], 3, GREEDY, frozenset()) for _ in range(2))
    batcher.add(first)
    batcher.add(second)
    batcher.step()
    assert first.first_logits is None
