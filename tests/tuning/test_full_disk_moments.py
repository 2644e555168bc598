"""A disk that is full from any call of a training run on: one line, whole checkpoints, and resuming."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import glm_int4
from glm_int4.adapters.lora_settings import read_settings
from glm_int4.adapters.lora_tensors import read_lora
from glm_int4.checkpoint.files.folder import read_config
from glm_int4.checkpoint.prefix_file import read_prefix_encoder
from glm_int4.errors import OutputError
from glm_int4.models.config_file import parse_config
from tests.disk import full_disk

pytestmark = pytest.mark.concurrency

EVERY = pytest.param(1, marks=pytest.mark.slow(150))
LOG, PREDICTIONS, RESULTS = "trainer_log.jsonl", "generated_predictions.txt", "eval_results.json"


METHODS = {"ptuning": {"pre_seq_len": 2}, "lora": {"r": 2}}


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


@pytest.fixture
def finetune(mini_int4, tmp_path, method):
    """Train for two steps, each with a checkpoint, and answer a question."""
    data = tmp_path / "train.jsonl"
    data.write_text(json.dumps({"content": "你好", "summary": "再见"}))

    def run(output, **options):
        few = {"gradient_accumulation_steps": 1, "max_steps": 2, "save_steps": 1, "logging_steps": 1}
        files = {"model": mini_int4, "train_file": data, "eval_file": data, "eval_greedy": True, "device": "cpu"}
        return glm_int4.finetune(output=output, method=method, **files, **few, **METHODS[method], **options)

    return run


def learnt(output):
    """What a run wrote that is the same every time."""
    tensors = {}
    for step in (1, 2):
        folder = output / f"checkpoint-{step}"
        (file,) = folder.glob("*.safetensors")
        tensors |= {(step, name): tensor for name, tensor in load_file(file).items()}
        for file in folder.glob("*.bin"):
            official = torch.load(file, weights_only=True)
            tensors |= {(step, "official", name): tensor for name, tensor in official.items()}
    steps = [json.loads(line)["step"] for line in (output / LOG).read_text().splitlines()]
    return tensors, steps, (output / PREDICTIONS).read_text(), (output / RESULTS).read_text()


def assert_same(found, expected):
    assert found[1:] == expected[1:]
    assert found[0].keys() == expected[0].keys()
    assert all(torch.equal(tensor, expected[0][name]) for name, tensor in found[0].items())


@pytest.mark.parametrize("step", [9, EVERY])
def test_a_disk_that_is_full_from_any_call_of_a_training_run_on(
    finetune, method, mini_int4, tmp_path, monkeypatch, step
):
    place, config = tmp_path / "disk", parse_config(read_config(mini_int4))
    place.mkdir()
    with full_disk(monkeypatch, place) as disk:
        finetune(place / "out")
    expected, whole = learnt(place / "out"), {}
    for number in (1, 2):
        folder = place / "out" / f"checkpoint-{number}"
        whole[folder.name] = {path.name for path in folder.iterdir()}
    assert disk.count > 40
    for moment in range(1, disk.count + 1, step):
        shutil.rmtree(place / "out", ignore_errors=True)
        with full_disk(monkeypatch, place, moment) as full:
            try:
                finetune(place / "out")
            except OutputError as error:
                message = str(error)
                assert message.isprintable(), full.refused
                assert "No space left on device" in message, full.refused
                assert str(place / "out") in message, full.refused
        for folder in place.glob("out/checkpoint-*"):
            assert {path.name for path in folder.iterdir()} == whole.get(folder.name), full.refused
            if method == "lora":
                assert read_lora(folder, read_settings(folder), 1.0, config).deltas
            else:
                read_prefix_encoder(folder, config)
        finetune(place / "out", resume=True)
        assert_same(learnt(place / "out"), expected)
        assert not list(place.glob("out/*.partial")), full.refused
        assert not list(place.glob("out/*.tmp")), full.refused
        assert (place / "out" / "loss.png").is_file(), full.refused
