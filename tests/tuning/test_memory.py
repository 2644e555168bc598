"""The plan of a training step at full size, and against a run at small size."""

import torch

from glm_int4.checkpoint.build import ComputeSetup
from glm_int4.checkpoint.formats import layout
from glm_int4.checkpoint.opening import CheckpointInfo
from glm_int4.models.config import ChatGLM2Config, ChatGLMConfig
from glm_int4.quantization.scheme import QuantizationScheme
from glm_int4.tuning.arguments import PTuneSettings
from glm_int4.tuning.memory import estimate_memory

GB = 10**9
V1 = ChatGLMConfig(
    num_layers=28, hidden_size=4096, num_heads=32, ffn_size=16384, vocab_size=130528, max_sequence_length=2048,
    layernorm_epsilon=1e-5, bos_token_id=130004, eos_token_id=130005, mask_token_id=130000, gmask_token_id=130001,
    pad_token_id=3,
)  # fmt: skip
V2 = ChatGLM2Config(
    version="2", num_layers=28, hidden_size=4096, num_heads=32, num_kv_heads=2, head_dim=128, ffn_size=13696,
    vocab_size=65024, max_sequence_length=32768, layernorm_epsilon=1e-5, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
INT4 = QuantizationScheme(bits=4, group_size=128, symmetric=False)
INT8 = QuantizationScheme(bits=8, group_size=None, symmetric=True)
CUDA = ComputeSetup(
    device=torch.device("cuda"), backend="reference", dense_dtype=torch.float16, stream_dtype=torch.float16,
    kv_dtype=torch.float16, half_tables=True,
)  # fmt: skip
CPU = ComputeSetup(
    device=torch.device("cpu"), backend="integer", dense_dtype=torch.float32, stream_dtype=torch.float32,
    kv_dtype=torch.float16, half_tables=True,
)  # fmt: skip


def info(config):
    """A checkpoint as ``quantize --bits 4`` writes it."""
    vocabulary = {matrix.name for matrix in layout.vocabulary(config)}
    schemes = {name: INT8 if name in vocabulary else INT4 for name in layout.matrices(config)}
    return CheckpointInfo(
        config=config,
        schemes=schemes,
        stored_bytes={},
        official=False,
        version_from="",
        is_base=False,
        has_prefix=False,
    )


def test_at_6_billion_parameters_int4_a_step_fits_7_gb():
    settings = PTuneSettings(pre_seq_len=128, max_source_length=64, max_target_length=64)
    for compute in (CUDA, CPU):
        plan = estimate_memory(info(V1), compute, settings)
        assert 3.4 * GB < plan.weights < 3.6 * GB
        assert plan.parameters == 16 * 128 * 229376
        assert plan.total <= 7 * GB


def test_version_2_takes_less_for_its_prefix_and_a_projection_takes_far_more():
    settings = PTuneSettings(max_target_length=64)
    plan = estimate_memory(info(V2), CUDA, settings)
    assert plan.parameters == 16 * 128 * 14336
    assert plan.total <= 7 * GB
    projected = estimate_memory(info(V1), CUDA, PTuneSettings(prefix_projection=True, max_target_length=64))
    assert 15 * GB < projected.parameters < 16 * GB


def test_recomputing_activations_takes_less():
    kept, recomputed = (
        estimate_memory(info(V1), CUDA, PTuneSettings(gradient_checkpointing=recompute)).activations
        for recompute in (False, True)
    )
    assert recomputed < kept / 5
