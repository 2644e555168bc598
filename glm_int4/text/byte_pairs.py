"""Vocabularies of bytes on disk, as GLM-4 has them: lines of a token and its rank, or a ``tokenizer.json``.

The ``tokenizers`` library cuts text. Special tokens are known by their names here, and never found in text.
"""

import base64
import binascii
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glm_int4.downloads import found_instead, read_json, shown
from glm_int4.errors import TokenizerError

if TYPE_CHECKING:
    import tokenizers

MAX_FILE_BYTES = 64 << 20  # the official file of lines has 2.6 MB
# Where text is cut before its bytes are merged, as officially.
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_PLAIN = (*range(33, 127), *range(161, 173), *range(174, 256))


def _byte_names() -> list[str]:
    """Of every byte the character that byte-level vocabularies write for it."""
    others = iter(range(256, 512))
    return [chr(byte) if byte in _PLAIN else chr(next(others)) for byte in range(256)]


_NAMES = _byte_names()
_BYTES = {name: byte for byte, name in enumerate(_NAMES)}


@dataclass(frozen=True, slots=True)
class BytePairs:
    """Tokens by id, the special ones that a file names, and what cuts text into ids."""

    tokens: list[bytes]
    encoder: "tokenizers.Tokenizer"
    special: dict[str, int] = field(default_factory=dict)

    def encode(self, text: str) -> list[int]:
        """Ids of a text; special tokens in it are plain text."""
        return self.encoder.encode(text, add_special_tokens=False).ids


def name_of(token: bytes) -> str:
    """A token as byte-level vocabularies write it: a character a byte, all of them visible."""
    return "".join(map(_NAMES.__getitem__, token))


def read_rank_file(path: Path) -> BytePairs:
    """Read lines of a token in base64 and its rank, which counts from 0.

    Raises:
        TokenizerError: the file is missing or damaged; it names the line.
    """
    tokens = list(_ranked_tokens(path))
    _check_tokens(tokens, path)
    return BytePairs(tokens, _encoder(tokens))


def read_fast_file(path: Path) -> BytePairs:
    """Read a ``tokenizer.json`` of a byte-level vocabulary.

    Raises:
        TokenizerError: the file is missing or damaged, or holds a vocabulary of another kind.
    """
    content = read_json(path, TokenizerError, most_bytes=MAX_FILE_BYTES)
    added = content.get("added_tokens")
    special = {token["content"]: token["id"] for token in added or () if _is_added(token)}
    tokens = _named_tokens(content.get("model"), special, path)
    _check_tokens(tokens, path)
    plain: dict[str, Any] = {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    return BytePairs(tokens, _parsed(json.dumps(content | plain), path), special)


def _ranked_tokens(path: Path) -> Iterator[bytes]:
    fault = found_instead(path)
    if fault is not None:
        raise TokenizerError(f"expected lines of tokens and ranks in {path}, got {fault}")
    try:
        size = path.stat().st_size
        lines = path.read_bytes().splitlines() if size <= MAX_FILE_BYTES else []
    except OSError as error:
        raise TokenizerError(f"expected a readable {path}, got: {error.strerror}") from error
    if not lines:
        raise TokenizerError(f"expected lines of tokens and ranks in {path}, got {size} bytes; download it again")
    for rank, line in enumerate(lines):
        encoded, _, number = line.partition(b" ")
        try:
            token = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            token = b""
        if not token or number != str(rank).encode():
            raise TokenizerError(
                f"expected a token in base64 and its rank {rank} in line {rank + 1} of {path}, "
                f"got {shown(line.decode(errors='replace'))}; download it again"
            )
        yield token


def _named_tokens(model: object, special: dict[str, int], path: Path) -> list[bytes]:
    """Tokens by id of a model in a ``tokenizer.json``."""
    vocabulary = model.get("vocab") if isinstance(model, dict) and model.get("type") == "BPE" else None
    if not isinstance(vocabulary, dict):
        raise TokenizerError(f"expected a byte-level BPE vocabulary in {path}, got another model; download it again")
    ids = {name: index for name, index in vocabulary.items() if name not in special}
    if sorted(ids.values(), key=lambda index: index if type(index) is int else -1) != list(range(len(ids))):
        raise TokenizerError(f"expected ids from 0 to {len(ids) - 1} in {path}, got others; download it again")
    tokens = [b""] * len(ids)
    for name, index in ids.items():
        if not all(character in _BYTES for character in name):
            raise TokenizerError(
                f"expected a byte-level BPE vocabulary in {path}, got the piece {shown(name)}; "
                "take the file that belongs to the model"
            )
        tokens[index] = bytes(map(_BYTES.__getitem__, name))
    return tokens


def _check_tokens(tokens: Sequence[bytes], path: Path) -> None:
    """Raise TokenizerError where a token stands twice, or some byte is none."""
    ((token, times),) = Counter(tokens).most_common(1)
    if times > 1:
        raise TokenizerError(
            f"expected every token once in {path}, got {shown(token)} {times} times; download it again"
        )
    if missing := sorted({bytes([byte]) for byte in range(256)}.difference(tokens)):
        raise TokenizerError(
            f"expected a token for every byte in {path}, got none for {missing[0].hex()}; download it again"
        )


def _encoder(tokens: Sequence[bytes]) -> "tokenizers.Tokenizer":
    """What merges the bytes of a text by the ranks of the tokens that they make."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    names = [name_of(token) for token in tokens]
    model = models.BPE(vocab=dict(zip(names, range(len(names)), strict=True)), merges=list(_merges(names)))
    model.ignore_merges = True  # a piece that is a token is that token, whatever would merge first
    encoder = Tokenizer(model)
    encoder.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return encoder


def _merges(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every pair of tokens that make a token, the lowest rank first.

    The leftmost of equals is merged first. Equals overlap where a token ends as it begins; the split with the longer
    left part is then the one more to the left, so it comes first.
    """
    known = set(names)
    for name in names:
        for end in range(len(name) - 1, 0, -1):
            if name[:end] in known and name[end:] in known:
                yield name[:end], name[end:]


def _parsed(text: str, path: Path) -> "tokenizers.Tokenizer":
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises no other kind
        reason = " ".join(str(error).split())[:120]
        raise TokenizerError(
            f"expected a tokenizer.json in {path}, got another ({reason}); download it again"
        ) from error


def _is_added(token: Any) -> bool:
    return (
        isinstance(token, dict)
        and isinstance(token.get("content"), str)
        and type(token.get("id")) is int
        and token["id"] >= 0
    )
