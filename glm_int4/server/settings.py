"""What a server allows, and how many answers it gives at a time."""

from dataclasses import dataclass

import torch

from glm_int4.errors import InputError
from glm_int4.generation.continuous import MAX_SLOTS, check_slots, slot_bytes
from glm_int4.generation.engine import Engine
from glm_int4.system import free_bytes, total_bytes

LOOPBACK = ("127.0.0.1", "localhost", "::1")
DEFAULT_SLOTS = 8
_KV_SHARE = 0.5  # of the memory that is left, for the keys and values of answers when nobody says how many


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Limits of a server.

    max_waiting: answers that may wait while all slots are taken. max_new_tokens: of one answer, beside the
    model's own limit. body_seconds: for a request to arrive. send_seconds: for a client to take a piece of an
    answer. host_names: names that a Host header may have; none allows any.
    """

    model_name: str
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    max_waiting: int = 64
    max_new_tokens: int | None = None
    max_body_bytes: int = 1 << 20
    max_messages: int = 4096
    body_seconds: float = 30.0
    send_seconds: float = 60.0
    host_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        tokens = self.max_new_tokens
        for good, expected, value in (
            (0 <= self.port < 65536, "a port from 0 to 65535", self.port),
            (self.max_waiting >= 0, "0 or more answers that may wait", self.max_waiting),
            (tokens is None or tokens >= 1, "max new tokens of 1 or more", tokens),
            (self.max_body_bytes >= 1024, "at least 1024 bytes for a request", self.max_body_bytes),
            (self.api_key is None or self.api_key.strip(), "an API key that is not empty", self.api_key),
        ):
            if not good:
                raise InputError(f"expected {expected}, got {value!r}")


def choose_slots(engine: Engine, wanted: int | None = None) -> int:
    """How many answers an engine can give at a time; None chooses, from the memory that is left.

    Raises:
        InputError: the number that is wanted does not fit; the message has the figures.
    """
    each, left = slot_bytes(engine), available_bytes(engine.device)
    if wanted is None:
        return max(1, min(DEFAULT_SLOTS, int(_KV_SHARE * left / each)))
    check_slots(wanted)
    if wanted * each > left:
        fits = min(int(left / each), MAX_SLOTS)
        advice = f"try --parallel {fits}, " if fits else "try "
        raise InputError(
            f"expected room for {wanted} answers of {engine.max_length} tokens, which take {wanted * each / 1e9:.2f} "
            f"GB, got {left / 1e9:.2f} GB; {advice}--kv-bits 8 or a smaller --max-length"
        )
    return wanted


def available_bytes(device: torch.device) -> int:
    """Memory that is left on a device; half of all where the system does not say."""
    free = free_bytes(device)
    return total_bytes() // 2 if free is None else free
