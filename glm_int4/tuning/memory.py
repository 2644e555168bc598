"""What training a prefix takes in memory, on paper: computed from shapes, before anything is loaded."""

import math
from dataclasses import asdict, dataclass

from glm_int4.checkpoint.build import ComputeSetup, resident_bytes
from glm_int4.checkpoint.formats import layout
from glm_int4.checkpoint.opening import CheckpointInfo
from glm_int4.models.prefix_encoder import PrefixEncoder, prefix_width
from glm_int4.tuning.arguments import PTuneSettings

_FLOAT = 4
# Pieces of dequantized weights, a few at a time: plain torch takes chunks of 2**24 weights in float32.
_SCRATCH_BYTES = 4 * (64 << 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingMemory:
    """Bytes that a step holds at once; every part is an upper bound.

    weights: of the model. parameters: of the prefix with gradient and AdamW's two moments. states: keys and
    values on their way from the encoder to the layers, and back. activations: what the backward pass needs.
    logits: of the positions that are learnt. scratch: dequantized weights.
    """

    weights: int
    parameters: int
    states: int
    activations: int
    logits: int
    scratch: int

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(asdict(self).values())


def estimate_memory(info: CheckpointInfo, setup: ComputeSetup, settings: PTuneSettings) -> TrainingMemory:
    """Plan a training step with samples of the greatest length."""
    config, length = info.config, settings.pre_seq_len
    encoder = PrefixEncoder(config, length, settings.prefix_projection, device="meta")
    num_parameters = sum(math.prod(parameter.shape) for parameter in encoder.parameters())
    num_targets = settings.target_length(config.version)
    num_tokens = settings.per_device_train_batch_size * (settings.max_source_length + num_targets + 1)
    # Elements of a layer for a token: norms, residuals, queries, keys and values before and after the rotation;
    # the feed-forward part before, inside and after its activation; keys and values of the whole sequence.
    ffn = 2 * (config.up_features + config.ffn_size)
    sequence = length + settings.max_source_length + num_targets + 1
    kv = 4 * sequence * config.num_kv_heads * config.head_dim * settings.per_device_train_batch_size
    scores = 3 * num_tokens * config.num_heads * sequence
    a_layer = num_tokens * (16 * config.hidden_size + ffn) + kv + scores
    inputs = config.num_layers * num_tokens * config.hidden_size
    # Gradients are as many as what they belong to.
    kept = inputs + 2 * a_layer if settings.gradient_checkpointing else (config.num_layers + 1) * a_layer
    num_learnt = settings.per_device_train_batch_size * num_targets
    return TrainingMemory(
        weights=resident_bytes(info, setup),
        parameters=4 * _FLOAT * num_parameters,
        states=5 * _FLOAT * length * prefix_width(config),
        activations=_FLOAT * kept,
        logits=3 * _FLOAT * num_learnt * config.vocab_size,
        scratch=_SCRATCH_BYTES + 2 * _FLOAT * max(m.in_features for m in layout.linears(config)) * num_tokens,
    )
