"""One thread count for torch and Numba, and one Numba loop at a time."""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from glm_int4.quantization.cpu.waiting import look_at_the_machine

_LOCK = threading.Lock()


@functools.cache
def has_numba() -> bool:
    """Whether Numba can be imported."""
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return True


@contextmanager
def numba_threads() -> Iterator[int]:
    """Run a parallel Numba loop with as many threads as torch uses; as a context it gives their number.

    Numba's default threading layer must not be entered from two threads at once. The first loop starts it,
    which sets OpenMP's thread count, and with it torch's, to the number of processors: that is taken back.
    """
    import numba

    with _LOCK:
        look_at_the_machine()
        threads = torch.get_num_threads()
        usable = min(threads, numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
        numba.set_num_threads(usable)
        try:
            yield usable
        finally:
            if torch.get_num_threads() != threads:  # starting Numba's threads sets OpenMP's number, which is torch's
                torch.set_num_threads(threads)
