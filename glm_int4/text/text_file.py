"""Reading a text that somebody names: in UTF-8, with or without a byte order mark, its lines ended by LF or CR LF."""

import codecs
from pathlib import Path

from glm_int4.errors import InputError
from glm_int4.text.chat.messages import is_blank

BYTE_ORDER_MARK = "\ufeff"
# UTF-32 first: the mark of UTF-16 is the beginning of its own.
_OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read_text(path: Path, what: str = "text") -> str:
    """The text of a UTF-8 file that shows something, as ``plain`` makes it; ``what`` is its name in errors.

    Raises:
        InputError: it cannot be read, is no text, or is empty.
    """
    try:
        text = decode_text(path.read_bytes(), path)
    except OSError as error:
        raise InputError(f"expected a readable text file, got {path}: {error.strerror}") from error
    if is_blank(text):
        raise InputError(f"expected a {what} in {path}, got an empty file")
    if "\0" in text:
        raise InputError(f"expected a {what} in {path}, got a binary file")
    return text


def decode_text(content: bytes, path: Path) -> str:
    """The text in the bytes of a UTF-8 file, as ``plain`` makes it.

    Raises:
        InputError: they are not UTF-8.
    """
    if (encoding := marked_encoding(content)) is not None:
        raise InputError(f"expected UTF-8 in {path}, got {encoding}; {conversion(encoding)}")
    try:
        return plain(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(
            f"expected UTF-8 in {path}, got other bytes at position {error.start}; convert it, for example with iconv"
        ) from error


def plain(text: str) -> str:
    """A text without its byte order mark, and with a line feed for every CR LF; a CR alone stays as it is."""
    return text.removeprefix(BYTE_ORDER_MARK).replace("\r\n", "\n")


def marked_encoding(content: bytes | str) -> str | None:
    """The encoding that a byte order mark names, where it is another one than UTF-8.

    Args:
        content: bytes, or a text that came in as UTF-8 with other bytes escaped as surrogates.
    """
    for mark, encoding in _OTHER_MARKS.items():
        if isinstance(content, bytes):
            found = content.startswith(mark)
        else:
            found = content.startswith(mark.decode("utf-8", "surrogateescape"))
        if found:
            return encoding
    return None


def check_encodable(text: str, what: str = "the text", advice: str = "read the text as UTF-8") -> None:
    """Raise InputError where a text holds half of a surrogate pair: no tokenizer has ids for that."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"expected whole characters in {what}, got a lone surrogate U+{ord(text[error.start]):04X} "
            f"at position {error.start}; {advice}"
        ) from error


def conversion(encoding: str) -> str:
    """How to convert a text of another encoding."""
    return f"convert it: iconv -f {encoding} -t UTF-8"
