"""Calibration text: read, checked and cut into sequences of token ids."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from glm_int4.checkpoint.tokenizer_check import text_prefix
from glm_int4.errors import InputError
from glm_int4.models.config import Config
from glm_int4.text import Tokenizer
from glm_int4.text.sample_text import SAMPLE_TEXT
from glm_int4.text.text_file import read_text

logger = logging.getLogger(__name__)

NUM_SEQUENCES, SEQUENCE_TOKENS = 32, 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """sequences: token ids, each behind the ids that stand in front of a text. num_tokens: of the text used.
    fingerprint: of the text."""

    sequences: list[list[int]]
    num_tokens: int
    fingerprint: str


def read_calibration(path: Path, tokenizer: Tokenizer, config: Config) -> Calibration:
    """Cut a text file into sequences, spread evenly over it.

    Raises:
        InputError: not a text, or shorter than a single sequence.
    """
    text = read_text(path, "calibration text")
    ids = tokenizer.encode(text)
    prefix = text_prefix(config, tokenizer)
    length = min(SEQUENCE_TOKENS, config.max_sequence_length - len(prefix))
    count = min(len(ids) // length, NUM_SEQUENCES)
    if count == 0:
        raise InputError(
            f"expected a calibration text of {NUM_SEQUENCES} x {length} tokens, or {length} at the least, "
            f"got {len(ids)} in {path}; give a longer one"
        )
    spread = len(ids) // count
    sequences = [[*prefix, *ids[i * spread : i * spread + length]] for i in range(count)]
    digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
    return Calibration(sequences=sequences, num_tokens=count * length, fingerprint=f"{digest} {count} x {length}")


def sample_sequences(
    calibration: Calibration | None, tokenizer: Tokenizer | None, config: Config, num_sequences: int, num_tokens: int
) -> list[list[int]]:
    """Sequences to measure on: of the calibration text, else a built-in one; random ids without a tokenizer."""
    if calibration is not None:
        step = max(len(calibration.sequences) // num_sequences, 1)
        return [ids[: num_tokens + 2] for ids in calibration.sequences[::step][:num_sequences]]
    length = min(num_tokens, config.max_sequence_length - 2)
    if tokenizer is not None:
        logger.warning("sensitivities are measured on a built-in text; --calibration FILE takes another")
        prefix, ids = text_prefix(config, tokenizer), tokenizer.encode(SAMPLE_TEXT)
        starts = range(0, min(len(ids), num_sequences * length), length)
        return [[*prefix, *ids[i : i + length]] for i in starts]
    logger.warning("sensitivities are measured on random tokens, since there is no tokenizer beside the weights")
    draw = torch.randint(0, config.vocab_size, (num_sequences, length), generator=torch.Generator().manual_seed(0))
    return [row.tolist() for row in draw]
