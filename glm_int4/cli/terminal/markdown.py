"""Markdown on a terminal while it is still coming: finished blocks are printed for good, the open one is redrawn.

An answer may be longer than the screen. What has scrolled away cannot be redrawn, so only whole blocks are
left to scroll; an open block that is taller than the screen shows its end until it is finished.
"""

import io
import re
import time
from collections.abc import Callable, Iterator

from markdown_it.token import Token
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from glm_int4.cli.terminal.markdown_blocks import LEAST_WIDTH, MarkdownBlock
from glm_int4.cli.terminal.markdown_rules import keep_as_written, make_parser

_REDRAW_EVERY_S = 0.05
_REDRAW_SHARE = 0.1  # of the time, at most: the model needs the same processor

_PARSER = make_parser()

# Trailing spaces, with the escape sequences of colours among them.
_PADDING = re.compile(r"(?: |\x1b\[[\d;]*m)+$")

Size = Callable[[], tuple[int, int]]


class LiveMarkdown:
    """Shows a Markdown text as it grows.

    Between calls the cursor stands in the first column, below everything that was drawn.
    """

    def __init__(self, write: Callable[[str], object], console: Console, size: Size) -> None:
        """Args: ``write`` takes text for the terminal; ``size`` returns its (columns, lines)."""
        self._write, self._console, self._size = write, console, size
        self._text = ""  # from the open block on
        self._drawn: list[str] = []  # its lines on the screen, which may be drawn again
        self._begun = False  # whether finished blocks stand above
        self._next_draw = 0.0

    def push(self, piece: str) -> None:
        """Add to the text, and draw if the last drawing was long enough ago."""
        self._text += piece
        started = time.perf_counter()
        if started >= self._next_draw:
            self._draw(finish=False)
            ended = time.perf_counter()
            self._next_draw = ended + max(_REDRAW_EVERY_S, (ended - started) / _REDRAW_SHARE)

    def finish(self) -> None:
        """Draw what is open for good."""
        self._draw(finish=True)

    def _draw(self, finish: bool) -> None:
        columns, rows = self._size()
        if finish:
            finished, self._text = self._text, ""
        else:
            finished, self._text = split_finished(self._text)
        final = self._lines(finished, columns)
        self._begun = self._begun or bool(final)
        tail = self._lines(self._text, columns)
        if len(tail) > rows - 2:
            tail = tail[-max(rows - 2, 1) :]
        self._replace(final + tail, columns, rows)
        self._drawn = tail

    def _lines(self, text: str, columns: int) -> list[str]:
        lines: list[str] = []
        width = max(columns - 1, LEAST_WIDTH)  # a full line would leave the cursor in doubt
        for block in render_blocks(text, self._console, width):
            if lines or self._begun:
                lines.append("")
            lines += block
        return lines

    def _replace(self, lines: list[str], columns: int, rows: int) -> None:
        """Write ``lines`` over what is drawn, from the first line that differs."""
        same = 0
        for old, new in zip(self._drawn, lines, strict=False):
            if old != new:
                break
            same += 1
        # A narrower terminal has wrapped what was drawn wider.
        stale = sum(max(1, -(-_cells(line) // columns)) for line in self._drawn[same:])
        up = min(stale, rows - 1)
        if up or lines[same:]:
            # Line by line: some terminals move a screen that is cleared as a whole into their history.
            out = f"\x1b[{up}A\r" if up else ""
            out += "".join(f"\x1b[K{line}\n" for line in lines[same:])
            self._write(out + "\x1b[J")


def split_finished(text: str) -> tuple[str, str]:
    """Split a growing text into blocks that no further text can change, and the rest."""
    whole_lines = text[: text.rfind("\n") + 1]  # an unfinished line may still become anything
    starts = [block[0].map[0] for block in _blocks(_PARSER.parse(whole_lines)) if block[0].map]
    if len(starts) < 2:
        return "", text
    lines = text.split("\n")
    finished = "\n".join(lines[: starts[-1]]) + "\n"
    return finished, text[len(finished) :]


def render_blocks(text: str, console: Console, width: int) -> Iterator[list[str]]:
    """Yield the lines of each top-level block, with escape sequences, without blank lines around it."""
    for block in _blocks(_PARSER.parse(text)):
        keep_as_written(block)
        with console.capture() as capture:
            console.print(MarkdownBlock(block), width=width)
        lines = [_trimmed(line) for line in capture.get().split("\n")]
        while lines and not lines[-1]:
            lines.pop()
        while lines and not lines[0]:
            lines.pop(0)
        if lines:
            yield lines


def _blocks(tokens: list[Token]) -> Iterator[list[Token]]:
    """Group a document's tokens by top-level block."""
    start = depth = 0
    for i, token in enumerate(tokens):
        depth += token.nesting
        if depth == 0:
            yield tokens[start : i + 1]
            start = i + 1


def _trimmed(line: str) -> str:
    trimmed = _PADDING.sub("", line)
    return trimmed + "\x1b[0m" if "\x1b[" in trimmed else trimmed


def _cells(line: str) -> int:
    return cell_len(Text.from_ansi(line).plain)


def terminal_console() -> Console:
    """A console that renders for the terminal on stdout; what it prints is captured, not shown."""
    return Console(file=io.StringIO(), force_terminal=True, highlight=False)
