"""Putting a finished folder in its place: a kill at any moment leaves the old folder or the new one.

Where the system can exchange two folders in one step (Linux, most file systems), the final name never
lacks a complete folder. Elsewhere the old one moves aside first, and the next run puts it back where
the new one did not arrive.
"""

import contextlib
import ctypes
import glob
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glm_int4.checkpoint.files.folder import PARTIAL_SUFFIX, PROGRESS
from glm_int4.errors import OutputError
from glm_int4.system import lock_folder, sync_folder

logger = logging.getLogger(__name__)

REPORT = "quantization_report.json"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # <fcntl.h>, <linux/fs.h>


def partial_folder(output: Path) -> Path:
    """Where an output is written until it is complete."""
    return output.with_name(output.name + PARTIAL_SUFFIX)


def check_output(output: Path, *, overwrite: bool) -> None:
    """Raise OutputError where ``output`` may not become the result."""
    try:
        taken = output.exists() and not (output.is_dir() and not any(output.iterdir()))
    except OSError as error:
        raise OutputError(f"expected an output folder that can be made, got {output}: {error.strerror}") from error
    if taken and not output.is_dir():
        raise OutputError(
            f"expected the name of a folder as output, got {output}, which is a file; choose another name"
        )
    if taken and not overwrite:
        raise OutputError(f"expected a new output folder, got {output}, which exists; pass --overwrite or another name")


def is_ours(folder: Path) -> bool:
    """Whether a folder holds nothing, or nothing but what a run like this has written."""
    entries = list(folder.iterdir())
    return not entries or ((folder / REPORT).is_file() and all(entry.is_file() for entry in entries))


def is_begun(partial: Path) -> bool:
    """Whether a run has begun to write in an unfinished folder."""
    return any((partial / name).is_file() for name in (PROGRESS, f"{PROGRESS}.tmp"))


def empty_folder(folder: Path) -> None:
    """Delete what is in a folder; what tells that it is ours goes last, so that a kill does not orphan it."""
    last = {REPORT: 1, PROGRESS: 2}
    for entry in sorted(folder.iterdir(), key=lambda entry: last.get(entry.name, 0)):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def publish(partial: Path, output: Path) -> None:
    """Give a finished folder its final name.

    A folder of that name that a run like this has written goes; anything else is not ours to delete,
    and stays as ``<output>.old-*``.
    """
    sync_folder(partial)
    if output.exists():
        _replace(partial, output)
    else:
        os.rename(partial, output)
    sync_folder(output.parent)
    tidy(output)


def _replace(partial: Path, output: Path) -> None:
    with contextlib.suppress(OSError):
        _remove_replaced(output)  # of a run that was killed after its replacement: only one may be there to put back
    lock = lock_folder(output)  # once it bears the partial folder's name, another run could take it for its own
    try:
        ours = is_ours(output)
        prefix = _replaced_prefix(output) if ours else f"{output.name}.old-"
        old = Path(tempfile.mkdtemp(prefix=prefix, dir=output.parent)) / output.name
        if not ours:
            logger.warning("no run of glm-int4 wrote what is in %s: moving it to %s", output, old)
        if exchange(partial, output):
            try:
                os.rename(partial, old)
            except OSError as error:  # the new one is in its place all the same
                logger.warning("what was in %s is in %s now (%s)", output, partial, error.strerror)
        else:
            os.rename(output, old)
            os.rename(partial, output)
    finally:
        if lock is not None:
            os.close(lock)


def tidy(output: Path, fingerprint: Any = None) -> None:
    """Delete what this run, and runs that were killed while they published ``output``, have left beside it.

    With the fingerprint of ``output``, what they left in its unfinished folder goes too.
    """
    partial = partial_folder(output)
    try:
        (output / PROGRESS).unlink(missing_ok=True)
        _remove_replaced(output)
        if fingerprint is not None and partial.is_dir():
            _tidy_partial(partial, output, fingerprint)
    except OSError as error:
        logger.warning("cannot delete what a run left beside %s: %s", output, error)


def _tidy_partial(partial: Path, output: Path, fingerprint: Any) -> None:
    lock = lock_folder(partial)
    try:
        if (partial / PROGRESS).exists():
            if noted_progress(partial).get("fingerprint") == fingerprint:
                _remove_folder(partial)
        elif is_ours(partial) or is_begun(partial):  # the old folder, exchanged; a run that noted nothing yet
            _remove_folder(partial)
        else:
            logger.warning("no run of glm-int4 wrote what was in %s: it is in %s now", output, partial)
    finally:
        if lock is not None:
            os.close(lock)


def noted_progress(partial: Path) -> dict[str, Any]:
    """What a run noted in its unfinished folder; empty where it cannot be read."""
    try:
        progress = json.loads((partial / PROGRESS).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return progress if isinstance(progress, dict) else {}


def _remove_folder(folder: Path) -> None:
    empty_folder(folder)
    folder.rmdir()


def put_back(output: Path) -> None:
    """Undo half a replacement: the old folder moved aside, and the run was killed before the new one came."""
    for holder in [] if output.exists() else _replaced(output):
        with contextlib.suppress(OSError):
            os.rename(holder / output.name, output)
            holder.rmdir()
            return


def _remove_replaced(output: Path) -> None:
    """Delete outputs on their way out, under another name first: what is half deleted is never put back."""
    for holder in _replaced(output):
        whole, doomed = holder / output.name, holder / f"{output.name}.deleted"
        if whole.is_dir():
            os.rename(whole, doomed)
        if doomed.is_dir():
            _remove_folder(doomed)
        holder.rmdir()


def exchange(first: Path, second: Path) -> bool:
    """Let two folders change names in one step; False where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    if renameat2 is None:
        return False
    return renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0


def _replaced_prefix(output: Path) -> str:
    return f".{output.name}.replaced-"


def _replaced(output: Path) -> Iterator[Path]:
    """Folders that hold an output of ours on its way out."""
    return output.parent.glob(glob.escape(_replaced_prefix(output)) + "*")
