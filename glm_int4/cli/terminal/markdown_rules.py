"""What in an answer is markup: CommonMark, less whatever would change what the model wrote.

No escapes, entities, links, images or HTML: they stay as they were written. A marker of emphasis counts only where it
cannot be an operator, a wildcard or a part of a name, and where Chinese wants it though CommonMark refuses.
"""

import re
import string
import unicodedata
from collections.abc import Callable

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock, blockquote, hr, list_block, table
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.state_inline import Delimiter
from markdown_it.token import Token

_DEEPEST = 12  # levels of lists (two each) and quotes; deeper ones stay text, beyond 20 the parser would drop them

_MARKERS = re.compile(r"\*+|_+|~~+")
_NAME = re.compile(r"_+[^\W_]\w*_(?!\w)", re.ASCII)  # __init__, _tmp_
_NO_QUOTE = re.compile(r">(?:>>|=|\d)")  # a Python prompt, a comparison

BlockRule = Callable[[StateBlock, int, int, bool], bool]


def make_parser() -> MarkdownIt:
    """The parser of answers."""
    parser = MarkdownIt(options_update={"maxNesting": 100}).enable("table")
    # Lines of "-" and "=" below a text are rules and text: in a sum they are no heading.
    parser.disable(["html_block", "html_inline", "reference", "lheading", "entity", "link", "image", "autolink"])
    block = parser.block.ruler
    ends_most = ["paragraph", "reference", "blockquote"]
    block.at("table", _table, {"alt": ["paragraph", "reference"]})
    block.at("blockquote", _unless(_NO_QUOTE, blockquote), {"alt": [*ends_most, "list"]})
    block.at("hr", _unless(re.compile("_"), hr), {"alt": [*ends_most, "list"]})  # ____: a blank to be filled in
    block.at("list", _unless(None, list_block), {"alt": ends_most})
    parser.inline.ruler.at("escape", _backslash)
    parser.inline.ruler.at("emphasis", _emphasis)
    parser.inline.ruler2.enable("strikethrough")  # _emphasis finds its markers too
    return parser


def keep_as_written(tokens: list[Token]) -> None:
    """Make every line break of the text one on the screen, and show the marks of code that is blank."""
    for token in tokens:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"
            elif child.type == "code_inline" and not child.content.strip():
                child.type, child.tag = "text", ""
                child.content = f"{child.markup}{child.content}{child.markup}"


def _line(state: StateBlock, number: int) -> str:
    return state.src[state.bMarks[number] + state.tShift[number] : state.eMarks[number]]


def _unless(pattern: re.Pattern[str] | None, rule: BlockRule) -> BlockRule:
    """A rule that leaves lines which begin with a pattern, and what lies too deep, to the others."""

    def checked(state: StateBlock, start: int, end: int, silent: bool) -> bool:
        if state.level >= _DEEPEST or (pattern is not None and pattern.match(_line(state, start))):
            return False
        return rule(state, start, end, silent)

    return checked


def _table(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A table whose cells keep their backslashes; those that have no column stay in the last one."""
    begun = len(state.tokens)
    if not table(state, start, end, silent):
        return False
    rows: list[list[Token]] = []
    for token in state.tokens[begun:]:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline":
            rows[-1].append(token)
    for row in rows:
        number = row[0].map[0] if row[0].map else start
        cells = re.split(r"(?<!\\)\|", _line(state, number).strip())
        if not cells[0]:
            cells.pop(0)
        if cells and not cells[-1]:
            cells.pop()
        last = len(row) - 1
        cells = [*cells[:last], "|".join(cells[last:])]
        for token, cell in zip(row, cells, strict=False):
            token.content = cell.strip()
    return True


def _backslash(state: StateInline, silent: bool) -> bool:
    """A backslash stays, and so does the sign behind it, which is no marker then."""
    pair = state.src[state.pos : min(state.pos + 2, state.posMax)]
    if len(pair) < 2 or pair[0] != "\\" or pair[1] not in string.punctuation:
        return False
    if not silent:
        state.pending += pair
    state.pos += 2
    return True


def _emphasis(state: StateInline, silent: bool) -> bool:
    """Note where emphasis may begin and end; the parser's own later rules pair these places."""
    match = _MARKERS.match(state.src, state.pos, state.posMax)
    if silent or match is None:
        return False
    run, marker = match[0], match[0][0]
    before, after = state.src[match.start() - 1 : match.start()] if match.start() else "", state.src[match.end() :][:1]
    opens, closes = _flanks(before, after, strong=marker == "*" and len(run) > 1)
    if marker == "_" and _is_of_name(state.src, match.start(), match.end()):
        opens = closes = False
    size = 2 if marker == "~" else 1
    if len(run) % size:
        state.push("text", "", 0).content = marker
    for _ in range(len(run) // size):
        state.push("text", "", 0).content = marker * size
        place = len(state.tokens) - 1
        length = 0 if marker == "~" else len(run)  # pairs of ~~ have no rule of three
        state.delimiters.append(
            Delimiter(marker=ord(marker), length=length, token=place, end=-1, open=opens, close=closes)
        )
    state.pos = match.end()
    return True


def _flanks(before: str, after: str, *, strong: bool) -> tuple[bool, bool]:
    """Whether a run of markers may begin and end emphasis between two characters ("" at an end of the text).

    Args:
        strong: ``**``. It may stand between Chinese words, and behind Latin ones before a sign. The other markers
            need a space or a sign of punctuation outside, so that ``单价*数量*折扣`` stays a product.
    """
    if (before and before == after and before in "'\"") or (_is_a(before, "Ps", "Pi") and _is_a(after, "Pe", "Pf")):
        return False, False  # COUNT(*)
    opens = not _is_space(after) and not _ends_phrase(after)
    closes = not _is_space(before) and not _is_a(before, "Ps", "Pi")
    free_before = _is_space(before) or before in "*_~,;:'\"" or _is_a(before, "Ps", "Pi") or _is_wide_sign(before)
    free_after = _is_space(after) or after in "*_~.,;:!?'\"…—" or _is_a(after, "Pe", "Pf") or _is_wide_sign(after)
    if not strong:
        return opens and free_before, closes and free_after
    if _is_wide(before) or _is_wide(after):
        return opens, closes
    power = (before.isalnum() or _is_a(before, "Pe")) and (
        after.isalnum() or _is_a(after, "Ps") or (before.isdigit() and after in "+-")
    )
    if power:  # 2**3, x**(n + 1), 10**-6
        return False, False
    return opens and (free_before or after.isalnum()), closes and (free_after or before.isalnum())


def _is_of_name(text: str, start: int, end: int) -> bool:
    """Whether underscores begin or end a name such as __init__."""
    while start and (text[start - 1] == "_" or (text[start - 1].isascii() and text[start - 1].isalnum())):
        start -= 1
    match = _NAME.match(text, start)
    return match is not None and match.end() >= end


def _is_space(character: str) -> bool:
    return not character or character.isspace()


def _is_a(character: str, *categories: str) -> bool:
    return bool(character) and unicodedata.category(character) in categories


def _is_wide(character: str) -> bool:
    return bool(character) and unicodedata.east_asian_width(character) in ("W", "F")


def _is_wide_sign(character: str) -> bool:
    return _is_wide(character) and unicodedata.category(character).startswith("P")


def _ends_phrase(character: str) -> bool:
    wide_stop = _is_wide(character) and _is_a(character, "Po")
    return wide_stop or _is_a(character, "Pe", "Pf") or (bool(character) and character in ",;:!?")
