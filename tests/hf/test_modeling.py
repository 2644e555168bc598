"""Logits through transformers: the official ones, and the engine's."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, DynamicCache

import glm_int4
from glm_int4.errors import InputError
from glm_int4.hf import ChatGLMConfig, ChatGLMForCausalLM
from glm_int4.quantization.linear import QuantizedLinear
from tests.conftest import FIXTURES, MINI
from tests.tolerances import ORACLE_ABSOLUTE

CASES = {version: load_file(FIXTURES / f"v{version}_tiny" / "cases.safetensors") for version in "123"}
SINGLE = [("1", "gmask_prompt"), ("1", "mask_infill"), ("1", "short")] + [
    (version, case) for version in "23" for case in ("prompt", "short", "long")
]


def close(value, expected):
    torch.testing.assert_close(value, expected, atol=ORACLE_ABSOLUTE, rtol=0)


def case(version, name, part):
    return CASES[version][f"{name}.{part}"]


@pytest.mark.parametrize(("version", "name"), SINGLE)
def test_logits_are_the_official_ones(tiny_models, version, name):
    output = tiny_models[version](case(version, name, "input_ids"))
    close(output.logits, case(version, name, "logits"))


@pytest.mark.parametrize("version", ["1", "2", "3"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_left_padded_batch_gives_the_official_logits(tiny_models, version, use_cache):
    ids = case(version, "batch", "input_ids")
    starts = [(ids != tiny_models[version].config.pad_token_id)[i].int().argmax().item() for i in range(len(ids))]
    mask = torch.stack([torch.arange(ids.shape[1]) >= start for start in starts])
    logits = tiny_models[version](ids, attention_mask=mask.long(), use_cache=use_cache).logits
    close(logits[mask], case(version, "batch", "logits")[mask])
    rows = [row[start:].tolist() for row, start in zip(ids, starts, strict=True)]
    assert not use_cache or torch.equal(logits, tiny_models[version].engine.logits(rows))


@pytest.mark.parametrize(("version", "name"), [("1", "gmask_with_answer"), ("2", "prompt"), ("3", "prompt")])
def test_the_loss_is_the_official_one(tiny_models, version, name):
    output = tiny_models[version](case(version, name, "input_ids"), labels=case(version, name, "labels"))
    close(output.loss, case(version, name, "loss").reshape(()))


def test_right_padding_changes_nothing(tiny_models):
    for version, name in (("1", "gmask_with_answer"), ("2", "prompt")):
        ids = case(version, name, "input_ids")
        padded = torch.nn.functional.pad(ids, (0, 3), value=7)
        mask = torch.nn.functional.pad(torch.ones_like(ids), (0, 3))
        close(tiny_models[version](padded, attention_mask=mask).logits[:, :-3], case(version, name, "logits"))


def test_packed_weights_stay_packed_and_logits_are_the_engines(packed):
    model, engine = packed
    assert sum(isinstance(module, QuantizedLinear) for module in model.modules()) == 4 * model.config.num_layers
    assert model.is_quantized
    ids = [11, 22, 33, engine.config.gmask_token_id, engine.config.bos_token_id, 44]
    assert torch.equal(model(torch.tensor([ids]), use_cache=False).logits, engine.logits(ids))


@pytest.mark.parametrize("version", ["1", "2", "3"])
def test_steps_behind_a_cache_give_what_one_pass_gives(tiny_models, version):
    model = tiny_models[version]
    ids = case(version, "gmask_prompt" if version == "1" else "long", "input_ids")
    ids = torch.cat((ids, torch.tensor([[14, 15, 16]])), dim=1)
    whole = model(ids, use_cache=False)
    cache = DynamicCache()
    parts = []
    for stop, count in ((ids.shape[1] - 3, None), (ids.shape[1] - 1, 2), (ids.shape[1], 1)):
        inputs = model.prepare_inputs_for_generation(ids[:, :stop], count, cache)
        parts.append(model(**inputs).logits)
    close(torch.cat(parts, dim=1), whole.logits)
    assert cache.get_seq_length() == ids.shape[1]


def test_kept_logits_hidden_states_and_tuples(tiny_models):
    model, ids = tiny_models["1"], case("1", "gmask_prompt", "input_ids")
    logits, _, hidden = model(ids, logits_to_keep=1, output_hidden_states=True, return_dict=False)
    close(logits, case("1", "gmask_prompt", "logits")[:, -1:])
    assert len(hidden) == model.config.num_hidden_layers + 1


@pytest.mark.parametrize("version", ["1", "2", "3"])
@pytest.mark.parametrize("projection", [0, 1])
def test_a_prefix_gives_the_official_tokens(version, projection):
    folder = FIXTURES / f"v{version}_tiny"
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype="float32", prefix=folder / f"prefix_proj{projection}.safetensors"
    )
    name = f"prefix_proj{projection}"
    ids = case(version, "gmask_prompt" if version == "1" else "prompt", "input_ids")
    close(model(ids).logits, case(version, name, "logits"))
    tokens = model.generate(ids, max_new_tokens=20, eos_token_id=-1)[:, ids.shape[1] :]
    assert tokens.tolist() == case(version, name, "greedy").tolist()


@pytest.mark.parametrize("suffix", ["", "_int4", "_int8"])
@pytest.mark.parametrize("version", ["1", "2", "3"])
def test_official_folders_load_without_a_question_about_remote_code(tmp_path, version, suffix):
    folder = tmp_path / "official"
    shutil.copytree(FIXTURES / f"v{version}_tiny{suffix}", folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "configuration_chatglm.ChatGLMConfig",
        "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
        "AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
    }
    (folder / "config.json").write_text(json.dumps(config))
    for auto_class, trust in ((AutoModel, None), (AutoModelForCausalLM, None), (AutoModelForCausalLM, True)):
        model = auto_class.from_pretrained(folder, dtype="float32", model_version=version, trust_remote_code=trust)
        assert type(model) is ChatGLMForCausalLM
        assert model.engine.config.version == version
    ids = torch.tensor([[5, 6, model.engine.config.eos_token_id]])
    exact = glm_int4.load(folder, device="cpu", dtype=torch.float32, model_version=version)
    assert torch.equal(model(ids).logits, exact.logits(ids))


def test_the_configuration_keeps_official_keys_and_has_the_usual_names():
    v1, v2 = (AutoConfig.from_pretrained(FIXTURES / f"v{version}_tiny") for version in "12")
    assert isinstance(v1, ChatGLMConfig)
    assert (v1.num_hidden_layers, v1.max_position_embeddings, v1.intermediate_size) == (2, 2048, 256)
    assert (v2.vocab_size, v2.num_key_value_heads, v2.intermediate_size) == (v2.padded_vocab_size, 2, 176)
    assert ChatGLMConfig(**v2.to_dict()).to_dict() == v2.to_dict()


def test_a_move_to_where_it_is_changes_nothing_and_another_dtype_is_refused(packed):
    model = packed[0]
    assert model.to("cpu") is model.cpu() is model
    for change in (model.half, lambda: model.to(torch.bfloat16)):
        with pytest.raises(InputError, match="pass dtype to from_pretrained"):
            change()


def test_another_device_loads_the_weights_anew_and_keeps_what_was_trained(mini_int4, monkeypatch):
    model, engine, calls = AutoModelForCausalLM.from_pretrained(mini_int4), glm_int4.load(mini_int4, device="cpu"), []
    monkeypatch.setattr("glm_int4.hf.sources.load", lambda **options: calls.append(options) or engine)
    monkeypatch.setattr("glm_int4.hf.sources.cuda_fault", lambda: None)
    norm = model.transformer.final_layernorm.weight
    with torch.no_grad():
        norm.mul_(2)
    model.to("cuda")
    assert [(call["device"], call["dtype"]) for call in calls] == [("cuda", None)]
    assert model.glm is engine.model
    assert model.transformer.final_layernorm.weight is not norm
    assert torch.equal(engine.model.transformer.final_layernorm.weight, norm)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"load_in_4bit": True}, "options that this loader knows, got load_in_4bit"),
        ({"device_map": {"transformer": 0, "lm_head": 1}}, "whole model on one device"),
        ({"device_map": "cuda:1"}, "the first CUDA device"),
        ({"dtype": "int3"}, "expected dtype"),
    ],
)
def test_options_that_cannot_be_met_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        AutoModelForCausalLM.from_pretrained(MINI, **options)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "input_ids"),
        ({"inputs_embeds": torch.zeros(1, 2, 64)}, "input_ids"),
        ({"input_ids": torch.ones(1, 2).long(), "output_attentions": True}, "never computed"),
        ({"input_ids": torch.ones(1, 2).long(), "attention_mask": torch.ones(1, 1, 2, 2)}, "(rows, tokens)"),
    ],
)
def test_inputs_that_it_does_not_take_are_refused(tiny_models, inputs, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(").replace(")", r"\)")):
        tiny_models["1"](**inputs)


def test_version_1_reads_its_context_in_one_piece(tiny_models):
    model, ids = tiny_models["1"], case("1", "gmask_prompt", "input_ids")
    cache = model(ids[:, :4]).past_key_values
    with pytest.raises(InputError, match="one piece"):
        model(ids[:, 4:], position_ids=torch.zeros(1, 2, 7).long(), past_key_values=cache)
    with pytest.raises(InputError, match="expected position_ids"):
        model(ids[:, 4:5], past_key_values=cache)


def test_version_1_counts_on_behind_a_cache_whose_rows_are_alike(tiny_models):
    model, ids = tiny_models["1"], case("1", "gmask_with_answer", "input_ids")
    whole = model(ids, use_cache=False).logits
    start = ids[0].tolist().index(model.config.bos_token_id) + 1
    cache = model(ids[:, :start]).past_key_values
    parts = [
        model(part, past_key_values=cache).logits for part in ids[:, start:].split([2, ids.shape[1] - start - 2], 1)
    ]
    close(torch.cat(parts, dim=1), whole[:, start:])
    two = torch.tensor([[11, 22, 141, 144], [11, 141, 144, 22]])
    cache = model(two).past_key_values
    with pytest.raises(InputError, match="expected position_ids"):
        model(two[:, :1], past_key_values=cache)


def test_a_loss_over_accumulated_batches_is_the_sum_over_all_their_tokens(tiny_models):
    model, ids, labels = tiny_models["2"], case("2", "prompt", "input_ids"), case("2", "prompt", "labels")
    mean, count = model(ids, labels=labels).loss, int((labels[:, 1:] != -100).sum())
    close(model(ids, labels=labels, num_items_in_batch=2 * count).loss, mean / 2)


def test_there_is_no_model_without_weights(tiny_models):
    with pytest.raises(InputError, match="use from_pretrained"):
        AutoModelForCausalLM.from_config(tiny_models["1"].config)
