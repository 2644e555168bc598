"""Where Triton keeps compiled kernels: its own folder or a named one, or another where that one cannot be written.

Triton compiles nothing without such a folder.
"""

import functools
import logging
import os
from importlib import import_module
from pathlib import Path
from typing import Any

from glm_int4.system import own_temporary_folder, user_cache_folder, write_fault

logger = logging.getLogger(__name__)

NAMED_BY = "TRITON_CACHE_DIR"


def triton_folder() -> Path | None:
    """Triton's own choice, which may not exist yet; None for a user without a home."""
    if named := os.environ.get(NAMED_BY):
        return Path(named)
    home = Path(os.environ.get("TRITON_HOME") or os.path.expanduser("~"))
    return home / ".triton" / "cache" if home.is_absolute() else None


@functools.cache
def prepare_kernel_cache() -> None:
    """Let Triton keep what it compiles in another folder where its own cannot be written, and say so once.

    Called before the first kernel is compiled. A folder that a program has set stays; so does the environment, which
    other programs inherit.
    """
    try:
        knobs: Any = import_module("triton").knobs
    except Exception:  # a broken Triton raises anything; ``obstacle`` says what is wrong with it
        return
    if "dir" in vars(knobs.cache):
        return
    own = triton_folder()
    fault = "this user has no home" if own is None else write_fault(own)
    if fault is None:
        return
    folder = other_folder()
    if folder is None:
        logger.warning(
            "compiled kernels cannot be kept (%s: %s), and so none is compiled; set %s to a folder that can be written",
            own or "~/.triton",
            fault,
            NAMED_BY,
        )
        return
    logger.info("compiled kernels are kept in %s (%s: %s)", folder, own or "~/.triton", fault)
    propagates, knobs.propagate_env = knobs.propagate_env, False
    try:
        knobs.cache.dir = str(folder)
    finally:
        knobs.propagate_env = propagates


def other_folder() -> Path | None:
    """A folder that can be written in place of Triton's own: in the user's cache or a temporary one; None for none."""
    user = user_cache_folder()
    if user and write_fault(user / "kernels") is None:
        return user / "kernels"
    temporary = own_temporary_folder()
    if temporary and write_fault(temporary / "kernels") is None:
        return temporary / "kernels"
    return None
