"""The keyboard and the signals while an answer runs: what is typed waits, Ctrl-C stops, the terminal stays sane."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

try:
    import termios
except ImportError:  # Windows: what is typed is shown there
    termios = None  # type: ignore[assignment]


@contextmanager
def leaving_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the program, so that everything that changed the terminal changes it back.

    What was ignored stays ignored: nohup does that. A second signal does not break the leaving off.
    """

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        sys.exit(128 + number)

    numbers = _heeded("SIGTERM", "SIGHUP")
    before = [signal.signal(number, leave) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Within it Ctrl-C, SIGTERM and SIGHUP wait until the end."""
    waiting: list[int] = []
    numbers = _heeded("SIGINT", "SIGTERM", "SIGHUP")
    before = [signal.signal(number, lambda number, frame: waiting.append(number)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        for came in waiting:
            signal.raise_signal(came)


def _heeded(*names: str) -> list[signal.Signals]:
    """Signals that this system has and that are not ignored."""
    known = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return [number for number in known if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def typed_text_waits() -> Iterator[None]:
    """Show nothing of what is typed meanwhile; the next prompt gets it. Ctrl-C still works."""
    if termios is None or not sys.stdin.isatty():
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    quiet = termios.tcgetattr(descriptor)
    quiet[0] &= ~termios.ICRNL  # Enter stays Enter for the prompt
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(descriptor, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)


class Interrupts:
    """Ctrl-C as KeyboardInterrupt: at once while the model computes, after the writing while the screen is written."""

    def __init__(self) -> None:
        self._held = self._pending = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within it Ctrl-C is noted instead of raised."""
        before = signal.signal(signal.SIGINT, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within it Ctrl-C waits until the end."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._pending:
            self._pending = False
            raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._held:
            raise KeyboardInterrupt
        self._pending = True
