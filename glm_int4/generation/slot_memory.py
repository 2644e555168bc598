"""What answers at a time take beside their keys and values: attention, logits and sampling of all their rows."""

from glm_int4.checkpoint.build import ComputeSetup
from glm_int4.generation.cuda_graphs import row_bucket
from glm_int4.generation.memory_plan import scratch_bytes
from glm_int4.models.config import Config

# Values of the vocabulary that a row of logits takes at most until its token is picked: the logits and what sampling
# makes of them, sorted ones and 64-bit integers among it.
_VOCABULARY_VALUES = 14
# Values of the hidden size, and of the widest part of the feed-forward network, that a row of a step takes.
_HIDDEN_VALUES, _WIDE_VALUES = 12, 3
# Columns of the cache in a split of attention; each leaves a head's sums and two numbers in float32.
_SPLIT_COLUMNS = 64


def slots_scratch_bytes(config: Config, setup: ComputeSetup, num_slots: int, max_length: int) -> int:
    """Bytes to keep free for prompts, and for so many rows that decode together.

    Args:
        max_length: most tokens of a row, those of a prefix included.
    """
    rows = row_bucket(num_slots)
    step = 4 * rows * (config.hidden_size * _HIDDEN_VALUES + config.up_features * _WIDE_VALUES)
    if setup.device.type == "cuda":
        splits = -(-max_length // _SPLIT_COLUMNS)
        step += 4 * rows * config.num_heads * splits * (config.head_dim + 2)
        step *= 2  # once for steps that run eagerly, once for graphs, whose memory is their own
    return scratch_bytes(config, setup, max_length) + step + 4 * rows * config.vocab_size * _VOCABULARY_VALUES
