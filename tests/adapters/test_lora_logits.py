"""peft's adapters, unmerged: the logits and greedy tokens of the base with each of them merged by hand."""

import json

import pytest
import torch
from safetensors.torch import load_file

import glm_int4
from glm_int4.quantization.adapted import AdaptedLinear
from tests.conftest import FIXTURES
from tests.tolerances import ADAPTER_ABSOLUTE

LORA = FIXTURES / "lora"
ADAPTERS = [
    (version, folder.name)
    for version in "1234"
    for folder in sorted((LORA / f"v{version}").iterdir())
    if folder.is_dir()
]
GREEDY = glm_int4.SamplingParams(temperature=0)


def base(version):
    """Folder of the model that a version's adapters were made for."""
    return FIXTURES / ("glm4_tiny" if version == "4" else f"v{version}_tiny")


def expected(version, name):
    """Cases: prompt's name to ids, logits and greedy tokens."""
    stored = load_file(LORA / f"v{version}" / "cases.safetensors")
    name = "official" if name == "old_bin" else name  # the same tensors
    prompts = [key.removesuffix(".input_ids") for key in stored if key.endswith(".input_ids")]
    return {
        prompt: (stored[f"{prompt}.input_ids"], stored[f"{name}.{prompt}.logits"], stored[f"{name}.{prompt}.greedy"])
        for prompt in prompts
    }


def load(version, adapter, **options):
    options = {"device": "cpu", "dtype": torch.float32, "model_version": version} | options
    return glm_int4.load(base(version), adapter=adapter, **options)


@pytest.mark.parametrize(("version", "name"), ADAPTERS, ids=[f"v{v}-{n}" for v, n in ADAPTERS])
def test_an_adapter_beside_the_weights_gives_the_logits_of_the_merged_model(version, name):
    glm = load(version, LORA / f"v{version}" / name)
    cases = expected(version, name)
    assert len(cases) == (3 if version == "1" else 2)
    for ids, logits, greedy in cases.values():
        found = glm.logits(ids[0].tolist())
        assert (found - logits).abs().max() < ADAPTER_ABSOLUTE
        assert glm.generate(ids[0].tolist(), 20, GREEDY, stop_ids=[]) == greedy[0].tolist()


@pytest.mark.parametrize("version", ["1", "2", "3"])
def test_the_official_adapter_changes_query_key_value_alone(version):
    glm = load(version, LORA / f"v{version}" / "official")
    adapted = {name: module for name, module in glm.model.named_modules() if isinstance(module, AdaptedLinear)}
    assert len(adapted) == glm.config.num_layers
    assert all(name.endswith("query_key_value") and len(module.down) == 8 for name, module in adapted.items())


@pytest.mark.parametrize("name", ["lora", "dora", "bias"])
def test_a_batch_gives_every_row_what_it_gets_alone(name):
    glm = load("2", LORA / "v2" / name)
    rows = [ids[0].tolist() for ids, *_ in expected("2", name).values()]
    together = glm.generate(rows, 20, GREEDY, stop_ids=[])
    assert together == [glm.generate(row, 20, GREEDY, stop_ids=[]) for row in rows]
    assert together == [greedy[0].tolist() for *_, greedy in expected("2", name).values()]


@pytest.mark.parametrize("scale", [0.0, 0.5, -1.0])
def test_a_scale_multiplies_what_an_adapter_adds(scale):
    """The adapter's tensors with the factor in them, beside the same adapter with a scale."""
    ids = next(iter(expected("1", "lora").values()))[0][0].tolist()
    found = load("1", (LORA / "v1" / "lora", scale)).logits(ids)
    if scale == 0:
        assert torch.equal(found, load("1", None).logits(ids))
    plain = load("1", LORA / "v1" / "lora")
    for module in plain.model.modules():
        if isinstance(module, AdaptedLinear):
            module.up.mul_(scale)
    assert (found - plain.logits(ids)).abs().max() < ADAPTER_ABSOLUTE


def test_adapters_in_a_list_add_up():
    """Every one of them is seen from the base, whatever their order."""
    names = ["lora", "pattern", "dora", "bias"]
    ids = next(iter(expected("2", "lora").values()))[0][0].tolist()
    found = load("2", [LORA / "v2" / name for name in names]).logits(ids)
    glm = load("2", None)
    alone = [load("2", LORA / "v2" / name) for name in names]
    for name, module in glm.model.named_modules():
        others = [other.model.get_submodule(name) for other in alone]
        if name.endswith(("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")):
            base = module.weight.clone()
            for other in others:
                if isinstance(other, AdaptedLinear):
                    ratio = 1 if other.ratio is None else other.ratio[:, None]
                    module.weight += base * (ratio - 1) + (other.down.T @ other.up).T
            if name.endswith("query_key_value"):  # of them all, one has a bias of its own
                module.bias += others[names.index("bias")].shift
    assert (found - glm.logits(ids)).abs().max() < ADAPTER_ABSOLUTE


def test_the_adapter_names_its_settings_as_peft_wrote_them():
    """The list above is what it should be: a folder that is lost would be a test that is lost."""
    assert len(ADAPTERS) == 10 + 11 + 12 + 3
    kinds = {json.loads((LORA / f"v{v}" / n / "adapter_config.json").read_text())["peft_type"] for v, n in ADAPTERS}
    assert kinds == {"LORA", "PREFIX_TUNING"}
