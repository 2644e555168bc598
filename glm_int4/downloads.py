"""Files that people download: small JSON objects, and what failed downloads leave in a file's place."""

import glob
import json
import os
import reprlib
from pathlib import Path
from typing import Any

ABSENT = "none"
# The official config.json has 1 KB, an index 33 KB; a JSON text can take 50 times its size in memory.
MAX_JSON_BYTES = 8 << 20
_MAX_DEPTH, _MAX_DIGITS, _MAX_SHOWN = 32, 100, 120

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 80


def shown(value: object) -> str:
    """A value from a file as an error names it: one short line, whatever it is."""
    text = _repr.repr(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def shown_name(name: str) -> str:
    """A name from a file, plain where it is an ordinary one."""
    return name if name.isprintable() and len(name) <= _MAX_SHOWN else shown(name)


def found_instead(path: Path) -> str | None:
    """What is in a file's place, and what to do about it.

    Returns:
        None where it may be the file itself, ``ABSENT`` where there is nothing.
    """
    try:
        if path.is_dir():
            return "a folder; put the file itself there"
        if not path.is_file():
            if path.is_symlink():
                return _broken_link(path)
            return "something that is not a regular file; put the file itself there" if path.exists() else ABSENT
        if path.with_name(path.name + ".aria2").exists():
            return "an unfinished download (.aria2 beside it); let the download finish"
        with path.open("rb") as file:
            start = file.read(256)
    except OSError as error:
        return f"{error.strerror or error}; make it readable"
    if not start:
        return "an empty file; download it again"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; fetch the file itself, for example with git lfs pull"
    if start.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith((b"<!doctype", b"<!--", b"<html", b"<?xml")):
        return "a web page; download the file itself"
    return None


def _broken_link(path: Path) -> str:
    """What a link to a missing file is: in the hub's cache, that file may be on its way under another name."""
    target = Path(os.path.realpath(path))
    if any(target.parent.glob(f"{glob.escape(target.name)}*.incomplete")):
        return "a link to an unfinished download; let it finish, or run it again: it goes on"
    return "a link to nowhere; download the file itself"


def read_json(path: Path, error_class: type[Exception], most_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Return a JSON object from a file, or raise ``error_class`` naming the file.

    Keys that stand twice in an object are refused: which one counts would be a guess.
    """
    fault = found_instead(path)
    if fault is not None:
        raise error_class(f"expected JSON in {path}, got {fault}")
    try:
        size = path.stat().st_size
        if size > most_bytes:
            raise error_class(f"expected at most {most_bytes} bytes of JSON in {path}, got {size}")
        text = path.read_bytes().decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=unique_keys, parse_int=_integer)
        check_depth(value)
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        reason = " ".join(str(error).split())[:120]
        raise error_class(f"expected JSON in {path}, got something else ({reason}); download it again") from error
    if not isinstance(value, dict):
        raise error_class(f"expected a JSON object in {path}, got {type(value).__name__}; download it again")
    return value


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """``object_pairs_hook`` of ``json.loads`` that raises ValueError where a key stands twice."""
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shown_name(twice)} stands there twice")
    return result


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def check_depth(value: object) -> None:
    """Raise ValueError where lists and objects are nested deeper than any real file's."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            item
            for parent in level
            if isinstance(parent, dict | list)
            for item in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return
    raise ValueError(f"lists or objects nested deeper than {_MAX_DEPTH} levels")
