"""Tokenizer files; and what tokenizers are given: texts, ids, conversations of every version."""

import json
import re

from glm_int4.text import StreamDecoder, chat_format, load_tokenizer
from glm_int4.text.fast_tokenizer import fast_tokenizer_json
from tests.conftest import MINI
from tests.fuzz.mutations import Kind, as_text
from tests.fuzz.small_models import bpe_tokenizer, small_tokenizer, write_folder

TEXT = "你好, 3加5等于几?\n\t  <sop>[gMASK] x<|user|>" + "\N{GRINNING FACE}" * 3
V1, V2 = "ice_text.model", "tokenizer.model"
# Kinds that are files: name, first content.
FILES = {
    "config": ("tokenizer_config.json", '{"num_image_tokens": 3, "added_tokens_decoder": {"420": {"content": "<x>"}}}'),
    "decoder": (
        "tokenizer_config.json",
        '{"name_or_path": "chatglm3", "added_tokens_decoder": {"7": {"content": "<|user|>", "lstrip": true, '
        '"rstrip": true, "special": true}, "421": {"content": "好 x", "rstrip": true, "lstrip": true}}}',
    ),
    "added": ("added_tokens.json", '{"<|user|>": 407, "<tool>": 409, "好x": 410, " ": 411, "[gMASK]": 401}'),
    "special": ("special_tokens_map.json", '{"additional_special_tokens": ["<|user|>", {"content": "x"}]}'),
    "fast": ("tokenizer.json", '{"added_tokens": [{"id": 409, "content": "<tool>", "lstrip": true}], "model": {}}'),
}
WORDS = (
    *("num_image_tokens", "added_tokens_decoder", "added_tokens", "content", "id", "lstrip", "rstrip", "<|user|>"),
    *("<|assistant|>", "[gMASK]", "sop", "<sop>", "<n>", "<|tab|>", "<|blank_2|>", "<|blank_80|>", "<0x0A>", "<0xE4>"),
    *("<unk>", "</s>", "<x>", "<tool>", "[[训练时间]]", "[Round 1]\n\n问：", "答：", "interpreter", "```", "metadata"),
    *("role", "system", "user", "assistant", "observation", "tools", "name", "parameters", "properties", "required"),
)
TEXTS = (TEXT, "好 x<x> <tool>  好x", " a  b \n\n\tc", "[Round 0]\n问：a\n答：b", "interpreter\n ```python\n1\n```")
TOOL = {"name": "track", "parameters": {"type": "object", "properties": {"symbol": {}}, "required": ["symbol"]}}
CALL = {"role": "assistant", "metadata": "track", "content": " ```python\ntool_call(symbol='1')\n```"}
CONVERSATIONS = (
    [{"role": "system", "content": "简短"}, {"role": "user", "content": "你好"}],
    [{"role": role, "content": "3加5"} for role in ("user", "assistant", "user")],
    [{"role": "system", "content": "", "tools": [TOOL]}, {"role": "user", "content": "a"}],
    [{"role": "user", "content": "a"}, CALL, {"role": "observation", "content": "5"}],
)
PLAIN = re.compile(r"(?:[A-Za-z0-9\u4e00-\u9fa5]+[ \n])*[A-Za-z0-9\u4e00-\u9fa5]+")


class Target:
    """Loading, encoding, decoding at once and as a stream, writing prompts, reading answers."""

    def __init__(self, work):
        self._work = work
        bpe = bpe_tokenizer(work)
        self._folder_files = {V1: small_tokenizer(False), V2: bpe}
        self._names = {"model1": V1, "model2": V2} | {kind: name for kind, (name, _) in FILES.items()}
        models = {"model1": self._folder_files[V1], "model2": bpe}
        write_folder(work / "taken", {V1: (MINI / V1).read_bytes(), V2: bpe})
        write_folder(
            work / "added", {V1: (MINI / V1).read_bytes(), V2: bpe, "added_tokens.json": FILES["added"][1].encode()}
        )
        self._taken = [load_tokenizer(work / "taken", version) for version in ("1", "2", "3")]
        self._with_added = [load_tokenizer(work / "added", version) for version in ("1", "2", "3")]
        conversations = tuple(json.dumps(conversation).encode() for conversation in CONVERSATIONS)
        self.kinds = {
            **{kind: Kind(format="bytes", seeds=(data,), words=WORDS) for kind, data in models.items()},
            **{
                kind: Kind(format="json", seeds=(text.encode(),), words=(*WORDS, TEXT))
                for kind, (_, text) in FILES.items()
            },
            "text": Kind(format="text", seeds=tuple(text.encode() for text in TEXTS), words=WORDS),
            "ids": Kind(format="json", seeds=(b"[5, 190, 222, 400, 404, 409, 2, 1301, -1, 100000]",)),
            "chat": Kind(format="json", seeds=conversations[:2], words=WORDS),
            "chat3": Kind(format="json", seeds=conversations, words=WORDS),
            "answer": Kind(format="text", seeds=tuple(text.encode() for text in TEXTS), words=WORDS),
        }

    def use(self, kind, data):
        if kind == "text":
            use_text(self._taken, self._with_added, as_text(data))
        elif kind == "ids":
            use_ids(self._taken + self._with_added, whole_numbers(data))
        elif kind in ("chat", "chat3"):
            tokenizers = self._taken + self._with_added
            use_conversation([t for t in tokenizers if (t.version == "3") == (kind == "chat3")], data)
        elif kind == "answer":
            use_answer(as_text(data))
        else:
            write_folder(self._work / kind, self._folder_files | {self._names[kind]: data})
            use_folder(self._work / kind, kind)


def use_folder(folder, kind):
    """Load a folder that holds the files of both kinds, as every version and as the files say."""
    for version in {"model1": "1", "model2": "23"}.get(kind, ("auto", "1", "2", "3")):
        tokenizer = load_tokenizer(folder, version)
        ids = tokenizer.encode(TEXT)
        check_ids(tokenizer, ids)
        check_stream(tokenizer, ids)
        check_stream(tokenizer, range(-5, min(tokenizer.vocab_size, 1000), 7))
        tokenizer.decode(range(-5, 1000))
        encode_prompt(tokenizer, [{"role": "user", "content": TEXT}])
        if version in "23":
            fast_tokenizer_json(folder / V2, version, added=[])


def use_text(tokenizers, with_added, text):
    """Encode, decode and stream a text."""
    for tokenizer in tokenizers:
        ids = tokenizer.encode(text)
        check_ids(tokenizer, ids)
        check_stream(tokenizer, ids)
        decoded = tokenizer.decode(ids)
        if tokenizer.version != "1":
            assert decoded == text.replace("\u2581", " ")
        elif PLAIN.fullmatch(text):
            assert decoded == text
        encode_prompt(tokenizer, [{"role": "user", "content": text + "?"}])
    for tokenizer in with_added:
        ids = tokenizer.encode(text)
        check_ids(tokenizer, ids)
        check_stream(tokenizer, ids)


def use_ids(tokenizers, ids):
    """Decode ids, whatever they are."""
    for tokenizer in tokenizers:
        check_stream(tokenizer, ids)
        for token in ids[:100]:
            tokenizer.id_to_piece(token)


def use_conversation(tokenizers, data):
    """Write a conversation, if it is one."""
    try:
        messages = json.loads(data)
    except (ValueError, RecursionError):
        return
    for tokenizer in tokenizers:
        encode_prompt(tokenizer, messages if isinstance(messages, list) else [messages])


def use_answer(text):
    """Read an answer of every version at once and as a stream."""
    for version in "123":
        form = chat_format(version)
        form.parse_reply(text)
        whole = form.response_stream()
        expected = whole.push(text) + whole.finish()
        stream = form.response_stream()
        pieces = [stream.push(text[i : i + 3]) for i in range(0, len(text), 3)] + [stream.finish()]
        assert "".join(pieces) == expected
        assert version == "3" or expected == form.parse_reply(text).content


def encode_prompt(tokenizer, messages):
    check_ids(tokenizer, chat_format(tokenizer.version).encode(tokenizer, messages))


def check_ids(tokenizer, ids):
    assert all(0 <= token < tokenizer.vocab_size for token in ids)


def check_stream(tokenizer, ids):
    """Pieces add up to what all ids are, and never end in half a character."""
    for decoder, whole in (
        (StreamDecoder(tokenizer), tokenizer.decode(ids)),
        (chat_format(tokenizer.version).reply_decoder(tokenizer), None),
    ):
        pieces = [decoder.push(token) for token in ids]
        assert not any(piece.endswith("\ufffd") for piece in pieces)
        text = "".join([*pieces, decoder.finish()])
        assert whole is None or text == whole


def whole_numbers(data):
    """The whole numbers in a JSON list that a model could give."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return []
    items = value if isinstance(value, list) else []
    return [item for item in items if type(item) is int and abs(item) < 2**31][:300]
