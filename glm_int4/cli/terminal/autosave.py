"""What was said stays: every chat has a file in the user's folder for state, and ``--continue`` takes the newest."""

import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from glm_int4.cli.terminal import saved, status
from glm_int4.cli.terminal.conversation import Conversation
from glm_int4.cli.terminal.keyboard import undisturbed
from glm_int4.errors import InputError
from glm_int4.generation.sampling import SamplingParams

_KEPT = 10  # chats


def state_folder() -> Path:
    """The user's folder for what programs remember, ours in it; it may not exist yet.

    Raises:
        RuntimeError: the user has no home.
    """
    named = os.environ.get("XDG_STATE_HOME", "")
    state = Path(named) if os.path.isabs(named) else Path.home() / ".local" / "state"
    return state / "glm-int4"


class Autosave:
    """Keeps a conversation in a file of its own, in the format of ``/save``."""

    def __init__(self, conversation: Conversation, say: Callable[[str], None]) -> None:
        """Args: ``say`` is told, once, that the conversation cannot be kept."""
        self._conversation, self._say = conversation, say
        self._name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}.json"
        # What has just been read, or nothing yet: that needs no file.
        self._written = saved.to_bytes(conversation)
        self._path: Path | None = None
        self._warned = False

    def keep(self) -> None:
        """Write what is not written yet. An empty conversation leaves the file alone; faults are said, not raised."""
        try:
            if self._conversation.messages:
                with undisturbed():
                    self._write()
        except (InputError, OSError, RuntimeError) as error:  # RuntimeError: no home
            if not self._warned:
                self._warned = True
                with suppress(OSError):  # the terminal is gone
                    self._say(f"(this conversation is not kept for --continue: {_reason(error)})")

    def _write(self) -> None:
        content = saved.to_bytes(self._conversation)
        if content == self._written and (self._path is None or self._path.exists()):
            return
        folder = _chats()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        saved.save(self._conversation, folder / self._name)
        self._written, self._path = content, folder / self._name
        _forget_old(folder)


def newest() -> Path:
    """The file of the last conversation.

    Raises:
        InputError: there is none.
    """
    try:
        found = _by_age(_chats())
        where = f"in {_chats()}"
    except (OSError, RuntimeError) as error:
        found, where = [], f"({_reason(error)})"
    if not found:
        raise InputError(f"expected a conversation to continue, got none {where}; begin one without --continue")
    return found[-1]


def continue_from(conversation: Conversation, path: Path) -> str:
    """Go on with what a file holds; what the command line has set stays. Returns what to say of it.

    Raises:
        InputError: the file holds no conversation, or none that this model could go on with.
    """
    system, max_new_tokens, default = conversation.system, conversation.max_new_tokens, asdict(SamplingParams())
    chosen = {name: value for name, value in asdict(conversation.sampling).items() if value != default[name]}
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime)) if path.exists() else "?"
    model = saved.load(conversation, path)
    conversation.sampling = replace(conversation.sampling, **chosen)
    conversation.system = conversation.system if system is None else system
    conversation.max_new_tokens = max_new_tokens or conversation.max_new_tokens
    return f"(continues {status.rounds(conversation.num_rounds)} of {when}, last answered by {model})"


def _chats() -> Path:
    return state_folder() / "chats"


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _by_age(folder: Path) -> list[Path]:
    """The kept conversations, the newest last."""
    ages: list[tuple[int, Path]] = []
    for path in folder.glob("*.json"):
        with suppress(FileNotFoundError):  # another chat has just forgotten it
            ages.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(ages)]


def _forget_old(folder: Path) -> None:
    for path in _by_age(folder)[:-_KEPT]:
        with suppress(OSError):
            path.unlink()
