"""Files of conversations as ``/load`` and ``--continue`` read them."""

import contextlib
import io
import json
import os
from dataclasses import asdict

from glm_int4.cli.terminal import autosave, saved, session, status
from glm_int4.cli.terminal.commands import Commands
from glm_int4.cli.terminal.conversation import Conversation
from glm_int4.cli.terminal.screen import PlainScreen
from glm_int4.errors import GLMError
from glm_int4.generation.sampling import SamplingParams
from tests.fuzz.mutations import Kind
from tests.fuzz.small_models import small_engine
from tests.fuzz.tools import TRACK, WORDS

MAX_LENGTH = {"1": 48, "3": 400}
CALL = {"role": "assistant", "metadata": "track", "content": " ```python\ntool_call(symbol='1')\n```"}
ROUNDS = [{"role": role, "content": text} for role, text in (("user", "3加5"), ("assistant", "8"), ("user", "a"))]
MESSAGES = {
    "chat1": [*ROUNDS, {"role": "assistant", "content": ""}],
    "chat3": [*ROUNDS, CALL, {"role": "observation", "content": "5"}, {"role": "assistant", "content": "b"}],
    "called": [*ROUNDS, CALL],
}
SETTINGS = asdict(SamplingParams(temperature=0.5, seed=3, stop=("。",))) | {"max_new_tokens": 5}
FIELDS = (
    *(
        "format",
        "version",
        "model",
        "system",
        "messages",
        "settings",
        "role",
        "content",
        "metadata",
        "user",
        "assistant",
    ),
    *("observation", "glm-int4 conversation", *SETTINGS),
)


class Target:
    """Loading a file in a chat, going on from it, and saving it again; an error changes nothing."""

    def __init__(self, work):
        os.environ["XDG_STATE_HOME"] = str(work / "state")
        self._folder = autosave.state_folder() / "chats"
        self._folder.mkdir(parents=True)
        self._copy = work / "copy.json"
        self._engines = {version: small_engine(work / version, version, MAX_LENGTH[version]) for version in ("1", "3")}
        self.kinds = {
            kind: Kind(format="json", seeds=(_file(messages),), words=(*WORDS, *FIELDS))
            for kind, messages in MESSAGES.items()
        }

    def use(self, kind, data):
        path = self._folder / "20260101-000000-000000.json"
        path.write_bytes(data)
        engine, tools = (self._engines["1"], None) if kind == "chat1" else (self._engines["3"], [TRACK])

        def begin():
            begun = Conversation(engine, SamplingParams(top_k=1), name="before", system="system", tools=tools)
            begun.resume(ROUNDS[:2])
            return begun

        loaded = begin()
        before = _state(loaded)
        try:
            saved.load(loaded, path)
        except GLMError:
            assert _state(loaded) == before
            raise
        status.statistics(loaded)
        self._comes_back(loaded, begin())
        self._goes_on(begin(), path)
        continued = begin()
        note = autosave.continue_from(continued, autosave.newest())
        assert "\n" not in note
        assert (continued.messages, continued.system) == (loaded.messages, "system")

    def _comes_back(self, loaded, other):
        """What was loaded is what a saved copy brings."""
        self._copy.unlink(missing_ok=True)
        saved.save(loaded, self._copy)
        saved.load(other, self._copy)
        assert _state(other) == _state(loaded)

    def _goes_on(self, conversation, path):
        """A session as somebody would type it; its errors are lines, and it keeps what was said."""
        said, lines = [], iter([f"/load {path}", "/stats", "/retry", "?", f"/save {self._copy}"])
        screen = _Screen()
        keep = autosave.Autosave(conversation, said.append).keep
        commands = Commands(conversation, said.append)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            session.run(conversation, commands, screen, lambda: next(lines, None), keep, forgiving=True)
        assert not [line for line in said if "is not kept" in line], said
        for error in screen.errors:
            assert "\n" not in error
            assert len(error) <= 3000
        for kept in self._folder.iterdir():
            if kept != path:
                kept.unlink()


class _Screen(PlainScreen):
    """Keeps the errors that it shows."""

    def __init__(self):
        super().__init__()
        self.errors = []

    def error(self, text):
        self.errors.append(text)


def _file(messages):
    content = {"format": "glm-int4 conversation", "version": 1, "model": "mini", "system": "简短"}
    return json.dumps(content | {"messages": messages, "settings": SETTINGS}).encode()


def _state(conversation):
    return conversation.messages, conversation.system, conversation.sampling, conversation.max_new_tokens
