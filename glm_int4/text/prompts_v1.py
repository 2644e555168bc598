"""How ChatGLM-6B (v1) expects a conversation to be written, and how its answers are cleaned."""

import re
import unicodedata
from collections.abc import Mapping, Sequence

from glm_int4.errors import InputError

Message = Mapping[str, str]


def build_prompt(messages: Sequence[Message]) -> str:
    """Write a conversation the official way.

    Args:
        messages: ``{"role": "user" | "assistant" | "system", "content": str}`` in order; the last
            is the user's. The model knows no system role: system text goes in front of the prompt,
            on lines of its own.
    Returns:
        The bare question where nothing came before it, otherwise rounds counted from 0.
    Raises:
        InputError: roles that do not alternate, or an empty question.
    """
    system, rounds, question = _split(messages)
    if not rounds:
        return system + question
    lines = [f"[Round {i}]\n问：{q}\n答：{a}\n" for i, (q, a) in enumerate(rounds)]
    return f"{system}{''.join(lines)}[Round {len(rounds)}]\n问：{question}\n答："


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: white space, control and format characters only."""
    return all(c.isspace() or unicodedata.category(c) in ("Cc", "Cf") for c in text)


def _split(messages: Sequence[Message]) -> tuple[str, list[tuple[str, str]], str]:
    system, rounds, question = "", [], None
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if not isinstance(content, str):
            raise InputError(f"expected every message to have a text as content, got {content!r}")
        if role == "system" and question is None:
            system += f"{content}\n"
        elif role == "user" and question is None:
            question = content
        elif role == "assistant" and question is not None:
            rounds.append((question, content))
            question = None
        else:
            raise InputError(f"expected messages of user and assistant in turn, got one of role {role!r}")
    if question is None:
        raise InputError("expected the last message to be the user's, got none")
    if is_blank(question):
        raise InputError("expected a question, got an empty prompt")
    return system, rounds, question


_TRAINING_TIME, _TRAINING_TIME_TEXT = "[[训练时间]]", "2023年"
_FULL_WIDTH = {",": "，", "!": "！", ":": "：", ";": "；", "?": "？"}
_PUNCTUATION = re.compile(r"(?<=[\u4e00-\u9fff])[,!:;?]|[,!:;?](?=[\u4e00-\u9fff])")


def process_response(text: str) -> str:
    """Clean a whole answer as the official code does.

    White space around it goes; the normalizer's half-width punctuation next to a Chinese character
    becomes full-width again; the training-time template is filled in.
    """
    text = text.strip().replace(_TRAINING_TIME, _TRAINING_TIME_TEXT)
    return _PUNCTUATION.sub(lambda match: _FULL_WIDTH[match[0]], text)


class ResponseStream:
    """``process_response`` over pieces: what it returns adds up to the cleaned whole."""

    def __init__(self) -> None:
        self._text = ""
        self._sent = 0

    def push(self, piece: str) -> str:
        """Take the next piece of raw text; return what can no longer change.

        White space and punctuation at the end wait for what follows them, and so does a beginning of
        the training-time template.
        """
        self._text += piece
        stable = self._text.rstrip()
        for length in range(len(_TRAINING_TIME) - 1, 0, -1):
            if stable.endswith(_TRAINING_TIME[:length]):
                stable = stable[:-length].rstrip()
                break
        return self._advance(stable.rstrip("".join(_FULL_WIDTH)))

    def finish(self) -> str:
        """Return what was held back."""
        return self._advance(self._text)

    def _advance(self, stable: str) -> str:
        cleaned = process_response(stable)
        piece, self._sent = cleaned[self._sent :], max(self._sent, len(cleaned))
        return piece
