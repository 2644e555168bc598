"""LoRA on its way: its loss, gradients and folders beside those of peft itself."""

import json

import pytest
import torch
from safetensors.torch import load_file

import glm_int4
from glm_int4.errors import CheckpointError, InputError
from glm_int4.quantization.adapted import AdaptedLinear
from glm_int4.tuning.arguments import LoraTrainingSettings
from glm_int4.tuning.methods.lora_layer import LoraLayer
from glm_int4.tuning.methods.trained_lora import TrainedLora
from tests.conftest import FIXTURES
from tests.tolerances import ADAPTER_ABSOLUTE, GRADIENT_RELATIVE_RMS, ORACLE_ABSOLUTE, relative_rms

LINEARS = {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}


@pytest.fixture(params=["1", "2", "3"], ids=lambda v: f"v{v}")
def version(request):
    return request.param


@pytest.fixture(params=["tiny", "tiny_int4"])
def folder(request, version):
    return FIXTURES / f"v{version}_{request.param}"


def load(folder, version, **options):
    return glm_int4.load(folder, device="cpu", dtype=torch.float32, model_version=version, **options)


def sample(version):
    cases = load_file(FIXTURES / f"v{version}_tiny" / "cases.safetensors")
    case = "gmask_with_answer" if version == "1" else "prompt"
    return cases[f"{case}.input_ids"], cases[f"{case}.labels"]


def begun(engine, **changes):
    """An adapter whose second factor is not zero any more."""
    settings = LoraTrainingSettings(**{"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "seed": 3} | changes)
    trained = TrainedLora(engine, settings, "base")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained.parameters()[1::2]:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 8)
    return trained


def layers(engine):
    return {name: module for name, module in engine.model.named_modules() if isinstance(module, LoraLayer)}


def test_loss_and_gradients_are_those_of_peft(folder, version, tmp_path):
    peft = pytest.importorskip("peft", reason="needs peft: pip install peft")
    from glm_int4.hf import ChatGLMForCausalLM

    engine = load(folder, version)
    trained = begun(engine, target_modules="all-linear")
    trained.write(tmp_path)
    loss = trained.loss(*sample(version), 0)
    loss.backward()
    base = ChatGLMForCausalLM.from_pretrained(folder, dtype=torch.float32, model_version=version, device_map="cpu")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path, is_trainable=True)
    ids, labels = sample(version)
    expected = theirs(input_ids=ids, labels=labels).loss
    expected.backward()
    assert (loss - expected).abs() < ORACLE_ABSOLUTE
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    assert len(gradients) == 2 * len(layers(engine)) == 2 * 4 * engine.config.num_layers
    for name, layer in layers(engine).items():
        for part, parameter in (("lora_A", layer.down), ("lora_B", layer.up)):
            found = gradients[f"base_model.model.{name}.{part}.default.weight"]
            assert relative_rms(parameter.grad, found) < GRADIENT_RELATIVE_RMS, name


def test_the_folder_gives_peft_and_load_the_logits_of_training(folder, version, tmp_path):
    engine = load(folder, version)
    trained = begun(engine, target_modules=["query_key_value", "dense"])
    trained.write(tmp_path)
    ids = sample(version)[0]
    found = engine.logits(ids[0].tolist())
    plain = load(folder, version).logits(ids[0].tolist())
    assert (found - plain).abs().max() > 0.1
    assert (load(folder, version, adapter=tmp_path).logits(ids[0].tolist()) - found).abs().max() < ADAPTER_ABSOLUTE
    peft = pytest.importorskip("peft", reason="needs peft: pip install peft")
    from glm_int4.hf import ChatGLMForCausalLM

    base = ChatGLMForCausalLM.from_pretrained(folder, dtype=torch.float32, model_version=version, device_map="cpu")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path)
    with torch.no_grad():
        assert (theirs(ids, use_cache=False).logits - found).abs().max() < ADAPTER_ABSOLUTE


def test_it_answers_as_an_adapter_that_was_loaded_and_is_trained_on_afterwards(mini_int4):
    engine = glm_int4.load(mini_int4, device="cpu", dtype=torch.float32)
    trained = begun(engine)
    ids = [11, 22, 33]
    found = engine.logits(ids)
    with trained.answering() as answering:
        assert {type(answering.model.get_submodule(name)) for name in trained._layers} == {AdaptedLinear}
        assert (answering.logits(ids) - found).abs().max() < ADAPTER_ABSOLUTE
    assert set(layers(engine)) == set(trained._layers)
    assert torch.equal(engine.logits(ids), found)


def test_an_adapter_begins_as_the_base_itself(version):
    """Its second factor is zero, as in peft; the first is not."""
    engine = load(FIXTURES / f"v{version}_tiny", version)
    ids, labels = sample(version)
    before = engine.logits(ids[0].tolist())
    trained = TrainedLora(engine, LoraTrainingSettings(), "base")
    assert torch.equal(engine.logits(ids[0].tolist()), before)
    assert {name.rpartition(".")[2] for name in layers(engine)} == {"query_key_value"}
    assert all(layer.down.shape[0] == 8 and layer.down.std() > 0 for layer in layers(engine).values())
    trained.loss(ids, labels, 0).backward()
    assert all(layer.up.grad.abs().max() > 0 for layer in layers(engine).values())


def test_nothing_but_the_adapter_has_a_gradient_or_changes(folder, version):
    engine = load(folder, version)
    before = {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}
    trained = begun(engine, target_modules="all-linear", lora_dropout=0.1)
    trained.loss(*sample(version), 0).backward()
    torch.optim.AdamW(trained.parameters(), lr=0.1).step()
    own = {id(parameter) for parameter in trained.parameters()}
    assert all(p.grad is None and not p.requires_grad for p in engine.model.parameters() if id(p) not in own)
    after = {name.replace(".base.", "."): tensor for name, tensor in engine.model.state_dict().items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("targets", ["query_key_value", "all-linear"])
def test_computing_twice_gives_the_same_gradients_and_the_same_is_dropped(version, targets):
    gradients = []
    for recompute in (True, False):
        engine = load(FIXTURES / f"v{version}_tiny_int4", version)
        trained = begun(engine, target_modules=targets, lora_dropout=0.5, gradient_checkpointing=recompute)
        trained.loss(*sample(version), 7).backward()
        gradients.append([parameter.grad for parameter in trained.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_what_is_dropped_depends_on_seed_and_batch_alone():
    engine = load(FIXTURES / "v1_tiny", "1")
    trained = begun(engine, lora_dropout=0.5)
    data = sample("1")
    losses = [trained.loss(*data, batch).item() for batch in (0, 1, 0, None)]
    assert losses[0] == losses[2]
    assert len(set(losses)) == 3
    inputs = torch.ones(1000, 16)
    trained._dropout.batch = 4
    dropped = trained._dropout(inputs, 0)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert dropped.mean() == pytest.approx(1, abs=0.05)
    assert not torch.equal(trained._dropout(inputs, 1), dropped)


def test_the_settings_are_what_peft_writes(tmp_path):
    trained = begun(load(FIXTURES / "v2_tiny", "2"), r=2, lora_alpha=6, target_modules="all-linear")
    trained.write(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    official = json.loads((FIXTURES / "lora" / "v2" / "official" / "adapter_config.json").read_text())
    assert settings.keys() <= official.keys()
    assert {key: settings[key] for key in ("peft_type", "r", "lora_alpha", "base_model_name_or_path")} == {
        "peft_type": "LORA", "r": 2, "lora_alpha": 6, "base_model_name_or_path": "base"
    }  # fmt: skip
    assert set(settings["target_modules"]) == LINEARS
    names = set(load_file(tmp_path / "adapter_model.safetensors"))
    assert names == set(load_file(FIXTURES / "lora" / "v2" / "all_linear" / "adapter_model.safetensors"))


def test_the_head_of_versions_2_and_3_can_be_adapted(tmp_path):
    engine = load(FIXTURES / "v3_tiny_int4", "3")
    trained = begun(engine, target_modules=["output_layer"])
    assert list(trained._layers) == ["transformer.output_layer"]
    trained.write(tmp_path)
    ids = sample("3")[0][0].tolist()
    found = load(FIXTURES / "v3_tiny_int4", "3", adapter=tmp_path).logits(ids)
    assert (found - engine.logits(ids)).abs().max() < ADAPTER_ABSOLUTE


def test_targets_that_the_model_does_not_have_are_named(version):
    engine = load(FIXTURES / f"v{version}_tiny", version)
    for targets, message in (
        (["query_key_value", "q_proj"], "among query_key_value, dense, dense_h_to_4h, dense_4h_to_h.* got q_proj"),
        ("all-linear,dense", "expected all-linear alone"),
    ):
        with pytest.raises(InputError, match=message):
            TrainedLora(engine, LoraTrainingSettings(target_modules=targets), "base")
    assert not layers(engine)


def test_files_of_another_adapter_are_no_beginning(tmp_path):
    engine = load(FIXTURES / "v1_tiny", "1")
    trained = begun(engine)
    with pytest.raises(CheckpointError, match="expected an adapter of the same layers"):
        trained.restore(FIXTURES / "lora" / "v1" / "lora", {})
    with pytest.raises(CheckpointError, match="missing"):
        trained.restore(FIXTURES / "lora" / "v2" / "lora", {})
