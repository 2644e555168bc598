"""The plan of a training step at full size, and against a run at small size."""

import pytest
import torch

import glm_int4
from glm_int4.checkpoint.build import ComputeSetup
from glm_int4.checkpoint.formats import layout
from glm_int4.checkpoint.opening import CheckpointInfo
from glm_int4.models.config import ChatGLM2Config, ChatGLMConfig
from glm_int4.quantization.scheme import QuantizationScheme
from glm_int4.tuning.arguments import LoraTrainingSettings, PTuneSettings
from glm_int4.tuning.memory import estimate_memory
from glm_int4.tuning.methods.trained_lora import TrainedLora
from tests.conftest import FIXTURES

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


@pytest.mark.parametrize("config", [V1, V2], ids=["v1", "v2"])
def test_at_6_billion_parameters_int4_a_step_of_lora_fits_6_gb(config):
    settings = LoraTrainingSettings(max_source_length=64, max_target_length=63)
    for compute in (CUDA, CPU):
        plan = estimate_memory(info(config), compute, settings, all_learnt=True)
        width = {"1": 3 * 4096, "2": 4096 + 2 * 2 * 128}[config.version]
        assert plan.parameters == 16 * 28 * 8 * (4096 + width)
        assert plan.states == 0
        assert plan.total <= 6 * GB


def test_lora_on_all_linears_takes_more_and_recomputing_less():
    def plan(**changes):
        return estimate_memory(info(V2), CUDA, LoraTrainingSettings(max_target_length=64, **changes))

    assert plan(target_modules="all-linear").activations > plan().activations
    assert plan(target_modules="all-linear").parameters > 3 * plan().parameters
    assert plan().activations < plan(gradient_checkpointing=False).activations / 5


@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize("targets", ["query_key_value", "all-linear"])
def test_what_a_step_of_lora_keeps_is_within_its_plan(version, targets):
    """The tensors that autograd saves of a pass without recomputing, on the tiny models."""
    engine = glm_int4.load(FIXTURES / f"v{version}_tiny_int4", device="cpu", dtype=torch.float32, model_version=version)
    settings = LoraTrainingSettings(
        max_source_length=40, max_target_length=20, gradient_checkpointing=False, target_modules=targets, r=4
    )
    trained = TrainedLora(engine, settings, "")
    own = {tensor.untyped_storage().data_ptr() for tensor in (*engine.model.parameters(), *engine.model.buffers())}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.arange(61)[None] % 50 + 4
    ids[0, -22] = engine.config.gmask_token_id if version == "1" else 9
    ids[0, -21] = engine.config.bos_token_id if version == "1" else 9
    labels = torch.where(torch.arange(61) >= 41, ids, -100)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = trained.loss(ids, labels, 0)
    plan = estimate_memory(engine.info, engine.setup, settings)
    assert loss.requires_grad
    assert 0.1 * plan.activations < sum(kept.values()) <= plan.activations + plan.logits
