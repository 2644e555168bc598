"""What keeps an adapter from being left out in silence, beside the table's rows."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from glm_int4.errors import CheckpointError
from tests.conftest import FIXTURES

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


def test_ordinary_tensors_that_do_not_fit_are_for_torch_to_name(tiny_model):
    result = tiny_model.load_state_dict({"transformer.rotary_emb.inv_freq": torch.ones(1)}, strict=False)
    assert result.unexpected_keys == ["transformer.rotary_emb.inv_freq"]
