"""How blocks of Markdown look on a terminal where rich's own would hide or cut something that was written."""

from collections.abc import Iterator
from typing import ClassVar

from markdown_it.token import Token
from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import (
    BlockQuote,
    CodeBlock,
    Heading,
    ListElement,
    ListItem,
    Markdown,
    MarkdownElement,
    TableElement,
)
from rich.rule import Rule
from rich.segment import Segment
from rich.style import Style
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

LEAST_WIDTH = 8  # what a table of one column needs
_LEAST_COLUMN = 4  # a wide character, and what stands between columns


class _Heading(Heading):
    """An empty heading shows its marker."""

    @classmethod
    def create(cls, markdown: Markdown, token: Token) -> "_Heading":
        heading = cls(token.tag)
        heading.markup = token.markup
        return heading

    markup = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not self.text.plain.strip():
            yield Text(self.markup)
            return
        yield from super().__rich_console__(console, options)


class _Code(CodeBlock):
    """Code below what stands behind its fence; a block without anything shows the fence."""

    @classmethod
    def create(cls, markdown: Markdown, token: Token) -> "_Code":
        info = token.info.strip()
        code = cls(info.partition(" ")[0] or "text", markdown.code_theme)
        code.info, code.markup = info, token.markup
        return code

    info = markup = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = self.text.plain.rstrip()
        label = self.info or ("" if code else self.markup)
        if label:
            yield Text(f" {label}", style="dim")
        if code:
            padding = (0 if label else 1, 1, 1, 1)
            yield Syntax(code, self.lexer_name, theme=self.theme, word_wrap=True, padding=padding)


class _Quote(BlockQuote):
    """A bar on the left, while there is room."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from _beside("▌ ", "▌ ", self.style, console, options, self)


class _Item(ListItem):
    """An item of a list, and its marker as it was written: it may be a sign or a year."""

    marker = ""

    @classmethod
    def create(cls, markdown: Markdown, token: Token) -> "_Item":
        item = cls()
        item.marker = f"{token.info}{token.markup}"
        return item


class _List(ListElement):
    """Items, with their markers in a column."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        kind = "bullet" if self.list_type == "bullet_list_open" else "number"
        style = console.get_style(f"markdown.item.{kind}", default="none")
        items = [item for item in self.items if isinstance(item, _Item)]
        width = max(len(item.marker) for item in items) + 1
        for item in items:
            yield from _beside(f"{item.marker:>{width}} ", " " * (width + 1), style, console, options, item)


def _beside(
    first: str, others: str, style: Style, console: Console, options: ConsoleOptions, block: _Quote | _Item
) -> Iterator[Segment]:
    """What is in a block, with something on the left of its lines; below it where it would get too narrow."""
    room = options.max_width - len(first)
    if room < LEAST_WIDTH:
        yield from (Segment(first.strip(), style), Segment.line())
        first = others = ""
        room = options.max_width
    lines = console.render_lines(block.elements, options.update(width=room), style=block.style) or [[]]
    for i, line in enumerate(lines):
        yield Segment(others if i else first, style)
        yield from line
        yield Segment.line()


class _Table(TableElement):
    """A table whose cells are folded, not cut; rows of text where the screen is too narrow for its columns."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        header = self.header.row.cells if self.header and self.header.row else []
        body = [[cell.content for cell in row.cells] for row in self.body.rows] if self.body else []
        if len(header) * _LEAST_COLUMN + 3 > options.max_width:
            yield Text(" | ").join(cell.content for cell in header)
            yield Rule(style="markdown.table.border")
            yield from (Text(" | ").join(row) for row in body)
            return
        drawn = Table(box=box.SIMPLE, pad_edge=False, style="markdown.table.border", collapse_padding=True)
        for cell in header:
            title = cell.content.copy()
            title.stylize("markdown.table.header")
            drawn.add_column(title, overflow="fold")
        for row in body:
            drawn.add_row(*row)
        yield drawn


class MarkdownBlock(Markdown):
    """A parsed block of an answer."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = Markdown.elements | {
        "heading_open": _Heading,
        "fence": _Code,
        "code_block": _Code,
        "blockquote_open": _Quote,
        "bullet_list_open": _List,
        "ordered_list_open": _List,
        "list_item_open": _Item,
        "table_open": _Table,
    }

    def __init__(self, tokens: list[Token]) -> None:
        """Args: ``tokens`` are the parser's, of one block."""
        super().__init__("", code_theme="ansi_dark", hyperlinks=False)
        self.parsed = tokens
