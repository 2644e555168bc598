"""The line that is typed on: several lines, history on disk, completion of commands and file names."""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.shortcuts import CompleteStyle

from glm_int4.cli.terminal.autosave import state_folder


class Prompt:
    """Asks for questions and commands.

    Args:
        say: is told, once, that what is typed cannot be kept on disk.
    """

    def __init__(
        self,
        commands: Sequence[str],
        file_commands: Sequence[str],
        toolbar: Callable[[], str],
        say: Callable[[str], None],
    ) -> None:
        history, fault = open_history()
        self._faults = [fault] if fault else history.faults if isinstance(history, DiskHistory) else []
        self._toolbar, self._say, self._warned = toolbar, say, False
        self._warn()
        self._session: PromptSession[str] = PromptSession(
            history=history,
            multiline=True,
            prompt_continuation="  ",
            key_bindings=_key_bindings(),
            completer=CommandCompleter(commands, file_commands),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,  # a menu would need free lines below
            reserve_space_for_menu=0,
            enable_suspend=True,
        )

    def ask(self) -> str | None:
        """The next text, perhaps of several lines; None to leave."""
        toolbar = f" {self._toolbar()} "
        while True:
            try:
                text = self._session.prompt("> ", bottom_toolbar=toolbar)
                self._warn()
                return text
            except KeyboardInterrupt:
                if not self._session.default_buffer.text:  # with a text begun, Ctrl-C clears it
                    return None
            except EOFError:
                return None

    def _warn(self) -> None:
        """Say the first fault of the history, while nobody types."""
        if self._faults and not self._warned:
            self._warned = True
            self._say(f"(what you type is not kept for the next time: {self._faults[0]})")


def _key_bindings() -> KeyBindings:
    """Enter sends, except behind a backslash; Alt-Enter and Ctrl-J begin a new line."""
    bindings = KeyBindings()
    typing = has_focus(DEFAULT_BUFFER)

    @bindings.add("enter", filter=typing)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\") and buffer.document.is_cursor_at_the_end_of_line:
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter", filter=typing)
    @bindings.add("c-j", filter=typing)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return bindings


class CommandCompleter(Completer):
    """Completes a command's name, and a file name behind the commands that take one."""

    def __init__(self, commands: Sequence[str], file_commands: Sequence[str]) -> None:
        self._commands, self._file_commands = commands, file_commands
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """What prompt_toolkit offers behind a slash: commands, then names of files."""
        text = document.text_before_cursor
        command, space, argument = text.partition(" ")
        if not space:
            for name in self._commands:
                if text and name.startswith(text):
                    yield Completion(name, start_position=-len(text))
        elif command in self._file_commands:
            yield from self._paths.get_completions(Document(argument), complete_event)


class DiskHistory(FileHistory):
    """A history whose file may fail: then the chat goes on, and what was typed stays in memory.

    Attributes:
        faults: why texts could not be written.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.faults: list[str] = []

    def store_string(self, string: str) -> None:
        """Append a text to the file."""
        try:
            with suppress(UnicodeError):
                super().store_string(string)
        except OSError as error:
            self.faults.append(error.strerror or str(error))

    def load_history_strings(self) -> Iterable[str]:
        """What was typed before, the newest first."""
        with suppress(OSError):
            yield from super().load_history_strings()


def open_history() -> tuple[History, str | None]:
    """The history on disk, readable by its owner alone, or one in memory and the reason why."""
    try:
        path = history_path()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        os.close(descriptor)
        path.chmod(0o600)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        return InMemoryHistory(), str(getattr(error, "strerror", None) or error)
    return DiskHistory(str(path)), None


def history_path() -> Path:
    """Where the history is kept: the user's folder for state."""
    return state_folder() / "chat_history"
