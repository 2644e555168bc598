"""The engine's methods, on the tiny model where ids suffice and on the mini model where text is needed."""

import json
import shutil

import pytest
import torch

import glm_int4
from glm_int4 import SamplingParams
from glm_int4.errors import InputError, TokenizerError
from glm_int4.generation.records import StreamRecord
from tests.conftest import MINI, TINY

GREEDY = SamplingParams(temperature=0)
QUESTION = [{"role": "user", "content": "3加5等于几?"}]


def test_generate_uses_ids_verbatim_and_leaves_the_stop_id_out(tiny, cases):
    ids, expected = cases["short.input_ids"][0].tolist(), cases["short.greedy"][0].tolist()
    assert tiny.generate(ids, 5, GREEDY, stop_ids=[]) == expected[:5]
    stop = expected[3]
    assert tiny.generate(ids, 20, GREEDY, stop_ids=[stop]) == expected[: expected.index(stop)]


def test_a_row_that_stops_does_not_change_the_others(tiny, cases):
    rows = [[t for t in row if t != 3] for row in cases["batch.input_ids"].tolist()]
    greedy = cases["batch.greedy"].tolist()
    stop = greedy[1][1]
    expected = [row[: row.index(stop)] if stop in row else row for row in greedy]
    assert tiny.generate(rows, 20, GREEDY, stop_ids=[stop]) == expected


def test_logits_take_one_sequence_or_a_batch(tiny):
    assert tiny.logits([1, 2, 141, 144]).shape == (1, 4, 160)
    batch = tiny.logits([[1, 2, 141, 144], [141, 144]])
    assert (batch.shape, batch.dtype) == ((2, 4, 160), torch.float32)


def test_sampling_repeats_with_a_seed(tiny):
    params = SamplingParams(seed=7, temperature=2.0, top_p=1.0)
    first, again = (tiny.generate([9, 141, 144], 20, params, stop_ids=[]) for _ in range(2))
    assert first == again
    assert first != tiny.generate([9, 141, 144], 20, SamplingParams(seed=8, temperature=2.0, top_p=1.0), stop_ids=[])


def test_two_streams_of_one_engine_do_not_disturb_each_other(tiny, cases):
    names = ("short", "gmask_prompt")
    streams = [tiny.stream_ids(cases[f"{n}.input_ids"][0].tolist(), 20, GREEDY, stop_ids=[]) for n in names]
    answers = list(zip(*streams, strict=True))
    assert [list(ids) for ids in zip(*answers, strict=True)] == [cases[f"{n}.greedy"][0].tolist() for n in names]


def test_max_length_counts_the_prompt(tiny_folder):
    glm = glm_int4.load(tiny_folder, device="cpu", max_length=12)
    assert len(glm.generate([9, 141, 144], 100, GREEDY, stop_ids=[])) == 9
    with pytest.raises(InputError, match="less than 12 tokens, got 13"):
        glm.generate([9] * 11 + [141, 144])


@pytest.mark.parametrize("ids", [[], [[]], [160], [-1], [[1], []]])
def test_ids_that_cannot_be_used_are_refused(tiny, ids):
    with pytest.raises(InputError, match="expected token ids"):
        tiny.generate(ids)


def test_arguments_of_load_are_checked(tiny_folder):
    for arguments, message in (
        ({"device": "tpu"}, "expected the device"),
        ({"dtype": torch.int8}, "expected dtype"),
        ({"threads": 0}, "expected from 1 to"),
        ({"max_length": 1}, "expected a max length"),
        ({"max_length": 10**6}, "expected a max length"),
        ({"threads": 10**6}, "threads on this machine"),
        ({"prefix": "ptuning"}, "expected a ptuning checkpoint folder or a file as prefix, got ptuning"),
        ({"kv_bits": 4}, "expected kv_bits 16 or 8"),
    ):
        with pytest.raises(InputError, match=message):
            glm_int4.load(tiny_folder, **arguments)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="expected a CUDA device, got none"):
            glm_int4.load(tiny_folder, device="cuda")


def test_a_folder_without_tokenizer_takes_ids_and_refuses_text(tiny):
    with pytest.raises(TokenizerError, match=r"expected a tokenizer \(ice_text.model\)"):
        tiny.chat(QUESTION)


def test_a_tokenizer_of_another_revision_is_refused(tmp_path):
    folder = shutil.copytree(MINI, tmp_path / "mini")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"gmask_token_id": config["mask_token_id"]}))
    with pytest.raises(TokenizerError, match="different revisions"):
        glm_int4.load(folder, device="cpu")


def test_a_tokenizer_file_alone_is_enough(tmp_path):
    folder = shutil.copytree(MINI, tmp_path / "mini")
    (folder / "tokenizer_config.json").unlink()
    assert glm_int4.load(folder, device="cpu").chat(QUESTION, sampling=GREEDY) == "8"


@pytest.mark.parametrize("dtype", [torch.float32, None])
def test_chat_answers(dtype):
    glm = glm_int4.load(MINI, device="cpu", dtype=dtype)
    assert glm.chat(QUESTION, sampling=GREEDY) == "8"


def test_streamed_pieces_add_up_to_the_answer(mini):
    messages = [{"role": "user", "content": "你会什么"}]
    pieces = list(mini.stream_chat(messages, sampling=GREEDY))
    assert len(pieces) > 3
    assert all(pieces)
    assert "".join(pieces) == mini.chat(messages, sampling=GREEDY)
    assert "，" in "".join(pieces), "punctuation between Chinese characters is full-width"


def test_a_fact_is_remembered_across_turns(mini):
    messages = [{"role": "user", "content": "我叫小明。"}]
    messages.append({"role": "assistant", "content": mini.chat(messages, sampling=GREEDY)})
    messages.append({"role": "user", "content": "我叫什么名字?"})
    assert "小明" in mini.chat(messages, sampling=GREEDY)


def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(mini):
    messages = [{"role": "user", "content": "Hello"}]
    whole = mini.chat(messages, sampling=GREEDY)
    assert whole == "Hello! I am a tiny demo model."
    stopped = SamplingParams(temperature=0, stop=("a tiny",))
    assert mini.chat(messages, sampling=stopped) == "Hello! I am"
    almost = SamplingParams(temperature=0, stop=("model.?",))
    assert mini.chat(messages, sampling=almost) == whole


def test_int4_and_int8_answer_like_the_original(mini, mini_int4, tmp_path):
    glm_int4.quantize_checkpoint(MINI, tmp_path / "int8", bits=8)
    for folder in (mini_int4, tmp_path / "int8"):
        glm = glm_int4.load(folder, device="cpu")
        for question in ("3加5等于几?", "What is the capital of France?", "你好"):
            messages = [{"role": "user", "content": question}]
            assert glm.chat(messages, sampling=GREEDY) == mini.chat(messages, sampling=GREEDY)


def test_stop_texts_match_what_the_user_sees(mini):
    messages = [{"role": "user", "content": "你好"}]
    assert mini.chat(messages, sampling=GREEDY).startswith("你好！")
    for stop in ("！", "!", ["！"]):
        assert mini.chat(messages, sampling=SamplingParams(temperature=0, stop=stop)) == "你好"


def test_questions_of_invisible_characters_are_refused(mini):
    for text in ("\u200b", "\u2060", "\u00ad"):
        with pytest.raises(InputError, match="empty prompt"):
            mini.chat([{"role": "user", "content": text}])


def test_arrays_and_tensors_are_taken_as_ids(tiny, cases):
    ids, expected = cases["short.input_ids"], cases["short.greedy"].tolist()
    for one in (ids[0], ids[0].numpy()):
        assert tiny.generate(one, 20, GREEDY, stop_ids=[]) == expected[0]
    for batch in (ids, ids.numpy()):
        assert tiny.generate(batch, 20, GREEDY, stop_ids=[]) == expected
    stops = torch.tensor(expected[0][3:4])
    assert tiny.generate(ids[0], 20, GREEDY, stop_ids=stops) == tiny.generate(
        ids[0], 20, GREEDY, stop_ids=expected[0][3:4]
    )


@pytest.mark.parametrize(
    ("max_new_tokens", "stop", "text", "cut"),
    [
        (None, (), "Hello! I am a tiny demo model.", False),
        (5, (), "Hello! I am", True),
        (5, ("am",), "Hello! I", False),  # with the last token that the limit allows
    ],
)
def test_a_record_tells_ids_prompt_and_whether_a_limit_cut_the_answer(mini, max_new_tokens, stop, text, cut):
    messages = [{"role": "user", "content": "Hello"}]
    record = StreamRecord()
    stream = mini.stream_chat(messages, max_new_tokens, SamplingParams(temperature=0, stop=stop), record)
    assert "".join(stream).rstrip() == text
    assert record.cut is cut
    assert record.prompt_tokens == mini.count_tokens(messages)
    assert len(record.ids) == (max_new_tokens or len(record.ids)) > 0


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"model": None}, "a folder or a hub id as model"),
        ({"max_length": "2048"}, "max_length to be a whole number"),
        ({"threads": 1.5}, "threads to be a whole number"),
        ({"device": 0}, "the device auto, cuda or cpu"),
        ({"dtype": "float32"}, "got 'float32'"),
    ],
)
def test_load_refuses_arguments_of_another_type(arguments, fault):
    with pytest.raises(InputError, match=fault):
        glm_int4.load(**({"model": TINY} | arguments))


@pytest.mark.gpu
def test_cuda_answers_like_the_cpu(mini, mini_int4):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    for folder in (MINI, mini_int4):
        glm = glm_int4.load(folder, device="cuda")
        assert glm.chat(QUESTION, sampling=GREEDY) == "8"
