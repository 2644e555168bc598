"""Added tokens: one id in a prompt, their text in an answer, and official ones stay what a user typed."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

import glm_int4
from glm_int4.checkpoint.files.reader import CheckpointReader
from glm_int4.errors import TokenizerError
from glm_int4.text import load_tokenizer
from glm_int4.text.streaming import StreamDecoder
from tests.conftest import MINI

VERSIONS = ["1", "2", "3"]
FILES = ["added_tokens.json", "tokenizer_config.json", "tokenizer.json"]


@pytest.fixture
def folder(tmp_path, small_checkpoints):
    """Make a folder of a version with a tokenizer and tokens that one of the files adds."""

    def make(version, file, tokens):
        source = MINI if version == "1" else small_checkpoints[version]
        copy = tmp_path / f"model-{version}"
        shutil.copytree(source, copy, dirs_exist_ok=True)
        content = {
            "added_tokens.json": tokens,
            "tokenizer_config.json": {"added_tokens_decoder": {str(i): {"content": t} for t, i in tokens.items()}},
            "tokenizer.json": {"added_tokens": [{"id": i, "content": t} for t, i in tokens.items()]},
        }[file]
        for name in FILES:
            (copy / name).unlink(missing_ok=True)
        (copy / file).write_text(json.dumps(content))
        return copy

    return make


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("version", VERSIONS)
def test_added_tokens_are_one_id_and_come_back_as_text(folder, version, file):
    plain = load_tokenizer(folder(version, file, {}), version)
    first = plain.vocab_size
    tokens = {"<tool>": first, "<tool>s": first + 1, "工具": first + 2}
    tokenizer = load_tokenizer(folder(version, file, tokens), version)
    text = "你好<tool>world<tool>s工具hello"
    ids = tokenizer.encode(text)
    assert ids == [
        *plain.encode("你好"),
        *(first, *plain.encode("world"), first + 1, first + 2),
        *plain.encode("hello"),
    ]
    assert tokenizer.decode(ids) == text
    decoder = StreamDecoder(tokenizer)
    assert "".join([decoder.push(i) for i in ids] + [decoder.finish()]) == text
    assert tokenizer.vocab_size == first + 3
    assert tokenizer.piece_id("<tool>") == first
    assert tokenizer.id_to_piece(first + 2) == "工具"
    assert tokenizer.encode("nothing added") == plain.encode("nothing added")
    assert tokenizer.encode("") == plain.encode("")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("official", ["<|user|>", "[gMASK]", "<|observation|>", "sop", "<sop>", "</s>"])
def test_official_special_tokens_that_are_listed_as_added_tokens_stay_plain_text(folder, version, file, official):
    plain = load_tokenizer(folder(version, file, {}), version)
    tokenizer = load_tokenizer(folder(version, file, {official: 64795}), version)
    assert tokenizer.encode(f"a {official} b") == plain.encode(f"a {official} b")
    assert tokenizer.vocab_size == plain.vocab_size


def test_added_tokens_take_white_space_where_they_say_so(folder):
    copy = folder("2", "tokenizer_config.json", {"<t>": 410})
    token = {"content": "<t>", "lstrip": True, "rstrip": True}
    (copy / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"410": token}}))
    tokenizer = load_tokenizer(copy, "2")
    assert tokenizer.encode("a  <t> \n b") == [*tokenizer.encode("a"), 410, *tokenizer.encode("b")]


@pytest.mark.parametrize(
    "content",
    [{"<t>": "1"}, {"<t>": -1}, {"": 5}, {"<t>": None}, {"<t>": True}, {"<t>": 1.5}, {"x" * 2000: 5}, [1]],
    ids=str,
)
def test_added_tokens_that_make_no_sense_are_named(folder, content):
    copy = folder("2", "added_tokens.json", {})
    (copy / "added_tokens.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match=r"added_tokens\.json"):
        load_tokenizer(copy, "2")


def test_added_tokens_of_two_files_that_differ_are_named(folder):
    copy = folder("2", "added_tokens.json", {"<t>": 410})
    (copy / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"411": {"content": "<t>"}}}))
    with pytest.raises(TokenizerError, match="one id for every added token"):
        load_tokenizer(copy, "2")


def test_added_tokens_beyond_the_embedding_are_an_error(folder):
    copy = folder("1", "added_tokens.json", {"<t>": 10**6})
    with pytest.raises(TokenizerError, match=r"1000000 for the added token '<t>'"):
        glm_int4.load(copy, device="cpu")


def widen(source, folder, rows):
    """A copy of a model whose embedding has more rows, as resize_token_embeddings makes them."""
    reader = CheckpointReader(source)
    tensors = {name: reader[name].clone() for name in reader}
    name = "transformer.word_embeddings.weight"
    tensors[name] = torch.cat([tensors[name], tensors[name][:rows]])
    tensors.pop("lm_head.weight", None)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    shutil.copy(source / "ice_text.model", folder)
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": len(tensors[name])}))
    return folder


def test_added_tokens_and_every_text_file_are_copied_by_quantize(tmp_path):
    copy = widen(MINI, tmp_path / "wide", 64)
    first = load_tokenizer(copy, "1").vocab_size
    (copy / "added_tokens.json").write_text(json.dumps({"<tool>": first}))
    others = {
        "chat_template.jinja": "{{ x }}",
        "README.md": "# hello",
        "LICENSE": "free",
        "tokenization_chatglm.py": "",
    }
    for name, text in others.items():
        (copy / name).write_text(text)
    (copy / ".gitattributes").write_text("x")
    output = tmp_path / "out"
    glm_int4.quantize_checkpoint(copy, output, bits=4)
    for name, text in others.items():
        assert (output / name).read_text() == text
    assert not (output / ".gitattributes").exists()
    glm = glm_int4.load(output, device="cpu")
    assert first in glm.tokenizer.encode("a<tool>b")
    assert glm.logits(glm.tokenizer.encode("a<tool>b")).isfinite().all()
