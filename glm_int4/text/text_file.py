"""Reading a text file that somebody names."""

from pathlib import Path

from glm_int4.errors import InputError
from glm_int4.text.chat.messages import is_blank


def read_text(path: Path, what: str = "text") -> str:
    """The text of a UTF-8 file that shows something; ``what`` is its name in errors.

    Raises:
        InputError: it cannot be read, is no text, or is empty.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise InputError(f"expected a readable text file, got {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"expected UTF-8 in {path}, got other bytes at position {error.start}; convert it, for example with iconv"
        ) from error
    if is_blank(text):
        raise InputError(f"expected a {what} in {path}, got an empty file")
    if "\0" in text:
        raise InputError(f"expected a {what} in {path}, got a binary file")
    return text
