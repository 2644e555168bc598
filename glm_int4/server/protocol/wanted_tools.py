"""Which tools a request gives the model, and which of them the answer must call."""

from dataclasses import dataclass, field
from typing import Any

from glm_int4.downloads import shown
from glm_int4.errors import InputError
from glm_int4.generation.constraints.json_schemas import read_schema
from glm_int4.server.protocol.tool_definitions import read_tools
from glm_int4.server.schemas import ChatRequest, NamedFunction, ToolChoice
from glm_int4.text.chat.chat_format import ChatFormat


@dataclass(frozen=True, slots=True)
class WantedTools:
    """Definitions as the model reads them.

    Attributes:
        called: of them, those of which the answer must call one; none where the model may choose.
    """

    given: list[dict[str, Any]] = field(default_factory=list)
    called: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str | None:
        """Of the one tool that the answer must call, where there is no other."""
        return self.called[0]["name"] if len(self.called) == 1 else None

    def grammar(self, chat: ChatFormat) -> str | None:
        """What the answer must be, behind the line of the name where there is one; raises InputError."""
        if not self.called:
            return None
        return chat.call_grammar(self.called, named=self.name is not None, read_schema=read_schema)


def wanted_tools(request: ChatRequest) -> WantedTools:
    """The tools of a request.

    Raises:
        InputError: a faulty definition, or a choice of a tool that is not among them.
    """
    old = not request.tools  # functions, as tools were called before there were others
    choice = request.tool_choice if request.tool_choice is not None or not old else request.function_call
    if choice == "none":
        return WantedTools()
    given = read_tools((request.functions if old else request.tools) or [])
    must, names = _choice(choice)
    if not given and (must or names):
        raise InputError("expected tools beside a choice of one, got none; send them, or leave tool_choice out")
    known = {tool["name"]: tool for tool in given}
    for name in names:
        if name not in known:
            raise InputError(f"expected tool_choice to name a tool of {', '.join(known)}, got {shown(name)}")
    chosen = [known[name] for name in dict.fromkeys(names)] or given
    return WantedTools(given, chosen) if must else WantedTools(chosen)


def has_choice(request: ChatRequest) -> bool:
    """Whether a request says more of tools than that the model may choose."""
    choices = (request.tool_choice, request.function_call)
    return any(choice not in (None, "auto", "none") for choice in choices)


def _choice(choice: str | ToolChoice | NamedFunction | None) -> tuple[bool, list[str]]:
    """Whether a tool must be called, and the names of those that may be; none for all."""
    if choice is None or isinstance(choice, str):
        return choice in ("required", "any"), []
    if isinstance(choice, NamedFunction):
        return True, [choice.name]
    if choice.type == "function":
        return True, [_name(choice)]
    if choice.allowed_tools is None:
        raise InputError("expected allowed_tools in tool_choice, got none")
    return choice.allowed_tools.mode == "required", [_name(tool) for tool in choice.allowed_tools.tools]


def _name(choice: ToolChoice) -> str:
    """The name of a function, which may stand alone."""
    name = choice.function.name if choice.function else choice.name
    if name is None:
        raise InputError('expected tool_choice as {"type": "function", "function": {"name": ...}}, got no name')
    return name
