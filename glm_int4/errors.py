"""The error tree of glm_int4: what a caller can catch, and how it ends a command.

Messages are one line: what was expected, what was found, what to do about it. Every room of the
package may import this module; it imports nothing of the package.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral


class GLMError(Exception):
    """Root of the tree. ``exit_code`` is the status a command ends with."""

    exit_code = 1


class NotFiniteError(GLMError):
    """The model computed nan or inf."""


class UserError(GLMError):
    """A mistake in what was asked for or in the files that were given: exit code 2."""

    exit_code = 2


class InputError(UserError):
    """An argument, a prompt or a text file cannot be used."""


class PromptTooLongError(InputError):
    """A prompt leaves no room for an answer.

    Attributes:
        limit: tokens that a prompt must stay below.
        got: what there is instead: a number of tokens, or "9000 characters".
    """

    def __init__(self, limit: int, got: str) -> None:
        self.limit, self.got = limit, got
        super().__init__(f"expected a prompt of less than {limit} tokens, got {got}; shorten it")


class ConfigError(UserError):
    """A ``config.json`` is missing, malformed, contradictory or of another model."""


class CheckpointError(UserError):
    """Weights are missing, truncated, mis-shaped, mis-typed or unsafe to open."""


class TokenizerError(UserError):
    """A tokenizer file is missing or is not a tokenizer of the expected version."""


class OutputError(UserError):
    """An output folder exists already or cannot be written."""


# How torch and the system say it, where the exception's type does not.
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "cannot allocate memory", "can't allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the CPU or on a GPU."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(sign in str(error).lower() for sign in _OUT_OF_MEMORY)


@contextmanager
def naming_exhausted_memory(what: str, advice: str) -> Iterator[None]:
    """Turn memory that ran out into a GLMError that names what it was for and what to do."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise GLMError(f"expected enough memory for the {what}, got too little; {advice}") from error


def check_whole_number(name: str, value: object) -> None:
    """Raise InputError unless an argument is an integer."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise InputError(f"expected {name} to be a whole number, got {value!r}")
