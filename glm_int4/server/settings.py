"""What a server allows, and how many answers it gives at a time."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from glm_int4.errors import InputError
from glm_int4.generation.continuous import MAX_SLOTS, check_slots, slot_bytes
from glm_int4.generation.engine import Engine
from glm_int4.generation.memory_plan import slots_scratch_bytes
from glm_int4.server.access.keys import Key
from glm_int4.system import free_bytes, gb_text, total_bytes

FORMATS = ("text", "json")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
DEFAULT_SLOTS = 8
_KV_SHARE = 0.5  # of the memory that is left, for the keys and values of answers when nobody says how many


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Limits of a server.

    max_waiting: answers that may wait while all slots are taken. max_new_tokens: of one answer, beside the
    model's own limit. body_seconds: for a request to arrive. send_seconds: for a client to take a piece of an
    answer. host_names: names that a Host header may have; none allows any. origins: of pages that may ask, beside
    this server's own. more_names: under which the model is served too. strict: whether requests with fields that
    have no effect, or another model's name, are refused. adapter_dir: of adapters that clients may load; None lets them
    load none. drain_seconds: for answers that run when the server is to end.
    """

    model_name: str
    more_names: tuple[str, ...] = ()
    strict: bool = False
    adapter_dir: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = field(default=None, repr=False)
    more_keys: tuple[Key, ...] = ()
    max_waiting: int = 64
    max_new_tokens: int | None = None
    max_body_bytes: int = 1 << 20
    max_messages: int = 4096
    body_seconds: float = 30.0
    send_seconds: float = 60.0
    host_names: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    drain_seconds: float = 60.0
    log_format: str = "text"

    @property
    def names(self) -> tuple[str, ...]:
        """All names of the model, its own one first."""
        return (self.model_name, *self.more_names)

    @property
    def keys(self) -> tuple[Key, ...]:
        """All keys; none lets everybody in."""
        return (*([] if self.api_key is None else [Key("api-key", self.api_key)]), *self.more_keys)

    def __post_init__(self) -> None:
        tokens = self.max_new_tokens
        for good, expected, value in (
            (0 <= self.port < 65536, "a port from 0 to 65535", self.port),
            (self.max_waiting >= 0, "0 or more answers that may wait", self.max_waiting),
            (tokens is None or tokens >= 1, "max new tokens of 1 or more", tokens),
            (self.max_body_bytes >= 1024, "at least 1024 bytes for a request", self.max_body_bytes),
            (self.api_key is None or self.api_key.strip(), "an API key that is not empty", "one"),
            (self.adapter_dir is None or self.adapter_dir.is_dir(), "a folder as --adapter-dir", str(self.adapter_dir)),
            (self.drain_seconds >= 0, "a drain timeout of 0 or more seconds", self.drain_seconds),
            (self.log_format in FORMATS, f"a log format of {', '.join(FORMATS)}", self.log_format),
        ):
            if not good:
                raise InputError(f"expected {expected}, got {value!r}")


def choose_slots(engine: Engine, wanted: int | None = None) -> int:
    """How many answers an engine can give at a time; None chooses, from the memory that is left.

    Raises:
        InputError: the number that is wanted does not fit; the message has the figures.
    """
    each, left = slot_bytes(engine), available_bytes(engine.device)

    def scratch(num_slots: int) -> int:
        length = engine.max_length + (engine.prefix.length if engine.prefix else 0)
        return slots_scratch_bytes(engine.config, engine.setup, num_slots, length)

    numbers = range(MAX_SLOTS, 0, -1)
    if wanted is None:
        fitting = (n for n in numbers if n <= DEFAULT_SLOTS and n * each <= _KV_SHARE * (left - scratch(n)))
        return next(fitting, 1)
    check_slots(wanted)
    needed = wanted * each + scratch(wanted)
    if needed > left:
        fits = next((n for n in numbers if n * each + scratch(n) <= left), 0)
        advice = f"try --parallel {fits}, " if fits else "try "
        raise InputError(
            f"expected room for {wanted} answers of {engine.max_length} tokens, which take {gb_text(needed)} with "
            f"scratch, got {gb_text(left)}; {advice}--kv-bits 8 or a smaller --max-length"
        )
    return wanted


def available_bytes(device: torch.device) -> int:
    """Memory that is left on a device; half of all where the system does not say."""
    free = free_bytes(device)
    return total_bytes() // 2 if free is None else free
