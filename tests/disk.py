"""A disk that is full from a certain call on, for tests that go through every such call."""

import builtins
import errno
import io
import os
from contextlib import contextmanager


class Disk:
    """Counts the calls that need room in a folder, and has them fail from one on; elsewhere there is room.

    Attributes:
        count: calls so far.
        refused: what was refused first, for a test that fails.
    """

    def __init__(self, folder, full_from):
        self._folder, self._full_from = os.path.realpath(folder), full_from
        self.count, self.refused = 0, "nothing"

    def take(self, what, path):
        """Note a call; raise OSError where the disk is full by now."""
        path = os.path.realpath(path)
        if not path.startswith(self._folder):
            return
        self.count += 1
        if self._full_from is not None and self.count >= self._full_from:
            if self.count == self._full_from:
                self.refused = f"{what} {path}"
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class _File(io.FileIO):
    """A file whose every write counts."""

    def __init__(self, disk, path, file, mode):
        self._disk, self._path = disk, path
        super().__init__(file, mode)

    def write(self, data):
        self._disk.take("write", self._path)
        return super().write(data)


@contextmanager
def full_disk(monkeypatch, folder, full_from=None):
    """Make a folder's disk full from a call on; yields what counts the calls."""
    disk = Disk(folder, full_from)
    with monkeypatch.context() as patch:
        opened = _opener(disk)
        patch.setattr(io, "open", opened)
        patch.setattr(builtins, "open", opened)
        patch.setattr(os, "open", _checked(disk, os.open, lambda path, flags, *_: path if flags & os.O_CREAT else None))
        patch.setattr(os, "fsync", _checked(disk, os.fsync, _path_of))
        patch.setattr(os, "mkdir", _checked(disk, os.mkdir, lambda path, *_: path))
        for name in ("rename", "replace"):  # a folder may have to grow for the new name
            patch.setattr(os, name, _checked(disk, getattr(os, name), lambda path, target: target))
        yield disk


def _path_of(descriptor):
    return f"/proc/self/fd/{descriptor}"


def _checked(disk, real, path_of):
    def called(*arguments, **options):
        path = path_of(*arguments)
        if path is not None:
            disk.take(real.__name__, path)
        return real(*arguments, **options)

    return called


def _opener(disk):
    real = io.open

    def opened(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
        if opener is not None or not set(mode) & set("wax+"):
            return real(file, mode, buffering, encoding, errors, newline, closefd, opener)
        path = os.path.realpath(_path_of(file) if isinstance(file, int) else file)
        if not isinstance(file, int):
            disk.take("open", path)
        raw = _File(disk, path, file, mode.replace("b", "").replace("t", ""))
        binary = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return binary if "b" in mode else io.TextIOWrapper(binary, encoding, errors, newline)

    return opened
