"""The loop of a chat: read, dispatch a command or ask, show, say what it took."""

from collections.abc import Callable
from contextlib import closing

from glm_int4.cli.options import check_text
from glm_int4.cli.terminal import status
from glm_int4.cli.terminal.commands import Commands, Then
from glm_int4.cli.terminal.conversation import Conversation
from glm_int4.cli.terminal.screen import Screen
from glm_int4.errors import GLMError, InputError


def run(
    conversation: Conversation,
    commands: Commands,
    screen: Screen,
    read: Callable[[], str | None],
    keep: Callable[[], None],
    *,
    forgiving: bool,
) -> None:
    """Chat until ``read`` returns None or a command leaves.

    Args:
        keep: called after every answer and on leaving, whatever made the chat end.
        forgiving: whether somebody is there to try again: mistakes and Ctrl-C then cost an answer, not the session.
    """
    try:
        while (text := read()) is not None:
            text = text.strip()
            if not text:
                continue
            try:
                then = commands.dispatch(text)
                if then is Then.LEAVE:
                    return
                if then is Then.RAW:
                    screen.raw(_last_answer(conversation))
                elif then is not Then.GO_ON:
                    _ask(conversation, screen, None if then is Then.RETRY else text, keep)
            except KeyboardInterrupt:
                if not forgiving:
                    raise
                screen.note("(stopped; Ctrl-C again leaves)")
            except GLMError as error:
                if not forgiving:
                    raise
                screen.error(str(error))
    finally:
        keep()


def _last_answer(conversation: Conversation) -> str:
    if conversation.last_answer is None:
        raise InputError("expected an answer to show, got none so far; ask a question")
    return conversation.last_answer


def _ask(conversation: Conversation, screen: Screen, question: str | None, keep: Callable[[], None]) -> None:
    """Ask, show and keep; None for the last question once more."""
    if question is None:
        answer = conversation.retry()
        if conversation.sampling.temperature == 0 or conversation.sampling.seed is not None:
            screen.note("(with temperature 0 or a seed, the same question has the same answer)")
    else:
        check_text(question, "a question")
        if dropped := conversation.make_room(question):
            screen.note(status.dropped_note(dropped))
        answer = conversation.ask(question)
    try:
        with closing(answer) as pieces:
            screen.answer(pieces)
    finally:
        keep()
    screen.note(status.after_answer(conversation, conversation.turns[-1]))
