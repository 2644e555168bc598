"""The tokenizer of ChatGLM-6B (v1): SentencePiece unigram with pieces for white space.

Ids agree with the official class one for one, with one exception on purpose: special tokens that a
user types ([MASK], <sop>, <eop>, <pad>, <unk>) stay plain text.
"""

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from glm_int4.errors import TokenizerError
from glm_int4.text.added_tokens import AddedToken, AddedTokens
from glm_int4.text.sentencepiece_model import load_model, piece_bytes, read_model, read_spec
from glm_int4.text.text_file import check_encodable

MAX_BLANK_LENGTH = 80
OLD_NUM_IMAGE_TOKENS = 20000
_CONTROL, _USER_DEFINED, _BYTE = 3, 4, 6  # piece types of the SentencePiece format

CONTROL_PIECES = ("[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")
SPACE_PIECES = ("<|tab|>", *(f"<|blank_{i}|>" for i in range(2, MAX_BLANK_LENGTH + 1)))
_SPACE_BEGINNINGS = {piece[:end] for piece in ("<n>", *SPACE_PIECES) for end in range(1, len(piece))}
_BLANKS = re.compile(f" {{2,{MAX_BLANK_LENGTH}}}")
_BLANK_PIECE = re.compile(r"<\|blank_([2-9]|[1-7]\d|80)\|>")


class ChatGLMTokenizer:
    """Text to ids of ChatGLM-6B and back; see ``tokenizer.Tokenizer``.

    Args:
        model_file: ``ice_text.model``, of either official vocabulary.
        num_image_tokens: ids in front of the first text piece; None asks the file (20000 for the
            first vocabulary, whose file lacks the special pieces, otherwise 0).
        added: what ``read_added_tokens`` has found.
    Raises:
        TokenizerError: not a SentencePiece model, or special pieces are missing.
    """

    version = "1"
    rewritten = ("<n>", *SPACE_PIECES)
    longest_piece = MAX_BLANK_LENGTH

    def __init__(
        self, model_file: str | Path, num_image_tokens: int | None = None, added: Collection[AddedToken] = ()
    ) -> None:
        model = read_model(Path(model_file))
        self._sp = load_model(model, model_file)
        self.added = AddedTokens(added)
        self.spec = read_spec(model)
        algorithm = self.spec.algorithm
        if algorithm != "unigram":
            raise TokenizerError(
                f"expected ChatGLM-6B's unigram model in {model_file}, got a {algorithm} model; "
                f"the file of ChatGLM2-6B and ChatGLM3-6B is called tokenizer.model"
            )
        if self._find("<sop>") is None:
            # The first revision adds its special pieces in code; serialized messages concatenate.
            self._sp = load_model(model + _added_pieces(), model_file)
            num_image_tokens = OLD_NUM_IMAGE_TOKENS if num_image_tokens is None else num_image_tokens
        self.num_image_tokens = num_image_tokens or 0
        self.pad_id = self.piece_id("<pad>")
        self.mask_id = self.piece_id("[MASK]")
        self.gmask_id = self.piece_id("[gMASK]")
        self.sop_id = self.bos_id = self.piece_id("<sop>")
        self.eos_id = self.piece_id("<eop>")
        self.role_ids: dict[str, int] = {}

    @property
    def special_names(self) -> tuple[str, ...]:
        """As of ``Tokenizer``."""
        return ()

    @property
    def vocab_size(self) -> int:
        """Number of ids that stand for something; the embedding matrix may have more rows."""
        return max(self.num_image_tokens + self._sp.get_piece_size(), *(i + 1 for i in self.added.contents), 0)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end an answer."""
        return (self.eos_id,)

    @property
    def prefix_ids(self) -> list[int]:
        """What every prompt begins with: nothing."""
        return []

    @property
    def suffix_ids(self) -> list[int]:
        """What every prompt ends with: [gMASK], <sop>."""
        return [self.gmask_id, self.sop_id]

    def piece_id(self, piece: str) -> int:
        """Id of a piece by its name.

        Raises:
            TokenizerError: there is no such piece.
        """
        index = self._find(piece)
        if index is None and piece in self.added.ids:
            return self.added.ids[piece]
        if index is None:
            raise TokenizerError(f"expected the piece {piece} in the tokenizer, got none; is this ice_text.model?")
        return index + self.num_image_tokens

    def id_to_piece(self, token_id: int) -> str:
        """Name of a piece; the empty string for ids without one."""
        if token_id in self.added.contents:
            return self.added.contents[token_id]
        index = token_id - self.num_image_tokens
        return self._sp.id_to_piece(index) if 0 <= index < self._sp.get_piece_size() else ""

    def piece_bytes(self) -> list[bytes]:
        """What every id below ``vocab_size`` adds behind other text; empty for special and added ones."""
        texts = {name.encode(): self._white_space(name).encode() for name in self.rewritten}
        pieces = [texts.get(piece, piece) for piece in piece_bytes(self._sp)]
        pieces = [b""] * self.num_image_tokens + pieces
        pieces += [b""] * (self.vocab_size - len(pieces))
        return [b"" if i in self.added.contents else piece for i, piece in enumerate(pieces)]

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``, with no special ids added.

        Raises:
            InputError: a lone surrogate, which no file in UTF-8 holds.
        """
        check_encodable(text)
        return self.added.encode(text, self._encode_pieces) if self.added.ids else self._encode_pieces(text)

    def _encode_pieces(self, text: str) -> list[int]:
        text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
        text = _BLANKS.sub(lambda match: f"<|blank_{len(match[0])}|>", text)
        return [index + self.num_image_tokens for index in self._sp.encode(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ``ids``; special ids and ids without a piece are left out."""
        return self.added.decode(ids, self._decode_pieces)

    def _decode_pieces(self, ids: list[int]) -> str:
        size, offset = self._sp.get_piece_size(), self.num_image_tokens
        return self._white_space(self._sp.decode([i - offset for i in ids if 0 <= i - offset < size]))

    @staticmethod
    def _white_space(text: str) -> str:
        """A text with the names of its white space replaced by what they stand for."""
        text = text.replace("<n>", "\n").replace("<|tab|>", "\t")
        return _BLANK_PIECE.sub(lambda match: " " * int(match[1]), text)

    def may_change(self, text: str) -> bool:
        """Whether ids that follow may change the end of a text that ``decode`` gave.

        The name of a piece for white space may also come letter by letter.
        """
        return text.endswith("\ufffd") or text[max(text.rfind("<"), 0) :] in _SPACE_BEGINNINGS

    def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of ``text`` as a context to answer: text, [gMASK], <sop>."""
        return [*self.encode(text), self.gmask_id, self.sop_id]

    def _find(self, piece: str) -> int | None:
        index = self._sp.piece_to_id(piece)
        return index if self._sp.id_to_piece(index) == piece else None


def _added_pieces() -> bytes:
    """Special pieces of the first revision, as fields of a serialized SentencePiece model."""
    pieces = [(name, _CONTROL) for name in CONTROL_PIECES]
    pieces += [(name, _USER_DEFINED) for name in SPACE_PIECES]
    pieces += [(f"<0x{byte:02X}>", _BYTE) for byte in range(256)]
    out = bytearray()
    for name, kind in pieces:
        # ModelProto.pieces (field 1) = {piece: field 1, score: field 2 (float 0), type: field 3}
        message = b"\x0a" + bytes([len(name)]) + name.encode() + b"\x15\0\0\0\0" + b"\x18" + bytes([kind])
        out += b"\x0a" + bytes([len(message)]) + message
    # ModelProto.trainer_spec (field 2) = {byte_fallback: field 35 (true)}
    return bytes(out) + b"\x12\x03\x98\x02\x01"
