"""Numba's compiled code on disk: kept wherever that is possible, and never in the way.

Numba's own cache refuses a function where it can write nothing, fails for ever at a damaged file, and takes code whose
own file is as it was, though a file that it imports has changed. Here a loop then runs without a cache, or is compiled
anew.
"""

import functools
import hashlib
import logging
import os
import pickle
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from glm_int4.system import own_temporary_folder, user_cache_folder, write_fault, write_whole

logger = logging.getLogger(__name__)

_PACKAGE = Path(__file__).parents[2]

_fault = functools.cache(write_fault)


def loop(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """``numba.njit(cache=True)``, but for the cache.

    Args:
        options: of ``numba.njit``, without ``cache``.
    """

    def compiled(function: Callable[..., Any]) -> Any:
        dispatcher = numba.njit(**options)(function)
        if not numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
            dispatcher._cache = _LoopCache(function)  # the attribute that cache=True sets
        return dispatcher

    return compiled


@functools.cache
def cache_folders() -> list[Path]:
    """Where compiled code may lie, the most wanted place first.

    Returns:
        NUMBA_CACHE_DIR alone where it is set; otherwise beside the package and in the user's cache, and where neither
        can be written, a temporary folder.
    """
    named = os.environ.get("NUMBA_CACHE_DIR")
    if named:
        return [Path(named).absolute() / "glm-int4"]
    user = user_cache_folder()
    folders = [_PACKAGE / "__pycache__" / "loops", *([user / "loops"] if user else [])]
    if all(_fault(folder) for folder in folders) and (temporary := own_temporary_folder()):
        folders.append(temporary / "loops")
    return folders


@functools.cache
def writable_folder() -> Path | None:
    """The first of ``cache_folders`` that can be written; None where none can, which one line says."""
    faults = {folder: _fault(folder) for folder in cache_folders()}
    for folder, fault in faults.items():
        if fault is None:
            logger.info("compiled code is kept in %s", folder)
            return folder
    logger.warning(
        "compiled code cannot be kept (%s), and is made anew at every start; "
        "set NUMBA_CACHE_DIR to a folder that can be written",
        "; ".join(f"{folder}: {fault}" for folder, fault in faults.items()),
    )
    return None


@functools.cache
def _sources() -> bytes:
    """A digest of all files that compiled code may come from."""
    digest = hashlib.sha256()
    for path in [*sorted((_PACKAGE / "quantization").rglob("*.py")), _PACKAGE / "models" / "cpu_step_loops.py"]:
        digest.update(path.read_bytes())
    return digest.digest()


class _LoopCache(FunctionCache):
    """The compiled variants of one function: a file for each, read from every folder, written to one.

    A file begins with a digest of the sources and of what follows, so that one which is stale, damaged or half written
    is not taken.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._name, self._py_func = repr(function), function
        self._cache_path = str(cache_folders()[0])
        self.enable()

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The code for one signature; None where there is none that can be used."""
        target_context.refresh()
        name = self._file_name(sig, target_context.codegen())
        for folder in cache_folders():
            try:
                content = (folder / name).read_bytes()
                if content[:32] == _digest(content[32:]):
                    return CompileResult._rebuild(target_context, *pickle.loads(content[32:]))
                logger.info("compiled code in %s is damaged or of other sources", folder / name)
            except OSError:
                pass
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep the code for one signature, where there is room."""
        folder = writable_folder()
        if folder is None or data.library.has_dynamic_globals:  # such code holds addresses of this process
            return
        content = dumps(data._reduce())
        try:
            write_whole(folder / self._file_name(sig, data.codegen), _digest(content) + content, mode=0o644)
        except OSError as error:
            _warn_once(folder, error.strerror)

    def flush(self) -> None:
        """Forget what is kept of this function."""
        for folder in cache_folders():
            for path in folder.glob(f"{self._begin()}-*"):
                with suppress(OSError):
                    path.unlink()

    def _begin(self) -> str:
        name = f"{Path(self._py_func.__code__.co_filename).stem}.{self._py_func.__qualname__}"
        return name.replace("<", "").replace(">", "")

    def _file_name(self, sig: Any, codegen: Any) -> str:
        """By function, Python, Numba, types and the processor's instructions."""
        key = repr((sys.version, numba.__version__, self._index_key(sig, codegen)))
        return f"{self._begin()}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.code"


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(_sources() + content).digest()


@functools.cache
def _warn_once(folder: Path, cause: str) -> None:
    logger.warning(
        "compiled code cannot be kept in %s (%s), and is made anew at the next start; "
        "make room, or set NUMBA_CACHE_DIR to another folder",
        folder,
        cause,
    )
