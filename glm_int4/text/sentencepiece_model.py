"""SentencePiece models on disk: reading them safely, and what a model says of itself.

Both tokenizer classes stand on this; neither vocabulary nor special pieces are known here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from glm_int4.downloads import found_instead
from glm_int4.errors import TokenizerError

if TYPE_CHECKING:
    import sentencepiece

MAX_MODEL_BYTES = 64 << 20  # the official files have 2.7 MB (v1) and 1.0 MB (v2, v3)
SPACE = "\u2581"  # SentencePiece's mark for a space
_ALGORITHMS = {1: "unigram", 2: "BPE", 3: "word", 4: "char"}


def read_model(path: Path) -> bytes:
    """Return the bytes of a model file, or raise TokenizerError naming what is there instead."""
    fault = found_instead(path)
    if fault is not None:
        raise TokenizerError(f"expected a SentencePiece model in {path}, got {fault}")
    try:
        size = path.stat().st_size
        if size > MAX_MODEL_BYTES:
            raise TokenizerError(f"expected a SentencePiece model in {path}, got {size} bytes; download it again")
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"expected a readable {path}, got: {error.strerror}") from error


def load_model(model: bytes, name: str | Path) -> "sentencepiece.SentencePieceProcessor":
    """Return a processor for a serialized model; ``name`` is what an error calls it."""
    import sentencepiece  # here, so that the command line starts without it

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
        ids = list(range(processor.get_piece_size()))
        processor.id_to_piece(ids)  # a piece that is not UTF-8 would raise at some later word
        processor.decode(ids)
        if processor.unk_id() < 0:  # what the library returns for a piece that it does not know
            raise ValueError("no unknown piece")
    except (RuntimeError, ValueError) as error:
        raise TokenizerError(
            f"expected a SentencePiece model in {name}, got something else; download it again"
        ) from error
    return processor


def piece_bytes(processor: "sentencepiece.SentencePieceProcessor") -> list[bytes]:
    """The bytes that every piece adds behind other text; empty for control pieces and the unknown one."""
    ids = list(range(processor.get_piece_size()))
    silent = [
        any(kinds)
        for kinds in zip(processor.is_control(ids), processor.is_unknown(ids), processor.is_unused(ids), strict=True)
    ]
    names, are_bytes = processor.id_to_piece(ids), processor.is_byte(ids)
    return [
        b"" if nothing else bytes([int(name[3:5], 16)]) if is_byte else name.replace(SPACE, " ").encode()
        for name, nothing, is_byte in zip(names, silent, are_bytes, strict=True)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """How a model cuts text, as its file says."""

    algorithm: str  # "unigram", "BPE", "word" or "char"
    byte_fallback: bool
    normalizer: str
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool


def read_spec(model: bytes) -> ModelSpec:
    """Read the settings of a serialized model that ``load_model`` has taken.

    ModelProto holds trainer_spec (field 2) and normalizer_spec (field 3); of a field that stands
    more than once the last counts, and absent ones have the defaults of the format.
    """
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for field, value in _fields(model):
        if field in (2, 3) and isinstance(value, bytes):
            (trainer if field == 2 else normalizer).update(_fields(value))
    name = normalizer.get(1, b"")
    return ModelSpec(
        algorithm=_ALGORITHMS.get(_number(trainer, 3, 1), "unknown"),
        byte_fallback=_number(trainer, 35, 0) != 0,
        normalizer=name.decode(errors="replace") if isinstance(name, bytes) else "",
        add_dummy_prefix=_number(normalizer, 3, 1) != 0,
        remove_extra_whitespaces=_number(normalizer, 4, 1) != 0,
    )


def user_defined_pieces(model: bytes) -> list[str]:
    """Pieces that are matched before any other: those of type 4 (field 3) among ModelProto's pieces (field 1)."""
    pieces = (dict(_fields(value)) for field, value in _fields(model) if field == 1 and isinstance(value, bytes))
    names = (piece.get(1, b"") for piece in pieces if piece.get(3) == 4)
    return [name.decode(errors="replace") for name in names if isinstance(name, bytes)]


def _number(fields: dict[int, int | bytes], field: int, default: int) -> int:
    value = fields.get(field, default)
    return value if isinstance(value, int) else default


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the number and value of every field of a serialized protobuf message."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind, length = tag & 7, {1: 8, 5: 4}.get(tag & 7, 0)
        if kind in (0, 2):
            value, position = _varint(message, position)
            if kind == 0:
                yield tag >> 3, value
                continue
            length = value
        yield tag >> 3, message[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise TokenizerError("expected a whole SentencePiece model, got a damaged one; download it again")
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
