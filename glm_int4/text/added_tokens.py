"""Tokens that fine-tuning added to an official tokenizer: found in text before it is cut up, shown in answers."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from glm_int4.downloads import ABSENT, found_instead, read_json, shown
from glm_int4.errors import TokenizerError

# Where packages list them: by text, by id, and as a list of both.
_BY_TEXT, _BY_ID, _IN_FAST = "added_tokens.json", "tokenizer_config.json", "tokenizer.json"
_MOST_CHARACTERS = 1000
_MOST_BYTES = 64 << 20
# Special tokens of all versions: they stay plain text where somebody types them.
OFFICIAL = {
    *("[MASK]", "[gMASK]", "[sMASK]", "<unk>", "<pad>", "<s>", "</s>", "sop", "eop", "<sop>", "<eop>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|endoftext|>"),
    *("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
}


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A text that is one id. lstrip, rstrip: whether white space on that side of it in a text belongs to it."""

    content: str
    id: int
    lstrip: bool = False
    rstrip: bool = False


class AddedTokens:
    """Tokens around a tokenizer's own pieces; none by default, and then nothing changes.

    Args:
        tokens: those that are found in text.
    """

    def __init__(self, tokens: Collection[AddedToken] = ()) -> None:
        self.tokens = tuple(tokens)
        self.ids = {token.content: token.id for token in tokens}
        self.contents = {token.id: token.content for token in tokens}
        longest_first = sorted(tokens, key=lambda token: -len(token.content))
        patterns = [
            (r"\s*" if token.lstrip else "") + f"({re.escape(token.content)})" + (r"\s*" if token.rstrip else "")
            for token in longest_first
        ]
        self._pattern = re.compile("|".join(patterns)) if patterns else None

    def encode(self, text: str, encode: Callable[[str], list[int]]) -> list[int]:
        """Ids of a text; ``encode`` makes those of the text between added tokens."""
        if self._pattern is None:
            return encode(text)
        ids, start = [], 0
        for match in self._pattern.finditer(text):
            if match.start() > start:
                ids += encode(text[start : match.start()])
            ids.append(self.ids[match[match.lastindex or 0]])
            start = match.end()
        return ids + encode(text[start:]) if start < len(text) or not ids else ids

    def decode(self, ids: Iterable[int], decode: Callable[[list[int]], str]) -> str:
        """Text of ids; ``decode`` makes that of the ids between added tokens."""
        if self._pattern is None:
            return decode(list(ids))
        runs = ((added, list(run)) for added, run in groupby(ids, self.contents.__contains__))
        return "".join("".join(map(self.contents.__getitem__, run)) if added else decode(run) for added, run in runs)


def read_added_tokens(folder: Path) -> list[AddedToken]:
    """What the files of a folder add to the official special tokens, which they may list too.

    Raises:
        TokenizerError: a file is damaged, or two tokens share an id or a text.
    """
    found: dict[str, AddedToken] = {}
    texts: dict[int, str] = {}
    for path, token in _listed(folder):
        earlier = found.get(token.content, token)
        if earlier.id != token.id or texts.get(token.id, token.content) != token.content:
            raise TokenizerError(
                f"expected one id for every added token in {folder}, got {shown(token.content)} as {token.id} in "
                f"{path.name} and {shown(texts.get(token.id, token.content))} as {earlier.id} elsewhere"
            )
        found[token.content], texts[token.id] = token, token.content
    return [token for token in found.values() if token.content not in OFFICIAL]


def _listed(folder: Path) -> Iterator[tuple[Path, AddedToken]]:
    """Every added token of every file."""
    path = folder / _BY_TEXT
    for content, token_id in _read(path).items():
        yield path, _checked(path, content, token_id, {})
    path = folder / _BY_ID
    by_id = _read(path).get("added_tokens_decoder")
    for token_id, token in by_id.items() if isinstance(by_id, dict) else ():
        known = token if isinstance(token, dict) else {}
        number = int(token_id) if re.fullmatch(r"\d{1,9}", token_id) else token_id
        yield path, _checked(path, known.get("content"), number, known)
    path = folder / _IN_FAST
    if (folder / _BY_TEXT).is_file() or isinstance(by_id, dict):  # they say the same, and this file is large
        return
    listed = _read(path).get("added_tokens")
    for token in listed if isinstance(listed, list) else ():
        known = token if isinstance(token, dict) else {}
        yield path, _checked(path, known.get("content"), known.get("id"), known)


def _read(path: Path) -> dict[str, Any]:
    return {} if found_instead(path) == ABSENT else read_json(path, TokenizerError, most_bytes=_MOST_BYTES)


def _checked(path: Path, content: object, token_id: object, known: dict[str, Any]) -> AddedToken:
    if (
        not isinstance(content, str)
        or not 1 <= len(content) <= _MOST_CHARACTERS
        or not isinstance(token_id, int)
        or isinstance(token_id, bool)
        or not 0 <= token_id < 2**31
    ):
        raise TokenizerError(
            f"expected a text and its id for every added token in {path}, got {shown(content)} and {shown(token_id)}"
        )
    return AddedToken(content, token_id, known.get("lstrip") is True, known.get("rstrip") is True)
