"""Markdown that is drawn as it comes ends as what it would be at once, whatever the pieces and the screen."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from glm_int4.cli.terminal.markdown import LiveMarkdown, render_blocks, split_finished, terminal_console

ANSWER = """# 标题

第一行，**粗体**和`code`
第二行 with <br> and [link](http://a.b) 😀

| 城市 | 国家 | 😀 |
|---|---:|---|
| 巴黎 | 法国 | 好 |
| Washington | 美国 | 👍 |

```python
def f(x):

    return "你好"
```

1. 甲
2. 乙

   more of 乙
- 丙
  - 丁

> 引用

[1]: not-a-definition
#hashtag
---
end
"""


class Emulator:
    """A terminal with the few sequences that the drawing uses; lines that scroll away stay in ``history``."""

    def __init__(self, columns, rows):
        self.columns, self.rows = columns, rows
        self.history, self.lines, self.row = [], [""], 0
        self.fresh = True  # the cursor is at the beginning of its line

    def write(self, text):
        for part in re.findall(r"\x1b\[\d*[A-Za-z]|\x1b\[[\d;]*m|[\n\r]|[^\x1b\n\r]+", text):
            if part.endswith("m") and part.startswith("\x1b"):
                continue
            if match := re.fullmatch(r"\x1b\[(\d+)A", part):
                self.row -= int(match[1])
                assert self.row >= 0, "moved above the screen"
            elif part == "\x1b[J":
                del self.lines[self.row + 1 :]
                self.lines[self.row] = ""
            elif part == "\x1b[K":
                self.lines[self.row] = ""
            elif part == "\n":
                self.row += 1
                if self.row == len(self.lines):
                    self.lines.append("")
                if self.row == self.rows:
                    self.history.append(self.lines.pop(0))
                    self.row -= 1
                self.fresh = True
            elif part != "\r":
                assert not (self.fresh and self.lines[self.row]), "wrote over something"
                self.fresh = False
                self.lines[self.row] += part
                assert cell_len(self.lines[self.row]) < self.columns

    @property
    def text(self):
        return "\n".join([*self.history, *self.lines]).rstrip("\n")


def at_once(text, columns):
    blocks = list(render_blocks(text, terminal_console(), columns - 1))
    plain = [[re.sub(r"\x1b\[[\d;]*m", "", line) for line in block] for block in blocks]
    return "\n\n".join("\n".join(block) for block in plain)


def draw(pieces, columns, rows):
    emulator = Emulator(columns, rows)
    live = LiveMarkdown(emulator.write, terminal_console(), lambda: (columns, rows))
    for piece in pieces:
        live.push(piece)
        live._next_draw = 0  # every piece is drawn
    live.finish()
    return emulator.text


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (40, 8), (24, 3), (80, 200)])
def test_a_drawing_in_pieces_ends_as_one_at_once(columns, rows):
    pieces = [ANSWER[i : i + 3] for i in range(0, len(ANSWER), 3)]
    assert draw(pieces, columns, rows) == at_once(ANSWER, columns)


@settings(max_examples=40, deadline=None)
@given(st.text(alphabet="a#-*`|>1. \n你😀[]:<\t", max_size=60), st.integers(1, 9), st.sampled_from([(80, 24), (30, 5)]))
def test_any_text_ends_as_at_once(text, size, screen):
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    assert draw(pieces, *screen) == at_once(text, screen[0])


def test_finished_blocks_are_whole_and_the_rest_is_open():
    finished, rest = split_finished("a\n\nb\nc")
    assert (finished, rest) == ("a\n\n", "b\nc")
    assert split_finished("a\n#") == ("", "a\n#")  # may become #hashtag, in the same paragraph
    assert split_finished("| a |\n|---|\n| b |\n") == ("", "| a |\n|---|\n| b |\n")
    assert split_finished("```\na\n\nb\n")[0] == ""


def test_every_visible_character_is_shown():
    shown = at_once(ANSWER, 80)
    for fragment in ("<br>", "http://a.b", "[1]: not-a-definition", "#hashtag", "Washington", "more of 乙"):
        assert fragment in shown


def test_wide_characters_line_up_in_a_table():
    lines = next(iter(render_blocks("| 城市 | b |\n|---|---|\n| 😀 | x |\n| ab | 你 |\n", terminal_console(), 40)))
    rows = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in lines]
    columns = [cell_len(row[: row.index(last)]) for row, last in zip(rows, ["b", None, "x", "你"], strict=True) if last]
    assert len(set(columns)) == 1, rows
