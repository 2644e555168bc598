"""What training takes in memory, on paper: computed from shapes, before anything is loaded."""

import math
from dataclasses import asdict, dataclass

from glm_int4.checkpoint.build import ComputeSetup, resident_bytes
from glm_int4.checkpoint.formats import layout
from glm_int4.checkpoint.opening import CheckpointInfo
from glm_int4.models.config import Config
from glm_int4.models.prefix_encoder import PrefixEncoder, prefix_width
from glm_int4.tuning.arguments import LoraTrainingSettings, PTuneSettings, TrainingSettings
from glm_int4.tuning.methods.trained_lora import target_places

_FLOAT = 4
# Pieces of dequantized weights, a few at a time: plain torch takes chunks of 2**24 weights in float32.
_SCRATCH_BYTES = 4 * (64 << 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingMemory:
    """Bytes that a step holds at once; every part is an upper bound.

    weights: of the model. parameters: that are trained, with gradient and AdamW's two moments. states: keys and
    values of a prefix on their way from the encoder to the layers, and back. activations: what the backward pass
    needs. logits: of the positions that are learnt. scratch: dequantized weights.
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


def estimate_memory(
    info: CheckpointInfo, setup: ComputeSetup, settings: TrainingSettings, *, all_learnt: bool = False
) -> TrainingMemory:
    """Plan a training step with samples of the greatest length.

    Args:
        all_learnt: whether any token may be an answer's, as in conversations.
    """
    config, batch = info.config, settings.per_device_train_batch_size
    columns = settings.pre_seq_len if isinstance(settings, PTuneSettings) else 0
    num_targets = settings.target_length(config)
    length = settings.max_source_length + num_targets + 1
    num_tokens = batch * length
    # Elements of a layer for a token: norms, residuals, queries, keys and values before and after the rotation;
    # the feed-forward part before, inside and after its activation; keys and values of the whole sequence.
    ffn = 2 * (config.up_features + config.ffn_size)
    sequence = columns + length
    kv = 4 * sequence * config.num_kv_heads * config.head_dim * batch
    scores = 3 * num_tokens * config.num_heads * sequence
    a_layer = num_tokens * (16 * config.hidden_size + ffn) + kv + scores
    if isinstance(settings, LoraTrainingSettings):
        a_layer += num_tokens * _lora_elements(config, settings)
    inputs = config.num_layers * num_tokens * config.hidden_size
    # Gradients are as many as what they belong to.
    kept = inputs + 2 * a_layer if settings.gradient_checkpointing else (config.num_layers + 1) * a_layer
    num_learnt = num_tokens if all_learnt else batch * num_targets
    return TrainingMemory(
        weights=resident_bytes(info, setup),
        parameters=4 * _FLOAT * _num_parameters(config, settings),
        states=5 * _FLOAT * columns * prefix_width(config),
        activations=_FLOAT * kept,
        logits=3 * _FLOAT * num_learnt * config.vocab_size,
        scratch=_SCRATCH_BYTES + 2 * _FLOAT * max(m.in_features for m in layout.linears(config)) * num_tokens,
    )


def _num_parameters(config: Config, settings: TrainingSettings) -> int:
    """Parameters that are trained."""
    if isinstance(settings, LoraTrainingSettings):
        found = target_places(config, settings.target_modules).values()
        return sum(settings.r * (place.in_features + place.out_features) for place in found)
    assert isinstance(settings, PTuneSettings)
    encoder = PrefixEncoder(config, settings.pre_seq_len, settings.prefix_projection, device="meta")
    return sum(math.prod(parameter.shape) for parameter in encoder.parameters())


def _lora_elements(config: Config, settings: LoraTrainingSettings) -> int:
    """Elements of a layer for a token: inputs with what is dropped of them, the low products, the added outputs."""
    found = target_places(config, settings.target_modules).values()
    inputs = sum(3 * place.in_features + 2 * place.out_features + 2 * settings.r for place in found)
    return -(-inputs // config.num_layers)
