"""One thread count for torch and Numba, one Numba loop at a time, and threads that sleep while they wait."""

import functools
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_LOCK = threading.Lock()
_PARALLEL_ELEMENTS = 1 << 22  # so many that torch shares them out between all threads


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
        let_waiting_threads_sleep()
        threads = torch.get_num_threads()
        usable = min(threads, numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
        numba.set_num_threads(usable)
        try:
            yield usable
        finally:
            if torch.get_num_threads() != threads:  # starting Numba's threads sets OpenMP's number, which is torch's
                torch.set_num_threads(threads)


@functools.cache
def let_waiting_threads_sleep() -> None:
    """Have OpenMP's threads, which are torch's and Numba's, spin for microseconds while they wait, and then sleep.

    GNU's OpenMP lets them spin for up to 20 ms, which uses up the time that a busy system has for this process; but
    only while it has no more threads than there are processors. So it is given some more, which sleep for ever.
    """
    if sys.platform != "linux":  # other systems have another OpenMP
        return
    parked = threading.Event()
    threading.Thread(target=_park, args=(parked,), name="glm-int4-parked", daemon=True).start()
    parked.wait()


def _park(parked: threading.Event) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads((os.cpu_count() or 1) + 1)
    torch.ones(_PARALLEL_ELEMENTS).mul_(2.0)
    torch.set_num_threads(threads)  # the number is also that of threads that begin later
    parked.set()
    threading.Event().wait()
