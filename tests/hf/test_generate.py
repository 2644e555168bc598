"""``generate``, its ways of picking tokens, streamers and the pipeline."""

import threading

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, TextIteratorStreamer, pipeline

from glm_int4.generation.sampling import SamplingParams
from tests.conftest import FIXTURES, MINI

GREEDY = SamplingParams(temperature=0)
QUESTIONS = ["3加5等于几?", "What is 3 plus 12?"]


@pytest.fixture(scope="module")
def prompts(hf_mini_tokenizer):
    return hf_mini_tokenizer(QUESTIONS, return_tensors="pt", padding=True)


def new_text(tokenizer, prompts, tokens):
    return tokenizer.batch_decode(tokens[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("version", ["1", "2", "3"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_tokens_are_the_official_ones(tiny_models, version, use_cache):
    cases = load_file(FIXTURES / f"v{version}_tiny" / "cases.safetensors")
    for name in ("gmask_prompt", "mask_infill") if version == "1" else ("prompt", "long"):
        ids = cases[f"{name}.input_ids"]
        tokens = tiny_models[version].generate(ids, max_new_tokens=20, eos_token_id=-1, use_cache=use_cache)
        assert tokens[:, ids.shape[1] :].tolist() == cases[f"{name}.greedy"].tolist()


def test_a_padded_batch_answers_as_the_engine_does(hf_mini, hf_mini_tokenizer, mini, prompts):
    tokens = hf_mini.generate(**prompts, max_new_tokens=20)
    assert new_text(hf_mini_tokenizer, prompts, tokens) == ["8", "15"]
    rows = [hf_mini_tokenizer(question)["input_ids"] for question in QUESTIONS]
    answers = mini.generate(rows, 20, GREEDY)
    stop = hf_mini_tokenizer.eos_token_id
    for row, answer in zip(tokens[:, prompts["input_ids"].shape[1] :].tolist(), answers, strict=True):
        assert row[: row.index(stop)] == answer


def test_packed_weights_answer_as_the_engine_does(packed, hf_mini_tokenizer):
    model, engine = packed
    inputs = hf_mini_tokenizer(QUESTIONS[0], return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=20)[0, inputs["input_ids"].shape[1] :]
    assert tokens.tolist()[:-1] == engine.generate(inputs["input_ids"][0].tolist(), 20, GREEDY)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 4},
        {"do_sample": True, "top_p": 0.7, "temperature": 0.5, "repetition_penalty": 1.1},
        {"do_sample": True, "min_p": 0.5, "num_beams": 2},
        {"cache_implementation": "static"},
        {"past_key_values": None, "use_cache": False},
    ],
    ids=str,
)
def test_other_ways_of_picking_answer_too(hf_mini, hf_mini_tokenizer, prompts, options):
    torch.manual_seed(0)
    tokens = hf_mini.generate(**prompts, max_new_tokens=20, **options)
    assert new_text(hf_mini_tokenizer, prompts, tokens) == ["8", "15"]


def test_beams_return_several_answers_best_first(hf_mini, hf_mini_tokenizer, prompts):
    tokens = hf_mini.generate(**prompts, max_new_tokens=20, num_beams=3, num_return_sequences=2)
    answers = new_text(hf_mini_tokenizer, prompts, tokens)
    assert len(set(answers)) == 4
    assert answers[::2] == ["8", "15"]


def test_looking_tokens_up_in_the_prompt_changes_no_greedy_token(tiny_models):
    ids = torch.tensor([[141, 143, 14, 51, 88, 14, 51, 88, 14, 51]])
    for version in "23":
        plain = tiny_models[version].generate(ids, max_new_tokens=20, eos_token_id=-1)
        guessed = tiny_models[version].generate(ids, max_new_tokens=20, eos_token_id=-1, prompt_lookup_num_tokens=3)
        assert guessed.tolist() == plain.tolist()


@pytest.mark.parametrize("version", ["1", "2"])
def test_a_cache_of_the_callers_goes_on_from_where_it_was(tiny_models, version):
    cases, model = load_file(FIXTURES / f"v{version}_tiny" / "cases.safetensors"), tiny_models[version]
    ids = cases["gmask_prompt.input_ids" if version == "1" else "prompt.input_ids"]
    cache = DynamicCache()
    first = model.generate(ids, max_new_tokens=8, eos_token_id=-1, past_key_values=cache)
    both = model.generate(first, max_new_tokens=12, eos_token_id=-1, past_key_values=cache)
    assert both.tolist() == model.generate(ids, max_new_tokens=20, eos_token_id=-1).tolist()


def test_an_answer_ends_at_the_ids_of_its_version(tiny_models, small_checkpoints, hf_mini):
    assert hf_mini.generation_config.eos_token_id == [9]
    assert AutoModelForCausalLM.from_pretrained(small_checkpoints["3"]).generation_config.eos_token_id == [2, 406, 408]


def test_a_streamer_gets_the_answer_piece_by_piece(hf_mini, hf_mini_tokenizer):
    streamer = TextIteratorStreamer(hf_mini_tokenizer, skip_prompt=True, skip_special_tokens=True)
    inputs = hf_mini_tokenizer(QUESTIONS[1], return_tensors="pt")
    thread = threading.Thread(target=hf_mini.generate, kwargs={**inputs, "streamer": streamer, "max_new_tokens": 20})
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert "".join(pieces) == "15"


def test_the_pipeline_continues_prompts_and_conversations(mini_int4):
    generator = pipeline("text-generation", model=str(mini_int4), device="cpu")
    options = {"max_new_tokens": 20, "do_sample": False}
    batch = generator(QUESTIONS, batch_size=2, return_full_text=False, **options)
    assert [answers[0]["generated_text"] for answers in batch] == ["8", "15"]
    chat = generator([{"role": "user", "content": QUESTIONS[0]}], **options)
    assert chat[0]["generated_text"][-1] == {"role": "assistant", "content": "8"}


@pytest.mark.parametrize("version", ["2", "3"])
def test_versions_2_and_3_chat_through_the_pipeline(small_checkpoints, version):
    folder = small_checkpoints[version]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "你好"}]
    generator = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    answer = generator(chat, max_new_tokens=8, do_sample=False)[0]["generated_text"][-1]["content"]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    expected = model.engine.generate(prompt, 8, GREEDY)
    assert answer == model.engine.tokenizer.decode(expected)


def test_the_mini_model_loads_by_a_plain_path():
    assert AutoModelForCausalLM.from_pretrained(str(MINI)).engine.config.version == "1"
