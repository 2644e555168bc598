"""What is known of an answer when it has ended, beside its text."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class StreamRecord:
    """What a stream of text leaves behind beside the text.

    prompt_tokens: length of the prompt. ids: the new ids so far. text: what they say, as the model wrote
    it. cut: whether a limit ended the answer, ``max_new_tokens`` or ``max_length``, and not the model or a
    stop text. drafted, accepted: tokens that prompt lookup guessed, and those of them that were right.
    """

    prompt_tokens: int = 0
    ids: list[int] = field(default_factory=list)
    text: str = ""
    cut: bool = False
    drafted: int = 0
    accepted: int = 0

    @property
    def acceptance_rate(self) -> float | None:
        """Share of guessed tokens that were right; None where none was guessed."""
        return self.accepted / self.drafted if self.drafted else None
