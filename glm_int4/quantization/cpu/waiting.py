"""How OpenMP's threads, which are torch's and Numba's, wait for work: awake on a quiet machine, asleep on a busy one.

GNU's OpenMP lets them spin for milliseconds, which uses up the time that a busy system has for this process. It lets
them spin for microseconds only, and then sleep, while it has more threads than there are processors. So on a busy
machine it is given some more, which only sleep. On a quiet one it is not: to wake a thread takes 0.1 ms on some
machines, and a short prompt waits for hundreds.
"""

import os
import sys
import threading
import time
from collections.abc import Callable

import torch

_PRESSURE = "/proc/pressure/cpu"  # Linux's pressure stall information
_ELEMENTS_OF_A_THREAD = 1 << 15  # torch gives no thread fewer

# A share of at least this time in which some thread waited for a processor. Two threads of ours that spin beside other
# busy programs make it nearly all, and none that sleep a fifth or more; a quiet machine has peaks of a third.
_AWAKE_S, _BUSY_SHARE = 0.02, 0.5
_ASLEEP_S, _CALM_SHARE = 0.5, 0.1


class Waiting:
    """Sleeps until the machine is seen to be quiet, and again from when it is seen to be busy.

    Args:
        read_stalled: seconds in which a thread of this system waited for a processor, or None where nobody knows.
        sleepers: what makes waiting threads sleep, with ``start`` and ``stop``.
    """

    def __init__(self, read_stalled: Callable[[], float | None], sleepers: "Sleepers") -> None:
        self._read_stalled, self._sleepers = read_stalled, sleepers
        self._asleep = False
        self._window: tuple[float, float] | None = None  # its beginning, and what was stalled then

    def look(self, now: float) -> None:
        """Decide anew; it takes microseconds. now: seconds of a clock that goes on."""
        stalled = self._read_stalled()
        if self._window is None or stalled is None:
            self._sleep(True)
            self._window = now, stalled or 0.0
            return
        started, before = self._window
        if now - started < (_ASLEEP_S if self._asleep else _AWAKE_S):
            return
        share, self._window = (stalled - before) / (now - started), (now, stalled)
        self._sleep(share > (_CALM_SHARE if self._asleep else _BUSY_SHARE))

    def _sleep(self, asleep: bool) -> None:
        if asleep != self._asleep:
            (self._sleepers.start if asleep else self._sleepers.stop)()
            self._asleep = asleep


class Sleepers:
    """More OpenMP threads than processors, which sleep."""

    def __init__(self) -> None:
        self._leave = threading.Event()

    def start(self) -> None:
        """Return when they sleep."""
        asleep, self._leave = threading.Event(), threading.Event()
        arguments = (asleep, self._leave)
        threading.Thread(target=_hold_threads, args=arguments, name="glm-int4-sleepers", daemon=True).start()
        asleep.wait()

    def stop(self) -> None:
        """Have them end."""
        self._leave.set()


def _hold_threads(asleep: threading.Event, leave: threading.Event) -> None:
    threads = torch.get_num_threads()
    more = (os.cpu_count() or 1) + 1
    torch.set_num_threads(more)
    torch.zeros(more * _ELEMENTS_OF_A_THREAD, dtype=torch.uint8).add_(1)
    torch.set_num_threads(threads)  # the number is also that of threads that begin later
    asleep.set()
    leave.wait()


def _pressure() -> Callable[[], float | None]:
    try:
        file = os.open(_PRESSURE, os.O_RDONLY)
        os.pread(file, 1, 0)
    except OSError:  # not Linux, or without this information
        return lambda: None

    def read() -> float | None:
        first_line = os.pread(file, 128, 0).partition(b"\n")[0]  # some avg10=0.00 avg60=0.00 avg300=0.00 total=123
        return int(first_line.rpartition(b"=")[2]) / 1e6

    return read


_WAITING: list[Waiting] = []


def look_at_the_machine() -> None:
    """Have OpenMP's threads wait as fits the machine now. Not for two threads at once."""
    if sys.platform != "linux":  # other systems have another OpenMP
        return
    if not _WAITING:
        _WAITING.append(Waiting(_pressure(), Sleepers()))
    _WAITING[0].look(time.monotonic())
