"""``glm-int4 chat``: a conversation in the terminal, or one answer for a script."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glm_int4.cli import options

if TYPE_CHECKING:
    from glm_int4.cli.terminal.conversation import Conversation

NAME = "chat"

_HINT = "/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves."


def run(
    model: options.Model = None,
    *,
    prompt: Annotated[str | None, typer.Option(help="Ask this one question and print the answer alone.")] = None,
    system: Annotated[str | None, typer.Option(help="Text in front of the conversation.")] = None,
    go_on: Annotated[
        bool, typer.Option("--continue", help="Go on with the last conversation, whatever its model.")
    ] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Show answers as they are written, without layout.")] = False,
    tools: Annotated[Path | None, typer.Option(help="A JSON file with a list of tools that ChatGLM3 may call.")] = None,
    sampling: options.Sampling,
    max_new_tokens: options.MaxNewTokens = None,
    loading: options.Loading,
) -> None:
    """Chat with a model."""
    params = sampling.params()
    if prompt is not None:
        prompt = options.argument_text(prompt, "a prompt")
    if system is not None:
        system = options.argument_text(system, "a system text")
    definitions = options.read_tools(tools) if tools is not None else None
    last = None
    if go_on:
        from glm_int4.cli.terminal.autosave import newest

        last = newest()  # before the model is loaded: that may take minutes
    started = time.perf_counter()
    glm = loading.load(model)
    glm.tokenizer  # noqa: B018 (a folder without one is an error now, not after the first question)
    from glm_int4.cli.terminal.autosave import continue_from
    from glm_int4.cli.terminal.conversation import Conversation

    name = options.find_model(model)
    conversation = Conversation(glm, params, name=name, system=system, max_new_tokens=max_new_tokens, tools=definitions)
    conversation.check(system, [])
    continued = [] if last is None else [continue_from(conversation, last)]
    if prompt is not None:
        _answer(conversation, prompt, continued)
        return
    loaded_s = time.perf_counter() - started
    greeting = f"{name} on {glm.device}, loaded in {loaded_s:.1f} s. {_HINT}"
    _talk(conversation, "\n".join([greeting, *continued]), plain=plain)


def _answer(conversation: "Conversation", prompt: str, continued: list[str]) -> None:
    """Print one answer alone; where it continues a conversation, say so and keep it with that."""
    from glm_int4.cli.terminal.autosave import Autosave
    from glm_int4.cli.terminal.screen import PlainScreen
    from glm_int4.cli.terminal.status import call_note, dropped_note, limit_note

    screen = PlainScreen()
    kept = Autosave(conversation, screen.note)
    for note in continued:
        screen.note(note)
    if continued and (dropped := conversation.make_room(prompt)):
        screen.note(dropped_note(dropped))
    try:
        screen.answer(conversation.ask(prompt))
    finally:
        if continued:
            kept.keep()
    turn = conversation.turns[-1]
    for note in filter(None, (limit_note(conversation, turn), call_note(turn))):
        screen.note(note)


def _talk(conversation: "Conversation", greeting: str, *, plain: bool) -> None:
    """Chat on the terminal, or plainly where input or output is none."""
    from glm_int4.cli.terminal import session
    from glm_int4.cli.terminal.autosave import Autosave
    from glm_int4.cli.terminal.commands import Commands
    from glm_int4.cli.terminal.keyboard import leaving_on_signals
    from glm_int4.cli.terminal.screen import PlainScreen, RichScreen, Screen, is_terminal
    from glm_int4.cli.terminal.status import status_line

    rich = is_terminal()
    screen: Screen = RichScreen(plain=plain) if rich else PlainScreen()
    commands = Commands(conversation, screen.note)
    screen.note(greeting)
    read = _read_line
    if rich:
        from glm_int4.cli.terminal.prompt import Prompt

        read = Prompt(commands.names, commands.file_names, lambda: status_line(conversation), screen.note).ask
    keep = Autosave(conversation, screen.note).keep
    with leaving_on_signals():
        session.run(conversation, commands, screen, read, keep, forgiving=_is_typed())


def _read_line() -> str | None:
    """The next line of stdin, asked for where somebody types it; None at the end."""
    if sys.stdin is None:
        return None
    if not _is_typed():
        return sys.stdin.readline() or None
    line = ""
    try:
        print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
    except KeyboardInterrupt:
        pass
    if not line:
        print(file=sys.stderr)
    return line or None


def _is_typed() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()
