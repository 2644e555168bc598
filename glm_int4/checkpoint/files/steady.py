"""Reading a folder that somebody writes meanwhile: everything that is read is of one state of it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum, auto
from pathlib import Path
from typing import TypeVar

from glm_int4.errors import CheckpointError, UserError

_TRIES = 5

T = TypeVar("T")


class _Change(Enum):
    """What has happened to a folder."""

    NONE = auto()
    FILES = auto()  # some came or went
    REPLACED = auto()  # another one bears its name


def read_steadily(folder: Path, read: Callable[[], T]) -> T:
    """Return what ``read`` returns, having read again where the folder changed meanwhile.

    A quantizer exchanges two whole folders in one step: files that are opened by their names before and after that
    belong to two models, whose shapes may be the same. A download adds one file after another.

    Args:
        read: opens files of the folder; what it maps stays as it is, wherever the folder goes.
    Raises:
        CheckpointError: the folder was replaced again and again; whatever else ``read`` raises.
    """
    for is_last in [False] * (_TRIES - 1) + [True]:
        with _watched(folder) as change:
            try:
                result = read()
            except (UserError, OSError):
                if _is_settled(change(), is_last):
                    raise
            else:
                if _is_settled(change(), is_last):
                    return result
    raise CheckpointError(
        f"expected {folder} to stay in its place while it is read, got another folder there {_TRIES} times; "
        "wait until the runs that write it have ended"
    )


def _is_settled(change: _Change, is_last: bool) -> bool:
    """Whether what was read is of one folder; files may come and go all the time where somebody keeps notes."""
    return change is _Change.NONE or (is_last and change is _Change.FILES)


@contextmanager
def _watched(folder: Path) -> Iterator[Callable[[], _Change]]:
    """Hold a folder, so that no other gets its number; yields what tells how it has changed."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders; one that is gone is for the reader to name
        yield lambda: _Change.NONE
        return
    try:
        names = set(os.listdir(descriptor))
        yield lambda: _change(descriptor, folder, names)
    finally:
        os.close(descriptor)


def _change(descriptor: int, folder: Path, names: set[str]) -> _Change:
    try:
        if not os.path.samestat(os.fstat(descriptor), os.stat(folder)):
            return _Change.REPLACED
        return _Change.NONE if set(os.listdir(folder)) == names else _Change.FILES
    except OSError:
        return _Change.REPLACED
