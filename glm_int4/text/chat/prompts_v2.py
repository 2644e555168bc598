"""How ChatGLM2-6B (v2) expects a conversation to be written; its answers are cleaned by ``fill_template``."""

from collections.abc import Sequence

from glm_int4.text.chat.messages import Message, split_rounds


def build_prompt(messages: Sequence[Message]) -> str:
    """Write a conversation the official way: rounds counted from 1, the first one too.

    Args:
        messages: as for version 1; the model knows no system role either: system text goes in front
            of the prompt, on lines of its own.
    Raises:
        InputError: roles that do not alternate, or an empty question.
    """
    return write_prompt(*split_rounds(messages))


def write_prompt(system: str, rounds: Sequence[tuple[str, str]], question: str) -> str:
    """The prompt of a conversation that is split already."""
    lines = [f"[Round {i}]\n\n问：{q}\n\n答：{a}\n\n" for i, (q, a) in enumerate(rounds, 1)]
    return f"{system}{''.join(lines)}[Round {len(rounds) + 1}]\n\n问：{question}\n\n答："
