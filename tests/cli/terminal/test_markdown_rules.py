"""What of an answer is markup, and what stays on the screen as it was written."""

import re
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from glm_int4.cli.terminal.markdown import render_blocks, terminal_console

BOLD, ITALIC, STRUCK = "1", "3", "9"


def shown(text, width=79):
    """The lines on the screen, with escape sequences."""
    return "\n\n".join("\n".join(block) for block in render_blocks(text, terminal_console(), width))


def plain(text, width=79):
    return re.sub(r"\x1b\[[\d;]*m", "", shown(text, width))


def squeezed(text):
    """A text without its white space: lines fold, tabs are set, tables fill up."""
    return "".join(text.split())


@pytest.mark.parametrize(
    "text",
    [
        "2*3*4",
        "2**3 and x**(n+1)*y**2 and 10**-6",
        "总价=单价*数量*折扣",
        "(a)*(b)*(c), f(x)*g(x)*h(x)",
        "__init__, __name__ and _tmp_, snake_case_name, _a",
        "COUNT(*) 和 SUM(*)",
        "src/**/*.py and test/**/*.py",
        "^.*foo.*$ or .*abc.* of it",
        "'*' and '*'",
        "f(*args, **kwargs), g(*args, **kwargs)",
        "/* a */ int /*b*/ x;",
        "int *p, *q;",
        "A* and B*",
        "\\(x^2\\) and \\[y_1\\] and \\\\ and \\{a\\}",
        "\\*no emphasis\\*, \\`no code\\`, \\# no heading",
        "C:\\_tmp\\*.txt and D:\\*\\*.bat",
        "&lt;div&gt; &amp; &copy; &#42;",
        "<http://a.b/c_d_e> <me@a.b> <br> <!-- x -->",
        '[text](http://a.b/_c_?d=1&e "title") and f[i](x), [a][b]',
        "![alt](http://a.b/c.png)",
        "http://a.b/_c_/~~d~~/e",
        "[1]: http://a.b",
        "好的~~我来~~帮你",
        "5 > 3 < 4 & 2 | 1",
        "x\n>=5\n>3",
        ">>> print(1)",
        "3 + 4\n=\n7",
        "x\n-\ny",
        "________",
        "_ _ a _ _",
        "_ _ _ _ _",
        "<div>\n\n<b>x</b>\n\n</div>",
        "a ` ` b",
        "#hashtag",
        "####### seven",
        "1.5 and 2.x",
        "#",
        "```",
        ">" * 40 + " deep",
    ],
)
def test_markdown_leaves_what_is_no_markup_as_it_was_written(text):
    assert squeezed(plain(text)) == squeezed(text)
    assert plain(text).count("\n\n") == text.count("\n\n")


@pytest.mark.parametrize(
    ("text", "style", "words"),
    [
        ("这是**重点**内容", BOLD, "重点"),
        ("**「重点」**是", BOLD, "「重点」"),
        ("是**“重点”**的", BOLD, "“重点”"),
        ("**重点：**内容", BOLD, "重点："),
        ("使用**Python**（语言）", BOLD, "Python"),
        ("**注意!**请看", BOLD, "注意!"),
        ("👍**好**", BOLD, "好"),
        ("a **b c** d", BOLD, "b c"),
        ("**CPU**-based", BOLD, "CPU"),
        ("(**a**), **b**.", BOLD, "a"),
        ("**.NET** x", BOLD, ".NET"),
        ("__very important__ x", BOLD, "very important"),
        ("a *b c*, d", ITALIC, "b c"),
        ("，*重点*。", ITALIC, "重点"),
        ("__重点__ 是", BOLD, "重点"),
        ("_重点_ 是", ITALIC, "重点"),
        ("_two words_ x", ITALIC, "two words"),
        ("~~wrong~~ right", STRUCK, "wrong"),
    ],
)
def test_markdown_shows_emphasis_where_it_was_meant(text, style, words):
    assert f"\x1b[{style}m{words}\x1b[0m" in shown(text)
    assert len(squeezed(plain(text))) < len(squeezed(text))


def test_markdown_shows_nested_emphasis():
    assert plain("***a*** **b *c d* e** **`f`**") == "a b c d e f"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("10\n- 5\n+ 3\n* 2", ["10", "", " - 5", "", " + 3", "", " * 2"]),
        ("1986. A great year", [" 1986. A great year"]),
        ("1986.", [" 1986."]),
        ("1) a\n2) b", [" 1) a", " 2) b"]),
        ("007. Bond\n1. x", [" 007. Bond", "   1. x"]),
        ("1. a\n1. b", [" 1. a", " 1. b"]),
        ("-\n- x", [" -", " - x"]),
        ("- a\n  - b\n    1. c\n\n       d", [" - a", "    - b", "       1. c", "          d"]),
        ("- [ ] a\n- [x] b", [" - [ ] a", " - [x] b"]),
        ("-\ta\tb", [" - a       b"]),
        ("> a\nb\n> - c", ["▌ a", "▌ b", "▌  - c"]),
        ("a  \nb\\\nc\nd", ["a", "b\\", "c", "d"]),
        ("```python x=1\nf()\n```", [" python x=1", " f()"]),
        ("~~~\n\n\ta *b* &lt; \\*", [" " * 5 + "a *b* &lt; \\*"]),
        ("    a\n\n    _b_", [" a", "", " _b_"]),
        ("# a *b* #", ["a b"]),
        ("a\n---", ["a", "", "-" * 30]),
    ],
)
def test_markdown_blocks_keep_numbers_signs_and_lines(text, lines):
    got = [line.rstrip() for line in plain(text, 30).split("\n")]
    got[0] = got[0].strip() if text.startswith("# ") else got[0]  # in the middle
    assert [line for line in got if line] == [line for line in lines if line]
    assert got == lines or text.startswith(("~~~", "    "))


def test_markdown_tables_fold_long_cells():
    cell = "".join(chr(0x4E00 + i) for i in range(120))
    text = plain(f"| 甲 | b |\n|---|---|\n| {cell} | ok |\n| word_{'x' * 60} | y |", 40)
    assert "…" not in text
    assert all(character in text for character in cell)
    assert text.count("x") == 60


def test_markdown_tables_keep_backslashes_and_cells_without_a_column():
    text = plain("| a | b |\n|---|---|\n| 1 \\| 2 | 3 | 4 | 5 |\n| 6 |")
    assert "1 \\| 2" in text
    assert "3 | 4 | 5" in text
    assert "6" in text


def test_markdown_tables_that_do_not_fit_are_lines_of_text():
    text = plain("|a" * 12 + "|\n" + "|-" * 12 + "|\n" + "|中文" * 12 + "|", 30)
    assert text.count("中文") == 12
    assert "…" not in text


MARKERS = "*_~`#>|-:"
# Pieces that make blocks and emphasis, and the characters around them.
PIECES = st.sampled_from(
    [
        *"aZ09中点，「」“”。*_~`#>|-+=.():!&;\\/[]<\"' \n\t",
        *(
            "\n\n",
            "**",
            "- ",
            "+ ",
            "* ",
            "1. ",
            "1986) ",
            "> ",
            "    ",
            "```",
            "```py\n",
            "~~",
            "# ",
            "  \n",
            "😀",
            "é",
        ),
        *("a | b\n--|--\n", "\n| x | 重点 |\n|---|---|\n|", "&lt;", "http://a.b/_c_", "__x__", "**重点**", "<br>"),
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=30).map("".join), st.sampled_from([79, 39, 20, 8]))
@example("- " * 30 + "x", 79)
@example("> " * 30 + "x", 20)
@example("1. " * 9 + "中文" * 20, 20)
def test_markdown_hides_no_character_but_markers_that_were_rendered(text, width):
    screen = shown(text, width)
    characters = re.sub(r"\x1b\[[\d;]*m", "", screen)
    missing = Counter(squeezed(text)) - Counter(characters)
    assert set(missing) <= set(MARKERS)
    if "\x1b[" not in screen:  # nothing was rendered, but perhaps code without a language, or an empty heading
        fences = sum(len(run) for run in re.findall(r"`{3,}|~{3,}", text))
        assert sum(missing[marker] for marker in "`~") <= fences
        assert set(missing) <= set("`~#")
    if not re.search(r"^\s*[>\s]*:?-+:?\s*\|", text, re.MULTILINE) and "|-" not in text:  # no table: nothing moves
        drawn = MARKERS + "▌─"
        kept = [c for c in squeezed(text) if c not in drawn]
        assert [c for c in squeezed(characters) if c not in drawn] == kept


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="a2中。 (*_~)", max_size=20))
def test_markdown_hides_markers_in_pairs_alone(text):
    """``*``, ``_`` and ``~`` of a paragraph disappear as often on the left of emphasis as on the right."""
    text = f"x{text}x"
    missing = Counter(text) - Counter(plain(text))
    assert all(count % 2 == 0 for marker, count in missing.items() if marker in "*_~")
    assert not missing or re.search(r"\x1b\[[\d;]*[139]", shown(text))
