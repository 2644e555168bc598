"""Faults that end an answer or a command, as one line that says what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from glm_int4.errors import GLMError, is_out_of_memory

__all__ = ["is_out_of_memory", "naming_exhausted_memory"]


@contextmanager
def naming_exhausted_memory(what: str, advice: str) -> Iterator[None]:
    """Turn memory that ran out into a GLMError that names what it was for and what to do."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise GLMError(f"expected enough memory for the {what}, got too little; {advice}") from error
