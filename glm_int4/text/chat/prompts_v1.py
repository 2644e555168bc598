"""How ChatGLM-6B (v1) expects a conversation to be written, and how its answers are cleaned."""

import re
from collections.abc import Sequence

from glm_int4.text.chat.messages import Message, split_rounds
from glm_int4.text.chat.messages import is_blank as is_blank
from glm_int4.text.chat.responses import CleaningStream, fill_template


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
    return write_prompt(*split_rounds(messages))


def write_prompt(system: str, rounds: Sequence[tuple[str, str]], question: str) -> str:
    """The prompt of a conversation that is split already."""
    if not rounds:
        return system + question
    lines = [f"[Round {i}]\n问：{q}\n答：{a}\n" for i, (q, a) in enumerate(rounds)]
    return f"{system}{''.join(lines)}[Round {len(rounds)}]\n问：{question}\n答："


_FULL_WIDTH = {",": "，", "!": "！", ":": "：", ";": "；", "?": "？"}
_PUNCTUATION = re.compile(r"(?<=[\u4e00-\u9fff])[,!:;?]|[,!:;?](?=[\u4e00-\u9fff])")


def process_response(text: str) -> str:
    """Clean a whole answer as the official code does.

    White space around it goes; the normalizer's half-width punctuation next to a Chinese character
    becomes full-width again; the training-time template is filled in.
    """
    return _PUNCTUATION.sub(lambda match: _FULL_WIDTH[match[0]], fill_template(text))


class ResponseStream(CleaningStream):
    """``process_response`` over pieces; punctuation at the end waits for what follows it."""

    unsettled = "".join(_FULL_WIDTH)

    def clean(self, text: str, complete: bool) -> str:
        """As of ``CleaningStream``."""
        return process_response(text)
