"""What keeps an adapter from being left out in silence, beside the table's rows."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import glm_int4
from glm_int4.errors import CheckpointError
from tests.conftest import FIXTURES
from tests.tolerances import ADAPTER_ABSOLUTE

peft = pytest.importorskip("peft", reason="needs peft: pip install peft")

ADAPTER = FIXTURES / "lora" / "v1" / "official"
IDS = load_file(FIXTURES / "lora" / "v1" / "cases.safetensors")["input_ids"]


@pytest.fixture
def tiny_model():
    return AutoModelForCausalLM.from_pretrained(FIXTURES / "v1_tiny", dtype=torch.float32)


def changed(folder, change):
    """A copy of the adapter with its tensors changed."""
    shutil.copytree(ADAPTER, folder)
    tensors = change(load_file(ADAPTER / "adapter_model.safetensors"))
    save_file({name: x.contiguous() for name, x in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


def only_half(tensors):
    return {name: x for name, x in tensors.items() if "lora_A" in name}


def of_nothing(tensors):
    return {"other": torch.ones(1)}


def by_other_names(tensors):
    return {name.replace("model.tr", "model.glm.tr"): x for name, x in tensors.items()}


def with_one_too_many(tensors):
    return tensors | {"base_model.model.lm_head.extra": torch.ones(1)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (only_half, "expected all tensors of the adapter"),
        (of_nothing, "got none; is it another model's"),
        (by_other_names, "a place in this model"),
        (with_one_too_many, "got 1 without one .lm_head.extra"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tiny_model, tmp_path, change, message):
    folder = changed(tmp_path / "adapter", change)
    with pytest.raises(CheckpointError, match=message):
        peft.PeftModel.from_pretrained(tiny_model, folder)


def test_a_refused_adapter_is_taken_out_again(tiny_model, tmp_path):
    before = tiny_model(IDS).logits
    folder = changed(tmp_path / "adapter", lambda tensors: {k: x for k, x in tensors.items() if ".layers.0." in k})
    with pytest.raises(CheckpointError, match="expected all tensors"):
        tiny_model.load_adapter(str(folder))
    assert torch.equal(tiny_model(IDS).logits, before)
    tiny_model.load_adapter(str(ADAPTER))
    assert not torch.equal(tiny_model(IDS).logits, before)


def test_several_adapters_are_each_complete(tiny_model):
    model = peft.PeftModel.from_pretrained(tiny_model, ADAPTER, adapter_name="a")
    model.load_adapter(FIXTURES / "lora" / "v1" / "all_linear", adapter_name="b")
    logits = {}
    for name in "ab":
        model.set_adapter(name)
        logits[name] = model(IDS).logits
    expected = load_file(FIXTURES / "lora" / "v1" / "cases.safetensors")
    assert (logits["a"] - expected["official.logits"]).abs().max() < 2e-4
    assert (logits["b"] - expected["all_linear.logits"]).abs().max() < 2e-4


@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")
def test_an_adapter_that_was_saved_loads_again(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # peft would ask the hub for the base model
    model = peft.PeftModel.from_pretrained(tiny_model, ADAPTER)
    model.save_pretrained(tmp_path / "peft")
    names = set(load_file(tmp_path / "peft" / "adapter_model.safetensors"))
    assert names == set(load_file(ADAPTER / "adapter_model.safetensors"))
    again = AutoModelForCausalLM.from_pretrained(FIXTURES / "v1_tiny", dtype=torch.float32)
    again.load_adapter(str(tmp_path / "peft"))
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    again.save_pretrained(tmp_path / "own")
    assert set(load_file(tmp_path / "own" / "adapter_model.safetensors")) == names


def test_a_module_that_is_saved_whole_takes_part_on_the_fast_path(mini_int4):
    """Its wrapper hands on the attributes of the module that it stands for."""
    model = AutoModelForCausalLM.from_pretrained(mini_int4)
    ids = torch.tensor([[11, 22, 33, model.config.gmask_token_id, model.config.bos_token_id]])
    before = model(ids).logits
    settings = peft.LoraConfig(r=2, target_modules=["query_key_value"], modules_to_save=["dense_4h_to_h"])
    wrapped = peft.get_peft_model(model, settings)
    for name, module in wrapped.named_modules():
        if name.endswith("mlp.dense_4h_to_h.modules_to_save.default"):
            module.matrix.scales.zero_()
    assert not torch.equal(wrapped(ids).logits, before)


@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")
@pytest.mark.parametrize("version", ["1", "2", "3"])
def test_an_adapter_that_a_trainer_trained_on_int4_is_the_same_wherever_it_is_loaded(version, tmp_path, monkeypatch):
    pytest.importorskip("accelerate", reason="needs accelerate: pip install accelerate")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # peft would ask the hub for the base model
    folder = FIXTURES / f"v{version}_tiny_int4"
    options = {"dtype": torch.float32, "model_version": version, "device_map": "cpu"}
    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    cases = load_file(FIXTURES / f"v{version}_tiny" / "cases.safetensors")
    case = "gmask_with_answer" if version == "1" else "prompt"
    ids, labels = cases[f"{case}.input_ids"], cases[f"{case}.labels"]
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["query_key_value", "dense_4h_to_h"]))
    settings = {"max_steps": 20, "per_device_train_batch_size": 1, "learning_rate": 1e-2, "save_strategy": "no"}
    settings |= {"logging_steps": 1, "report_to": [], "use_cpu": True, "disable_tqdm": True}
    trainer = Trainer(
        wrapped,
        TrainingArguments(output_dir=str(tmp_path / "runs"), **settings),
        train_dataset=[{"input_ids": ids[0], "labels": labels[0]}],
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    state = wrapped.state_dict()
    after = {name.replace(".base_layer.", ".").removeprefix("base_model.model."): x for name, x in state.items()}
    assert all(torch.equal(after[name], x) for name, x in before.items())
    wrapped.eval().save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = wrapped(ids, use_cache=False).logits
        again = peft.PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(folder, **options), tmp_path / "adapter"
        )
        assert torch.equal(again(ids, use_cache=False).logits, expected)
        joined = AutoModelForCausalLM.from_pretrained(folder, **options)
        joined.load_adapter(str(tmp_path / "adapter"))
        assert torch.equal(joined(ids, use_cache=False).logits, expected)
    engine = glm_int4.load(
        folder, device="cpu", dtype=torch.float32, model_version=version, adapter=tmp_path / "adapter"
    )
    assert (engine.logits(ids[0].tolist()) - expected).abs().max() < ADAPTER_ABSOLUTE


def test_ordinary_tensors_that_do_not_fit_are_for_torch_to_name(tiny_model):
    result = tiny_model.load_state_dict({"transformer.rotary_emb.inv_freq": torch.ones(1)}, strict=False)
    assert result.unexpected_keys == ["transformer.rotary_emb.inv_freq"]
