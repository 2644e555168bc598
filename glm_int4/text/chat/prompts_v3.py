"""How ChatGLM3-6B (v3) expects a conversation: a role id before every message, tools in the system's.

A message is its role's id, then a line of metadata, then its content; line and content are encoded
apart, as officially. Metadata is empty but for an assistant's call of a tool, which it names.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from glm_int4.downloads import shown
from glm_int4.errors import InputError
from glm_int4.text.chat.messages import Message
from glm_int4.text.chat.responses import TRAINING_TIME, CleaningStream, fill_template
from glm_int4.text.chat.role_messages import RoleMessage, check_messages
from glm_int4.text.chat.tools import TOOLS_SYSTEM_TEXT, Tool, check_tools, write_tools
from glm_int4.text.continued import encode_open
from glm_int4.text.tokenizer import Tokenizer

ASSISTANT = "<|assistant|>"
_FENCE = "```"


def encode_messages(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Tool] | None = None,
    *,
    in_turn: bool = True,
) -> list[int]:
    """Return the ids of a conversation, ready for the assistant's answer.

    Args:
        messages: ``{"role": "system" | "user" | "assistant" | "observation", "content": str}`` in order,
            the last one the user's or an observation (what a tool answered); ``metadata`` names the tool,
            or ``interpreter``, that an assistant's message calls; ``tools`` of a system message are as below.
        tools: definitions (see ``tools.check_tools``) for the first system message, or one of their own.
        in_turn: False takes roles in any order; every one has a token.
    Raises:
        InputError: unknown roles, roles out of order, an empty question, or faulty tools.
    """
    given = [] if tools is None else check_tools(tools)
    checked = check_messages(messages, check_tools, has_tools=bool(given), in_turn=in_turn)
    ids = [tokenizer.gmask_id, tokenizer.sop_id]
    for message in _with_tools(checked, given) if given else checked:
        content = _content(message) if message.tools else message.content
        ids += encode_message(tokenizer, message.role, message.metadata, content)
    return [*ids, tokenizer.role_ids["assistant"]]


def encode_message(tokenizer: Tokenizer, role: str, metadata: str, content: str) -> list[int]:
    """Ids of one message."""
    return [tokenizer.role_ids[role], *tokenizer.encode(f"{metadata}\n"), *tokenizer.encode(content)]


def encode_beginning(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of an answer's beginning, behind the assistant's role id."""
    return [*tokenizer.encode("\n"), *encode_open(tokenizer, text)]


def encode_call(tokenizer: Tokenizer, name: str) -> list[int]:
    """Ids of the line that begins the call of a tool, behind the assistant's role id.

    Raises:
        InputError: the tokenizer reads the name back as another one.
    """
    ids = tokenizer.encode(f"{name}\n")
    if tokenizer.decode(ids) != f"{name}\n":
        raise InputError(f"expected a tool's name that the model can write, got {shown(name)}; use letters and digits")
    return ids


def _with_tools(messages: list[RoleMessage], tools: list[dict[str, Any]]) -> list[RoleMessage]:
    """Put tools behind the text of the first system message, or in front as one of their own."""
    content = ""
    if messages and messages[0].role == "system":
        content, messages = _content(messages[0]), messages[1:]
    if TOOLS_SYSTEM_TEXT not in content:
        content = f"{content}\n{TOOLS_SYSTEM_TEXT}" if content else TOOLS_SYSTEM_TEXT
    return [RoleMessage("system", content, tools=tools), *messages]


def _content(message: RoleMessage) -> str:
    """The content with the message's tools written out."""
    return f"{message.content}\n{write_tools(message.tools)}" if message.tools else message.content


class ReplyDecoder:
    """``decode`` that spells the assistant's role id out: an answer may consist of several messages."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def decode(self, ids: Iterable[int]) -> str:
        """Text of an answer's ids, role tokens spelled out."""
        messages: list[list[int]] = [[]]
        for token in ids:
            if token == self._tokenizer.role_ids["assistant"]:
                messages.append([])
            else:
                messages[-1].append(token)
        return ASSISTANT.join(map(self._tokenizer.decode, messages))

    def may_change(self, text: str) -> bool:
        """As of a tokenizer."""
        return self._tokenizer.may_change(text)


def split_reply(text: str, names: Collection[str] = ()) -> list[tuple[str, str]]:
    """Metadata and content of every message of an answer.

    The first line is metadata if it is empty, one of ``names``, or a word with a fence of code behind it:
    officially it always is, and an answer that begins at once would lose its first line.
    """
    return [_split_message(part, names) for part in text.split(ASSISTANT)]


def _split_message(text: str, names: Collection[str]) -> tuple[str, str]:
    metadata, newline, content = text.partition("\n")
    name = metadata.strip()
    if newline and (not name or name in names or (_may_name(name) and content.lstrip().startswith(_FENCE))):
        return metadata, content
    return "", text


def _may_name(line: str) -> bool:
    """Whether a line may be the name of a tool."""
    return len(line.split()) == 1 and not line.rstrip().endswith((":", "："))


def _is_open(text: str) -> bool:
    """Whether what is to come decides if the first line of a message is metadata."""
    metadata, newline, content = text.partition("\n")
    if not newline:
        return True
    begun = content.lstrip()[: len(_FENCE)]
    return bool(metadata.strip()) and _may_name(metadata) and begun != _FENCE and _FENCE.startswith(begun)


def process_response(text: str, complete: bool = True) -> str:
    """What to show of an answer: the contents of its messages, a line apart, cleaned; of a call its name too.

    Args:
        complete: False for the beginning of an answer, whose last line may turn out to be metadata.
    """
    parts = split_reply(text)
    if not complete and _is_open(text.rpartition(ASSISTANT)[2]):
        parts.pop()
    contents = [
        f"{metadata.strip()}\n{content.strip()}" if metadata.strip() else fill_template(content)
        for metadata, content in parts
    ]
    return "\n".join(filter(None, contents))


class ResponseStream(CleaningStream):
    """``process_response`` over pieces; a line waits until it is known not to be metadata."""

    marks = (TRAINING_TIME, ASSISTANT)

    def clean(self, text: str, complete: bool) -> str:
        """As of ``CleaningStream``."""
        return process_response(text, complete)


class ContentStream(CleaningStream):
    """The contents of an answer's messages over pieces, without the calls of tools (``names``) and code."""

    marks = (TRAINING_TIME, ASSISTANT)

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self._names = names

    def clean(self, text: str, complete: bool) -> str:
        """As of ``CleaningStream``."""
        parts = split_reply(text, self._names)
        if not complete and _is_open(text.rpartition(ASSISTANT)[2]):
            parts.pop()
        return "\n".join(filter(None, (fill_template(content) for name, content in parts if not name.strip())))
