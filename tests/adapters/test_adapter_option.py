"""``--adapter`` of the commands, and the ways that it goes."""

import pytest
import torch
import typer

import glm_int4
from glm_int4.cli.main import app
from glm_int4.cli.options import Loading
from glm_int4.measuring import speed
from glm_int4.quantization.adapted import AdaptedLinear
from tests.cli.test_commands import glm, refused
from tests.conftest import FIXTURES, TINY

LORA = FIXTURES / "lora" / "v1"
IDS = [20, 31, 42, 141, 144]
COMMANDS = typer.main.get_command(app).commands


@pytest.mark.parametrize("command", ["chat", "generate", "perplexity", "serve", "bench"])
def test_commands_that_run_a_model_take_adapters(command):
    option = next(parameter for parameter in COMMANDS[command].params if "--adapter" in parameter.opts)
    assert option.multiple
    assert option.metavar == ("[NAME=]DIR[:SCALE]" if command == "serve" else "DIR[:SCALE]")


def test_several_adapters_with_scales_reach_the_model():
    given = Loading(device="cpu", adapter=[f"{LORA / 'lora'}:0.5", str(LORA / "official")]).load(str(TINY))
    expected = glm_int4.load(TINY, device="cpu", adapter=[(LORA / "lora", 0.5), LORA / "official"])
    assert torch.equal(given.logits(IDS), expected.logits(IDS))
    assert not torch.equal(given.logits(IDS), Loading(device="cpu").load(str(TINY)).logits(IDS))


@pytest.mark.parametrize("bits", [None, 4])
def test_bench_measures_with_an_adapter_on_random_weights_too(bits):
    adapters = [LORA / "all_linear"]
    engine = speed._load(TINY, bits, torch.device("cpu"), 16, adapters, None, lambda line: None)
    assert sum(isinstance(module, AdaptedLinear) for module in engine.model.modules()) == 8


def test_a_bad_adapter_is_one_line_and_exit_code_2():
    refused(glm("generate", TINY, "--prompt", "x", "--adapter", f"{FIXTURES}:0.5"), "expected adapter_config.json in")
