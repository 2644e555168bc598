"""What a model's answer says: content, and in version 3 perhaps the call of a tool or code to run.

Nothing in an answer is ever evaluated: of a call only literal arguments are read. An answer that cannot
be read is the model's mistake, so it carries a ``fault`` and raises nothing.
"""

import ast
import keyword
import math
import re
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from glm_int4.downloads import shown
from glm_int4.text.chat.prompts_v3 import split_reply
from glm_int4.text.chat.responses import fill_template
from glm_int4.text.chat.tools import INTERPRETER, Tool, check_tools, parameter_names

MAX_CALL_CHARACTERS = 1 << 15
MAX_CALL_DEPTH = 32
MAX_INTEGER_BITS = 1024  # json.dumps raises for integers of more than 4300 digits
_FENCE = re.compile(r"```[^\n`]*\n(.*?)\n?```", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that the model asks for; ``arguments`` hold nothing but JSON values."""

    name: str
    arguments: dict[str, Any]

    def as_message(self) -> dict[str, Any]:
        """The assistant's message that makes this call, as the model would write it."""
        written = [f"{name}={value!r}" for name, value in self.arguments.items() if is_keyword_argument(name)]
        others = {name: value for name, value in self.arguments.items() if not is_keyword_argument(name)}
        written += [f"**{others!r}"] if others else []
        content = f" ```python\ntool_call({', '.join(written)})\n```"
        return {"role": "assistant", "metadata": self.name, "content": content}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer taken apart.

    Attributes:
        content: what to show; for a call or code, the text that holds it, as it was written.
        metadata: first line of a v3 or v4 answer: the name of a tool, ``interpreter`` or nothing.
        tool_call: the call, if there is one and it can be read.
        code: what the code interpreter is to run.
        fault: why a call or code could not be read.
        raw_content: the content as a later prompt must repeat it.
        earlier: messages that the model wrote before this one in the same answer.
    """

    content: str
    metadata: str = ""
    tool_call: ToolCall | None = None
    code: str | None = None
    fault: str | None = None
    raw_content: str = ""
    earlier: tuple["Reply", ...] = ()

    def as_message(self) -> dict[str, Any]:
        """The message that stands for this reply in the conversation, without the ``earlier`` ones."""
        message = {"role": "assistant", "content": self.raw_content or self.content}
        return message | {"metadata": self.metadata} if self.metadata else message

    def as_messages(self) -> list[dict[str, Any]]:
        """All messages of the answer, in order."""
        return [reply.as_message() for reply in (*self.earlier, self)]


def parse_reply_v3(text: str, tools: Sequence[Tool] | None = None) -> Reply:
    """Take an answer of version 3 apart.

    Args:
        text: the decoded answer, with role tokens as ``prompts_v3.ReplyDecoder`` spells them.
        tools: the definitions that were given; none to take any tool's name and keyword arguments only.
    Raises:
        InputError: the tools are faulty; never because of the answer.
    """
    known = check_tools(tools) or None
    names = [INTERPRETER, *(tool["name"] for tool in known or ())]
    *earlier, last = [_parse_message(metadata, content, known) for metadata, content in split_reply(text, names)]
    return replace(last, earlier=tuple(reply for reply in earlier if reply.metadata or reply.content))


def _parse_message(metadata: str, content: str, tools: list[dict[str, Any]] | None) -> Reply:
    name = metadata.strip()
    if not name:
        return Reply(content=fill_template(content), raw_content=content.strip())
    reply: dict[str, Any] = {"content": content, "metadata": metadata, "raw_content": content}
    try:
        code = _fenced(content)
        reply |= {"code": code} if name == INTERPRETER else {"tool_call": _read_call(name, code, tools)}
    except MalformedError as error:
        reply["fault"] = str(error)
    return Reply(**reply)


def is_keyword_argument(name: str) -> bool:
    """Whether Python takes a name in front of ``=`` and reads the same one."""
    return name.isidentifier() and not keyword.iskeyword(name) and unicodedata.normalize("NFKC", name) == name


class MalformedError(Exception):
    """The model wrote a call that cannot be read; the message says what was expected."""


def _fenced(content: str) -> str:
    match = _FENCE.fullmatch(content.strip())
    if match is None:
        raise MalformedError(f"expected code between ``` lines, got {shown(content.strip())}")
    return match[1]


def _read_call(name: str, code: str, tools: list[dict[str, Any]] | None) -> ToolCall:
    names = None if tools is None else parameter_names(tools, name)
    if tools is not None and names is None:
        raise MalformedError(f"expected a tool of {', '.join(tool['name'] for tool in tools)}, got {shown(name)}")
    call = _parse_call(code)
    if len(call.args) > len(names or ()):
        raise MalformedError(f"expected keyword arguments, got {len(call.args)} without a name in {shown(code)}")
    pairs: list[tuple[str | None, ast.expr]] = list(zip(names or (), call.args, strict=False))
    for given in call.keywords:
        pairs += [(given.arg, given.value)] if given.arg is not None else _unpacked(given.value)
    arguments: dict[str, Any] = {}
    for key, node in pairs:
        if key is None or key in arguments:
            raise MalformedError(f"expected every argument once by its name, got {shown(code)}")
        try:
            arguments[json_value(key, 1)] = json_value(ast.literal_eval(node), MAX_CALL_DEPTH)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
            raise MalformedError(f"expected a literal JSON value for {shown(key)}, got {shown(code)}") from error
    if tools is not None:
        check_arguments(arguments, next(tool for tool in tools if tool["name"] == name).get("parameters", {}))
    return ToolCall(name=name, arguments=arguments)


def _unpacked(node: ast.expr) -> list[tuple[str | None, ast.expr]]:
    """Names and values of a ``**{...}``, which holds names that Python does not take as keywords."""
    if not isinstance(node, ast.Dict):
        return [(None, node)]
    return [
        (key.value if isinstance(key, ast.Constant) and isinstance(key.value, str) else None, value)
        for key, value in zip(node.keys, node.values, strict=True)
    ]


def check_arguments(arguments: dict[str, Any], parameters: Mapping[str, Any]) -> None:
    """Raise where arguments have names that a tool does not know, or lack some that it needs."""
    known = parameters.get("properties", {})
    strange = [name for name in arguments if name not in known]
    missing = [name for name in parameters.get("required", []) if name not in arguments]
    if strange or missing:
        wanted = f"arguments of {', '.join(known) or 'none'}"
        raise MalformedError(f"expected {wanted}, got {', '.join(map(shown, arguments)) or 'none'}")


def _parse_call(code: str) -> ast.Call:
    """Parse ``tool_call(...)`` without evaluating anything; hostile sizes are refused first."""
    if len(code) > MAX_CALL_CHARACTERS:
        raise MalformedError(f"expected a call of at most {MAX_CALL_CHARACTERS} characters, got {len(code)}")
    try:
        with warnings.catch_warnings(action="ignore"):  # on escapes that Python does not know
            tree = ast.parse(code.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise MalformedError(f"expected tool_call(name=value, ...), got {shown(code)}") from error
    if not (isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id == "tool_call"):
        raise MalformedError(f"expected tool_call(name=value, ...), got {shown(code)}")
    return tree


def json_value(value: object, depth: int) -> Any:
    """The value as JSON holds it, tuples as lists; raises ValueError for anything else."""
    if depth == 0:
        raise ValueError("nested too deeply")
    if isinstance(value, list | tuple):
        return [json_value(item, depth - 1) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {json_value(key, depth): json_value(item, depth - 1) for key, item in value.items()}
    if isinstance(value, str):
        value.encode()  # a lone surrogate raises a ValueError
        return value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and value.bit_length() <= MAX_INTEGER_BITS:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise ValueError(f"a {type(value).__name__} is no JSON value")
