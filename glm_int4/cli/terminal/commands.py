"""What begins with a slash: changes to the conversation and questions about it. Asks the model nothing."""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, auto
from pathlib import Path

from glm_int4.cli.options import check_text
from glm_int4.cli.terminal import saved, status
from glm_int4.cli.terminal.conversation import Conversation
from glm_int4.errors import InputError

KEYS = """\
Enter sends; Alt-Enter, Ctrl-J or a backslash at the end of a line begins a new line.
Ctrl-C stops an answer, clears a line, and leaves at an empty one, as Ctrl-D does."""

_COMMAND = re.compile(r"(/[A-Za-z]*)(?:\s+(.*))?", re.DOTALL)  # a path such as /etc/hosts is a question


class Then(Enum):
    """What follows a command."""

    GO_ON = auto()
    RETRY = auto()
    RAW = auto()
    LEAVE = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """``argument`` is how help names it, "" where there is none."""

    name: str
    argument: str
    help: str
    run: Callable[[str], Then | None]
    takes_file: bool = False


class Commands:
    """The commands of a conversation; ``say`` shows what they have to say."""

    def __init__(self, conversation: Conversation, say: Callable[[str], None]) -> None:
        self._conversation, self._say = conversation, say
        commands = (
            Command(name="/help", argument="", help="shows this", run=self._help),
            Command(name="/clear", argument="", help="forgets the conversation", run=self._clear),
            Command(name="/system", argument="[TEXT|off]", help="text in front of every question", run=self._system),
            Command(
                name="/temperature",
                argument="[NUMBER|off]",
                help="0: the likeliest word; off: the official value",
                run=self._temperature,
            ),
            Command(name="/stats", argument="", help="speed, context and settings", run=self._stats),
            Command(name="/save", argument="FILE", help="writes it all as JSON", run=self._save, takes_file=True),
            Command(name="/load", argument="FILE", help="goes on from a saved one", run=self._load, takes_file=True),
            Command(name="/retry", argument="", help="asks the last question again", run=lambda _: Then.RETRY),
            Command(name="/raw", argument="", help="the last answer as it was written", run=lambda _: Then.RAW),
            Command(name="/exit", argument="", help="leaves; /quit too", run=lambda _: Then.LEAVE),
        )
        self.listed = commands
        self._by_name = {command.name: command for command in commands}
        self._by_name["/quit"] = self._by_name["/exit"]

    @property
    def names(self) -> list[str]:
        """Every command with its slash, for completion."""
        return list(self._by_name)

    @property
    def file_names(self) -> list[str]:
        """The commands that take a file's name."""
        return [command.name for command in self.listed if command.takes_file]

    def dispatch(self, line: str) -> Then | None:
        """Run a command; None if the line is none.

        Raises:
            InputError: an unknown command, or an argument that makes no sense.
        """
        match = _COMMAND.fullmatch(line)
        if match is None:
            return None
        name, argument = match[1].lower(), (match[2] or "").strip()
        command = self._by_name.get(name)
        if command is None:
            close = difflib.get_close_matches(name, self._by_name, n=1)
            raise InputError(
                f"expected a command, got {name}; {f'did you mean {close[0]}?' if close else '/help lists them'}"
            )
        if argument and not command.argument:
            raise InputError(f"expected {name} alone, got {argument[:40]!r} behind it; leave it out")
        return command.run(argument) or Then.GO_ON

    def _help(self, argument: str) -> None:
        width = max(len(f"{command.name} {command.argument}") for command in self.listed)
        lines = [f"{f'{c.name} {c.argument}':{width}}  {c.help}" for c in self.listed]
        self._say("\n".join([*lines, KEYS]))

    def _clear(self, argument: str) -> None:
        self._conversation.clear()
        self._say("forgotten")

    def _system(self, argument: str) -> None:
        if argument == "off":
            self._conversation.system = None
        elif argument:
            self._conversation.system = check_text(argument, "a system text")
        self._say(f"system text: {self._conversation.system or 'none'}")

    def _temperature(self, argument: str) -> None:
        conversation = self._conversation
        if argument:
            try:
                value = None if argument == "off" else float(argument)
            except ValueError as error:
                raise InputError(f"expected a number behind /temperature, like 0.7, got {argument[:40]!r}") from error
            conversation.sampling = replace(conversation.sampling, temperature=value)
        self._say(f"temperature: {status.temperature(conversation)}")

    def _stats(self, argument: str) -> None:
        self._say(status.statistics(self._conversation))

    def _save(self, argument: str) -> None:
        path = _path(argument, "/save")
        saved.save(self._conversation, path)
        self._say(f"saved {status.rounds(self._conversation.num_rounds)} to {path}")

    def _load(self, argument: str) -> None:
        path = _path(argument, "/load")
        saved.load(self._conversation, path)
        self._say(
            f"loaded {status.rounds(self._conversation.num_rounds)} from {path}: {status.context(self._conversation)}"
        )


def _path(argument: str, command: str) -> Path:
    if not argument or "\0" in argument:
        raise InputError(f"expected a file name behind {command}, got none; for example {command} chat.json")
    try:
        return Path(argument).expanduser()
    except RuntimeError as error:  # ~nobody
        raise InputError(f"expected a file name behind {command}, got {argument}: {error}") from error
