"""What stands in a Markdown document: headings, blocks of code, commands, links, generated tables."""

import re
import shlex

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"\s+#\s.*$", re.MULTILINE)


def headings(text):
    """Levels and texts of all headings outside of code."""
    return [(len(m[1]), m[2]) for m in re.finditer(r"^(#+) (.+)$", _FENCE.sub("", text), re.MULTILINE)]


def anchors(text):
    """What a link to a heading of this document ends with."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for _, title in headings(text)}


def code(text, language):
    """Blocks of code of one language, without comments."""
    return [_COMMENT.sub("", block) for name, block in _FENCE.findall(text) if name == language]


def commands(text):
    """Command lines of the console blocks, continued lines joined, as lists of words."""
    lines = "\n".join(code(text, "console")).replace("\\\n", " ").splitlines()
    return [shlex.split(line[2:]) for line in lines if line.startswith("$ ")]


def mentioned_commands(text):
    """Every ``glm-int4`` command line in the document, also in sentences and tables, as lists of words."""
    joined = text.replace("\\\n", " ")
    found = re.findall(r"`(glm-int4 [^`\n]+)`", joined) + re.findall(
        r"^\s*(?:\$ )?(glm-int4 .+)$", joined, re.MULTILINE
    )
    return [re.sub(r"[\[\]]", "", _COMMENT.sub("", line)).split() for line in found]


def links(text):
    """Targets of all links."""
    return re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", text))


def tables(text):
    """Names of the generated tables."""
    return re.findall(r"<!-- table: (\S+) -->", text)
