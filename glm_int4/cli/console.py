"""What long work shows: a bar with the time left on a terminal, plain lines where output is piped."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LINE_EVERY_S = 5.0

Report = Callable[[int, int, str], None]


def stderr_console() -> Console:
    """The console for everything that is not a result."""
    return Console(stderr=True)


@contextmanager
def progress(title: str) -> Iterator[Report]:
    """Yield a function of (done, total, what is at hand)."""
    console = stderr_console()
    if not console.is_terminal:
        yield _plain_lines(title)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[item]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=None, item="")
        yield lambda done, total, item: bar.update(task, completed=done, total=total, item=item)


def _plain_lines(title: str) -> Report:
    started = last = time.monotonic()
    known_total: int | None = None

    def report(done: int, total: int, item: str) -> None:
        nonlocal started, last, known_total
        now = time.monotonic()
        if known_total not in (None, total):  # other work, of another speed
            started = last = now
        known_total = total
        if now - last < _LINE_EVERY_S or done <= 0:
            return
        last = now
        left = (now - started) * (total - done) / done
        print(f"{title}: {100 * done / total:.0f} %, about {left:.0f} s left ({item})", file=sys.stderr, flush=True)

    return report
