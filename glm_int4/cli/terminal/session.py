"""The loop of a chat: read, dispatch a command or ask, show, say what it took."""

from collections.abc import Callable
from contextlib import closing

from glm_int4.cli.options import check_text
from glm_int4.cli.terminal import status
from glm_int4.cli.terminal.commands import Commands, Then
from glm_int4.cli.terminal.conversation import Conversation
from glm_int4.cli.terminal.screen import Screen
from glm_int4.errors import GLMError


def run(
    conversation: Conversation,
    commands: Commands,
    screen: Screen,
    read: Callable[[], str | None],
    *,
    forgiving: bool,
) -> None:
    """Chat until ``read`` returns None or a command leaves.

    Args:
        forgiving: whether somebody is there to try again: mistakes and Ctrl-C then cost an answer, not the session.
    """
    while (text := read()) is not None:
        text = text.strip()
        if not text:
            continue
        try:
            then = commands.dispatch(text)
            if then is Then.LEAVE:
                return
            if then is not Then.GO_ON:
                _ask(conversation, screen, None if then is Then.RETRY else text)
        except KeyboardInterrupt:
            if not forgiving:
                raise
            screen.note("(stopped; Ctrl-C again leaves)")
        except GLMError as error:
            if not forgiving:
                raise
            screen.error(str(error))


def _ask(conversation: Conversation, screen: Screen, question: str | None) -> None:
    """Ask and show; None for the last question once more."""
    if question is None:
        answer = conversation.retry()
        if conversation.sampling.temperature == 0 or conversation.sampling.seed is not None:
            screen.note("(with temperature 0 or a seed, the same question has the same answer)")
    else:
        check_text(question, "a question")
        if dropped := conversation.make_room(question):
            screen.note(f"(the context is full: dropped the oldest {status.rounds(dropped)} to make room)")
        answer = conversation.ask(question)
    with closing(answer) as pieces:
        screen.answer(pieces)
    screen.note(status.after_answer(conversation, conversation.turns[-1]))
