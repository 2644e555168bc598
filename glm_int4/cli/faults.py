"""Faults that end an answer or a command, as one line that says what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from glm_int4.errors import GLMError

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
