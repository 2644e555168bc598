"""Keys that clients send, and the names under which the log knows them."""

import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from glm_int4.downloads import found_instead
from glm_int4.errors import InputError


@dataclass(frozen=True, slots=True)
class Key:
    """A key and its owner's name, which is no secret."""

    name: str
    secret: str = field(repr=False)


def read_keys(path: Path) -> tuple[Key, ...]:
    """Keys of a file: on every line a key, or a name and a key; ``#`` begins a comment.

    Raises:
        InputError: it cannot be read, holds no key, or one twice.
    """
    if fault := found_instead(path):
        raise InputError(f"expected a file of keys at {path}, got {fault}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        raise InputError(f"expected a text file of keys at {path}, got another ({type(error).__name__})") from error
    keys = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if len(words) > 2:
            raise InputError(f"expected a name and a key on line {number} of {path}, got {len(words)} words")
        if words:
            keys.append(Key(words[0] if len(words) == 2 else f"line-{number}", words[-1]))
    if not keys:
        raise InputError(f"expected a key on a line of {path}, got none")
    if len({key.secret for key in keys}) < len(keys):
        raise InputError(f"expected every key of {path} once, got one twice; give every client its own")
    return tuple(keys)


def find_key(keys: Sequence[Key], header: bytes) -> Key | None:
    """The key of an Authorization header; the time it takes tells nothing about any."""
    scheme, _, given = header.partition(b" ")
    right = [key for key in keys if hmac.compare_digest(given.strip(), key.secret.encode())]
    return right[0] if right and scheme.lower() == b"bearer" else None
