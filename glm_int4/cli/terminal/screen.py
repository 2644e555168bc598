"""Where answers and notes appear: plain text for pipes and scripts, rendered Markdown on a terminal."""

import os
import sys
from collections.abc import Iterable
from typing import Protocol

from rich.console import Console
from rich.text import Text

from glm_int4.cli import console, options
from glm_int4.cli.terminal.keyboard import Interrupts, typed_text_waits
from glm_int4.cli.terminal.markdown import LiveMarkdown, terminal_console

_FALLBACK_SIZE = (80, 24)


class Screen(Protocol):
    """What a session shows things on."""

    def answer(self, pieces: Iterable[str]) -> None:
        """Show an answer as it comes, and end its last line, whatever happens."""

    def raw(self, text: str) -> None:
        """Show an answer once more, as it was written."""

    def note(self, text: str) -> None:
        """Show a line, or some, that is no answer."""

    def error(self, text: str) -> None:
        """Show what went wrong."""


class PlainScreen:
    """Raw answers on stdout, everything else on stderr."""

    def __init__(self) -> None:
        self._notes = console.stderr_console()

    def answer(self, pieces: Iterable[str]) -> None:
        """Print an answer as it comes."""
        begun = False
        try:
            for piece in pieces:
                print(options.printable(piece), end="", flush=True)
                begun = True
        except (KeyboardInterrupt, Exception):
            if begun:
                print(flush=True)
            raise
        print(flush=True)

    def raw(self, text: str) -> None:
        """Print an answer once more."""
        self.answer([text])

    def note(self, text: str) -> None:
        """Print a line that is no answer, on stderr."""
        self._print(text, "dim")

    def error(self, text: str) -> None:
        """Print what went wrong, on stderr."""
        self._print(f"error: {text}", "")

    def _print(self, text: str, style: str) -> None:
        self._notes.print(Text(options.harmless(text), style=style), soft_wrap=True)  # lines for grep


class _LiveText:
    """Shows a text as it grows, as it is."""

    def push(self, piece: str) -> None:
        _write(piece)

    def finish(self) -> None:
        _write("\n")


class RichScreen:
    """Markdown and notes on the terminal."""

    def __init__(self, *, plain: bool = False) -> None:
        """Args: ``plain`` shows answers as they were written."""
        self._plain = plain
        self._notes = Console()
        self._markdown = terminal_console()

    def answer(self, pieces: Iterable[str]) -> None:
        """Show an answer while it comes."""
        interrupts = Interrupts()
        live = _LiveText() if self._plain else LiveMarkdown(_write, self._markdown, terminal_size)
        with typed_text_waits(), interrupts.watched():
            try:
                for piece in pieces:
                    with interrupts.held():
                        live.push(options.harmless(piece))
            except (KeyboardInterrupt, Exception):
                live.finish()
                raise
            live.finish()

    def raw(self, text: str) -> None:
        """Show an answer once more, as it was written."""
        _write(options.harmless(text) + "\n")

    def note(self, text: str) -> None:
        """Show a line that is no answer."""
        self._notes.print(Text(options.harmless(text), style="dim"))

    def error(self, text: str) -> None:
        """Show what went wrong."""
        self._notes.print(Text(options.harmless(f"error: {text}"), style="red"))


def terminal_size() -> tuple[int, int]:
    """(columns, lines) of the terminal on stdout."""
    try:
        columns, rows = os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):
        return _FALLBACK_SIZE
    return columns or _FALLBACK_SIZE[0], rows or _FALLBACK_SIZE[1]


def is_terminal() -> bool:
    """Whether both ends are a terminal that can move its cursor."""
    able = os.name != "posix" or os.environ.get("TERM", "") not in ("", "dumb", "unknown")
    return able and all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
