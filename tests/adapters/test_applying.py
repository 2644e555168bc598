"""What adapters make of a model, beside the same made by hand of its weights."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import glm_int4
from glm_int4.checkpoint.formats import layout
from glm_int4.generation.continuous import Batcher
from glm_int4.generation.memory_plan import plan_memory
from glm_int4.quantization.adapted import AdaptedLinear, base_of, bias_of, weight_rows
from glm_int4.quantization.linear import DenseLinear
from tests.adapters.test_lora_logits import base
from tests.conftest import FIXTURES
from tests.tolerances import ADAPTER_ABSOLUTE

LORA = FIXTURES / "lora"
IDS = {"1": [20, 31, 42, 17, 99, 141, 144, 33, 12], "2": [20, 31, 42, 17, 99, 33, 12]}
GREEDY = glm_int4.SamplingParams(temperature=0)


def load(version, adapter=None, folder="tiny", **options):
    options = {"device": "cpu", "dtype": torch.float32, "model_version": version} | options
    model = base(version) if folder == "tiny" else FIXTURES / f"v{version}_{folder}"
    return glm_int4.load(model, adapter=adapter, **options)


def adapter(folder, tensors, **settings):
    """A folder as peft writes it."""
    folder.mkdir()
    defaults = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["query_key_value"]}
    (folder / "adapter_config.json").write_text(json.dumps(defaults | settings))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def merge_by_hand(glm):
    """Put ordinary layers with the merged weights in place of a loaded model's adapted ones, whatever those are."""
    for matrix in layout.linears(glm.config):
        linear = glm.model.get_submodule(matrix.name)
        base = base_of(linear)
        weight, bias = weight_rows(base, slice(0, matrix.out_features)).clone(), bias_of(base)
        if isinstance(linear, AdaptedLinear):
            weight = weight * (1 if linear.ratio is None else linear.ratio[:, None]) + (linear.down.T @ linear.up).T
            if bias is not None:
                bias = bias * (1 if linear.ratio is None else linear.ratio)
            bias = bias if linear.shift is None else linear.shift + (0 if bias is None else bias)
        dense = DenseLinear(matrix.in_features, matrix.out_features, bias=bias is not None, device="meta")
        dense.weight = torch.nn.Parameter(weight, requires_grad=False)
        dense.bias = None if bias is None else torch.nn.Parameter(bias.detach(), requires_grad=False)
        glm.model.set_submodule(matrix.name, dense)
    glm.model.forget_fused()
    return glm


def test_queries_keys_and_values_apart_stand_under_one_another(tmp_path):
    """The names that transformers gives a converted model's parts, which version 1 was never converted to."""
    glm = load("2")
    config, expected, tensors = glm.config, glm.model, {}
    places = {
        "self_attn.q_proj": ("self_attention.query_key_value", 0, 64),
        "self_attn.v_proj": ("self_attention.query_key_value", 96, 128),
        "self_attn.o_proj": ("self_attention.dense", 0, 64),
        "mlp.gate_up_proj": ("mlp.dense_h_to_4h", 0, 2 * config.ffn_size),
        "mlp.down_proj": ("mlp.dense_4h_to_h", 0, 64),
    }
    for layer in range(config.num_layers):
        for seed, (name, (own, start, stop)) in enumerate(places.items()):
            module = expected.get_submodule(f"transformer.encoder.layers.{layer}.{own}")
            down, up = random(2, module.in_features, seed=seed), random(stop - start, 2, seed=layer) / 8
            tensors[f"base_model.model.model.layers.{layer}.{name}.lora_A.weight"] = down
            tensors[f"base_model.model.model.layers.{layer}.{name}.lora_B.weight"] = up
            module.weight[start:stop] += 3 * up @ down
    folder = adapter(tmp_path / "split", tensors, target_modules=[name.partition(".")[2] for name in places])
    found = load("2", folder).logits(IDS["2"])
    assert (found - glm.logits(IDS["2"])).abs().max() < ADAPTER_ABSOLUTE


def test_the_head_of_version_2_takes_an_adapter(tmp_path):
    down, up = random(2, 64), random(160, 2) / 8
    stem = "base_model.model.transformer.output_layer"
    tensors = {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    found = load("2", adapter(tmp_path / "head", tensors, target_modules=["output_layer"])).logits(IDS["2"])
    glm = load("2")
    glm.model.transformer.output_layer.weight += 3 * up @ down
    assert (found - glm.logits(IDS["2"])).abs().max() < ADAPTER_ABSOLUTE


@pytest.mark.parametrize("added", [".default", ".my-adapter"])
def test_an_adapters_own_name_in_its_tensors_names_changes_nothing(tmp_path, added):
    folder = shutil.copytree(LORA / "v2" / "lora", tmp_path / "named")
    stored = load_file(folder / "adapter_model.safetensors")
    save_file(
        {n.replace(".weight", f"{added}.weight"): x for n, x in stored.items()}, folder / "adapter_model.safetensors"
    )
    assert torch.equal(load("2", folder).logits(IDS["2"]), load("2", LORA / "v2" / "lora").logits(IDS["2"]))


def test_all_linear_takes_the_four_of_every_layer(tmp_path):
    folder = shutil.copytree(LORA / "v3" / "all_linear", tmp_path / "all")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"target_modules": "all-linear"}))
    assert torch.equal(load("3", folder).logits(IDS["2"]), load("3", LORA / "v3" / "all_linear").logits(IDS["2"]))


def test_modules_that_are_left_out_are_not_asked_for(tmp_path):
    stored = load_file(LORA / "v2" / "lora" / "adapter_model.safetensors")
    some = {n: x for n, x in stored.items() if ".1.self_attention.dense" not in n}
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["query_key_value", "dense"]}
    glm = load("2", adapter(tmp_path / "some", some, exclude_modules=r".*\.1\.self_attention\.dense", **options))
    assert sum(isinstance(module, AdaptedLinear) for module in glm.model.modules()) == 3


@pytest.mark.parametrize("name", ["lm_head", "transformer.word_embeddings"])
def test_version_1_parts_with_its_tied_matrix_where_an_adapter_saved_one_of_the_two(tmp_path, name):
    """As in peft: the module that was trained is replaced, the other one keeps the base's values."""
    weight = random(160, 64)
    tensors = {f"base_model.model.{name}.weight": weight} | {
        n: x for n, x in load_file(LORA / "v1" / "lora" / "adapter_model.safetensors").items()
    }
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["query_key_value", "dense"]}
    folder = adapter(tmp_path / "saved", tensors, modules_to_save=[name.rpartition(".")[2]], **options)
    found, glm = load("1", folder).logits(IDS["1"])[0], load("1", LORA / "v1" / "lora")
    old = glm.model.embedding.weight.clone()
    if name == "lm_head":
        expected = glm.hidden_states(IDS["1"]) @ weight.T
    else:
        glm.model.embedding.weight.copy_(weight)
        expected = glm.hidden_states(IDS["1"]) @ old.T
    assert (found - expected).abs().max() < ADAPTER_ABSOLUTE * expected.abs().max() / 20


def test_norms_and_all_biases_are_replaced(tmp_path):
    glm, tensors = load("1"), {}
    vectors = layout.vectors(glm.config)
    for seed, (name, shape) in enumerate(vectors.items()):
        saved = name.endswith("input_layernorm.weight")
        if name.endswith(".bias") or saved:
            tensors[f"base_model.model.{name}"] = 1 + random(*shape, seed=seed) / 4
    folder = tmp_path / "biases"
    for layer in range(2):
        stem = f"base_model.model.transformer.layers.{layer}.attention.query_key_value"
        tensors[f"{stem}.base_layer.bias"] = tensors.pop(f"{stem}.bias")
        tensors |= {f"{stem}.lora_A.weight": random(2, 64), f"{stem}.lora_B.weight": random(192, 2) / 8}
        glm.model.get_submodule(stem.removeprefix("base_model.model.")).weight += 3 * random(192, 2) / 8 @ random(2, 64)
    adapter(folder, tensors, bias="all", modules_to_save=["input_layernorm"])
    for name, tensor in tensors.items():
        if "lora_" not in name:
            glm.model.get_parameter(name.removeprefix("base_model.model.").replace(".base_layer", "")).copy_(tensor)
    found, expected = load("1", folder).logits(IDS["1"]), glm.logits(IDS["1"])
    assert (found - expected).abs().max() < ADAPTER_ABSOLUTE


@pytest.mark.parametrize("name", ["lora", "dora", "bias", "all_linear"])
@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_quantized_weights_with_an_adapter_are_the_dequantized_ones_merged(name, bits):
    """On the exact path; DoRA's lengths are those of the rows as they are stored."""
    glm = load("1", LORA / "v1" / name, f"tiny_{bits}")
    found = glm.logits(IDS["1"])
    assert not torch.equal(found, load("1", None, f"tiny_{bits}").logits(IDS["1"]))
    assert (found - merge_by_hand(glm).logits(IDS["1"])).abs().max() < ADAPTER_ABSOLUTE
    stored = load_file(LORA / "v1" / name / "adapter_model.safetensors")
    lengths = {n: x for n, x in stored.items() if n.endswith("lora_magnitude_vector")}
    assert bool(lengths) == (name == "dora")
    for path, length in lengths.items():
        matrix = path.removeprefix("base_model.model.").removesuffix(".lora_magnitude_vector")
        assert torch.allclose(glm.model.get_submodule(matrix).weight.norm(dim=1), length, rtol=1e-5)


def test_the_batcher_runs_with_an_adapter():
    """Answers that run together get what each gets alone."""
    glm = load("2", LORA / "v2" / "lora")
    prompts = [IDS["2"], IDS["2"][:3], [7, 8, 9]]
    alone = [glm.generate(prompt, 8, GREEDY, stop_ids=[]) for prompt in prompts]
    assert alone != [load("2").generate(prompt, 8, GREEDY, stop_ids=[]) for prompt in prompts]
    batcher = Batcher(glm, 3)
    sequences = [batcher.sequence(prompt, 8, GREEDY, frozenset()) for prompt in prompts]
    for sequence in sequences:
        batcher.add(sequence)
    while batcher.num_running or batcher.num_waiting:
        batcher.step()
    assert [sequence.ids for sequence in sequences] == alone


def test_a_conversation_that_goes_on_keeps_the_adapters_keys_and_values():
    glm, ids = load("2", LORA / "v2" / "lora"), IDS["2"]
    first = glm.generate(ids, 6, GREEDY, stop_ids=[])
    more = [*ids, *first, 17, 18]
    again = load("2", LORA / "v2" / "lora").generate(more, 6, GREEDY, stop_ids=[])
    assert glm.generate(more, 6, GREEDY, stop_ids=[]) == again
    assert again != load("2").generate(more, 6, GREEDY, stop_ids=[])


def test_the_memory_plan_counts_adapters():
    glm = load("1")
    plans = [plan_memory(glm.info, glm.setup, 64, adapter_bytes=extra) for extra in (0, 1000)]
    assert plans[1].weight_bytes - plans[0].weight_bytes == 1000
