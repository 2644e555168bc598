"""Memory that a process no longer needs, given back to the system."""

import contextlib
import ctypes


def trim_heap() -> None:
    """Return freed heap to the system, where the C library can (glibc).

    Loading ChatGLM-6B in INT4 leaves 0.15 GB of it behind.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
