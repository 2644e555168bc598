"""One thread count for torch and Numba, and one Numba loop at a time."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_LOCK = threading.Lock()


@contextmanager
def numba_threads() -> Iterator[None]:
    """Run a parallel Numba loop with as many threads as torch uses.

    Numba's default threading layer must not be entered from two threads at once. The first loop starts it,
    which sets OpenMP's thread count, and with it torch's, to the number of processors: that is taken back.
    """
    import numba

    with _LOCK:
        num_threads = torch.get_num_threads()
        numba.set_num_threads(min(num_threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
        try:
            yield
        finally:
            if torch.get_num_threads() != num_threads:
                torch.set_num_threads(num_threads)
