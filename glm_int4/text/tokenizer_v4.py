"""The tokenizer of GLM-4-9B: pairs of bytes that are merged, and special ids behind them.

It stands in ``tokenizer.model``, whose lines tiktoken reads, or in a ``tokenizer.json`` alone. In the first the special
ids follow the last rank in a fixed order, in the second they have their names.
"""

from collections.abc import Collection, Iterable
from pathlib import Path

from glm_int4.downloads import shown
from glm_int4.errors import TokenizerError
from glm_int4.text.added_tokens import AddedToken, AddedTokens
from glm_int4.text.byte_pairs import name_of, read_fast_file, read_rank_file
from glm_int4.text.sentencepiece_model import ModelSpec
from glm_int4.text.text_file import check_encodable
from glm_int4.text.tokenizer import PrefixedPrompts
from glm_int4.text.tokenizer_v2 import ROLE_PIECES, ROLES

_END = "<|endoftext|>"
_NEEDED = (_END, "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", *ROLE_PIECES)
_IMAGES = ("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>")


class GLM4Tokenizer(PrefixedPrompts):
    """Text to ids of GLM-4-9B and back; see ``tokenizer.Tokenizer``.

    Args:
        model_file: ``tokenizer.model`` or ``tokenizer.json``.
        added: what ``read_added_tokens`` has found.
    Raises:
        TokenizerError: not such a file, or special tokens are missing.
    """

    version = "4"
    rewritten: tuple[str, ...] = ()
    spec = ModelSpec(
        algorithm="BPE",
        byte_fallback=False,
        normalizer="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
    )

    def __init__(self, model_file: str | Path, added: Collection[AddedToken] = ()) -> None:
        path = Path(model_file)
        self._pairs = read_fast_file(path) if path.suffix == ".json" else read_rank_file(path)
        self._tokens, self.added = self._pairs.tokens, AddedTokens(added)
        self.longest_piece = max(map(len, self._tokens))
        following = {name: len(self._tokens) + index for index, name in enumerate((*_NEEDED, *_IMAGES))}
        named = {name: index for name, index in self._pairs.special.items() if name in following}
        self._special_ids = named or following
        if missing := [name for name in _NEEDED if name not in self._special_ids]:
            raise TokenizerError(
                f"expected the special token {missing[0]} in {path}, got none; is it the file of GLM-4-9B?"
            )
        self._special = {index: name for name, index in self._special_ids.items()}
        self.eos_id = self.pad_id = self._special_ids[_END]
        self.mask_id, self.gmask_id = self._special_ids["[MASK]"], self._special_ids["[gMASK]"]
        self.sop_id = self.bos_id = self._special_ids["<sop>"]
        self.role_ids = {role: self._special_ids[piece] for role, piece in zip(ROLES, ROLE_PIECES, strict=True)}

    @property
    def special_names(self) -> tuple[str, ...]:
        """As of ``Tokenizer``."""
        return tuple(self._special_ids)

    @property
    def vocab_size(self) -> int:
        """Number of ids that stand for something; the embedding matrix has more rows."""
        return max(len(self._tokens), *(i + 1 for i in self._special), *(i + 1 for i in self.added.contents))

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end an answer: the end of text, and a turn of the user or of a tool."""
        return (self.eos_id, self.role_ids["user"], self.role_ids["observation"])

    def piece_id(self, piece: str) -> int:
        """Id of a piece by its name.

        Raises:
            TokenizerError: there is no such piece.
        """
        found = self._special_ids.get(piece, self.added.ids.get(piece, self._pairs.encoder.token_to_id(piece)))
        if found is None:
            raise TokenizerError(f"expected the piece {shown(piece)} in the tokenizer, got none; is it of version 4?")
        return found

    def id_to_piece(self, token_id: int) -> str:
        """Name of a piece, a character a byte; the empty string for ids without one."""
        if token_id in self.added.contents:
            return self.added.contents[token_id]
        if 0 <= token_id < len(self._tokens):
            return name_of(self._tokens[token_id])
        return self._special.get(token_id, "")

    def piece_bytes(self) -> list[bytes]:
        """What every id below ``vocab_size`` adds behind other text; empty for special and added ones."""
        pieces = [*self._tokens, *[b""] * (self.vocab_size - len(self._tokens))]
        return [b"" if i in self.added.contents else piece for i, piece in enumerate(pieces)]

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``, with no special ids added.

        Raises:
            InputError: a lone surrogate, which no file in UTF-8 holds.
        """
        check_encodable(text)
        return self.added.encode(text, self._pairs.encode) if self.added.ids else self._pairs.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ``ids``; special ids and ids without a piece are left out."""
        return self.added.decode(ids, self._decode_pieces)

    def _decode_pieces(self, ids: list[int]) -> str:
        tokens, size = self._tokens, len(self._tokens)
        return b"".join(tokens[i] for i in ids if 0 <= i < size).decode(errors="replace")
