"""The tokenizer of ChatGLM2-6B (v2) and ChatGLM3-6B (v3): SentencePiece BPE and special ids behind it.

Both read the same ``tokenizer.model``. The special ids are no pieces of it: they follow its last piece
in a fixed order, and v3 has four more, one a role.
"""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from glm_int4.downloads import shown
from glm_int4.errors import TokenizerError
from glm_int4.text.added_tokens import AddedToken, AddedTokens
from glm_int4.text.sentencepiece_model import load_model, piece_bytes, read_model, read_spec
from glm_int4.text.text_file import check_encodable
from glm_int4.text.tokenizer import PrefixedPrompts

if TYPE_CHECKING:
    import sentencepiece

SPECIAL_PIECES = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
ROLES = ("system", "user", "assistant", "observation")
ROLE_PIECES = tuple(f"<|{role}|>" for role in ROLES)
CONTROL_PIECES = ("<unk>", "<s>", "</s>")  # pieces 0, 1 and 2 of the model itself


def special_pieces(version: str) -> tuple[str, ...]:
    """Names of the ids that follow the model's last piece, in order."""
    return (*SPECIAL_PIECES, *ROLE_PIECES) if version == "3" else SPECIAL_PIECES


class ChatGLM2Tokenizer(PrefixedPrompts):
    """Text to ids of ChatGLM2-6B or ChatGLM3-6B and back; see ``tokenizer.Tokenizer``.

    Args:
        model_file: ``tokenizer.model``.
        version: "2" or "3".
        added: what ``read_added_tokens`` has found.
    Raises:
        TokenizerError: not a SentencePiece model, or not one of this kind.
    """

    rewritten: tuple[str, ...] = ()
    longest_piece = 80  # more than the official file has

    def __init__(self, model_file: str | Path, version: str = "2", added: Collection[AddedToken] = ()) -> None:
        if version not in ("2", "3"):
            raise TokenizerError(f"expected version 2 or 3 for {model_file}, got {shown(version)}")
        model = read_model(Path(model_file))
        self._sp = load_model(model, model_file)
        self.added = AddedTokens(added)
        _check_kind(self._sp, model, model_file)
        self.version, self.spec = version, read_spec(model)
        self._base = self._sp.get_piece_size()
        self._special = special_pieces(version)
        self._special_ids = {name: self._base + index for index, name in enumerate(self._special)}
        self.pad_id = self._sp.unk_id()
        self.eos_id = self._sp.eos_id()
        self.mask_id = self._special_ids["[MASK]"]
        self.gmask_id = self._special_ids["[gMASK]"]
        self.sop_id = self.bos_id = self._special_ids["sop"]
        self.role_ids = {
            role: self._special_ids[piece]
            for role, piece in zip(ROLES, ROLE_PIECES, strict=True)
            if piece in self._special_ids
        }
        self._silent = {self._sp.unk_id(), self._sp.bos_id(), self._sp.eos_id()}

    @property
    def special_names(self) -> tuple[str, ...]:
        """As of ``Tokenizer``."""
        return self._special

    @property
    def vocab_size(self) -> int:
        """Number of ids that stand for something; the embedding matrix has more rows."""
        return max(self._base + len(self._special), *(i + 1 for i in self.added.contents), 0)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end an answer: the end of text, in v3 also a turn of the user or of a tool."""
        return (self.eos_id, *(self.role_ids[role] for role in ("user", "observation") if role in self.role_ids))

    def piece_id(self, piece: str) -> int:
        """Id of a piece by its name.

        Raises:
            TokenizerError: there is no such piece.
        """
        if piece in self._special_ids:
            return self._special_ids[piece]
        if piece in self.added.ids:
            return self.added.ids[piece]
        index = self._sp.piece_to_id(piece)
        if self._sp.id_to_piece(index) != piece:
            raise TokenizerError(f"expected the piece {shown(piece)} in the tokenizer, got none; is it of version 3?")
        return index

    def id_to_piece(self, token_id: int) -> str:
        """Name of a piece; the empty string for ids without one."""
        if token_id in self.added.contents:
            return self.added.contents[token_id]
        if 0 <= token_id < self._base:
            return self._sp.id_to_piece(token_id)
        return self._special[token_id - self._base] if 0 <= token_id - self._base < len(self._special) else ""

    def piece_bytes(self) -> list[bytes]:
        """What every id below ``vocab_size`` adds behind other text; empty for special and added ones."""
        pieces = piece_bytes(self._sp)
        pieces += [b""] * (self.vocab_size - len(pieces))
        return [b"" if i in self.added.contents or i in self._silent else piece for i, piece in enumerate(pieces)]

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``, with no special ids added.

        Raises:
            InputError: a lone surrogate, which no file in UTF-8 holds.
        """
        check_encodable(text)
        return self.added.encode(text, self._sp.encode) if self.added.ids else self._sp.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ``ids``; special ids and ids without a piece are left out."""
        return self.added.decode(ids, self._decode_pieces)

    def _decode_pieces(self, ids: list[int]) -> str:
        return self._sp.decode([i for i in ids if 0 <= i < self._base and i not in self._silent])


def _check_kind(sp: "sentencepiece.SentencePieceProcessor", model: bytes, name: str | Path) -> None:
    """Raise TokenizerError for a SentencePiece model of another family."""
    spec = read_spec(model)
    if spec.algorithm != "BPE" or not spec.byte_fallback:
        hint = "that of ChatGLM-6B is called ice_text.model" if spec.algorithm == "unigram" else "download it again"
        kind = spec.algorithm + (" with" if spec.byte_fallback else " without") + " byte fallback"
        raise TokenizerError(f"expected ChatGLM2-6B's BPE model with byte fallback in {name}, got {kind}; {hint}")
    found = tuple(sp.id_to_piece(i) if i >= 0 else "none" for i in (sp.unk_id(), sp.bos_id(), sp.eos_id()))
    if found != CONTROL_PIECES:
        raise TokenizerError(
            f"expected the pieces {', '.join(CONTROL_PIECES)} in {name}, got {shown(', '.join(found))}; "
            f"is it the file of ChatGLM2-6B or ChatGLM3-6B?"
        )
