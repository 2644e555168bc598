"""Launch parameters that were measured here are kept, used while they hold, and never in the way."""

import json
import logging
from dataclasses import replace

import pytest
import torch

from glm_int4.quantization.gpu import launch_table
from triton_kernels import launch

CPU = torch.device("cpu")
IDENTITY = {
    "format": 2,
    "glm_int4": "0.1",
    "triton": "3.7.1",
    "gpu": "NVIDIA Some GPU",
    "architecture": 86,
    "multiprocessors": 28,
}


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(launch_table, "identity", lambda device: IDENTITY)
    yield
    launch.adopt({})


def test_what_was_measured_takes_the_place_of_the_table(tmp_path):
    measured = (replace(launch.launches(4, 86)[0], block_n=64, source="measured"),)
    path = launch_table.save(CPU, {4: measured})
    assert path == tmp_path / "glm-int4" / "launch-nvidia-some-gpu.json"
    launch_table.adopt(CPU)
    assert launch.launches(4, 86) == measured
    assert launch.launches(8, 86) == launch.TABLE[8, 80]
    assert launch.launches(4, 89) == launch.TABLE[4, 80]
    assert launch.choose(4, 86, 9) is None


def test_nothing_kept_is_nothing_said(caplog):
    with caplog.at_level(logging.INFO):
        launch_table.adopt(CPU)
    assert not caplog.records


def test_measurements_of_other_versions_are_not_used(monkeypatch, caplog):
    launch_table.save(CPU, {4: launch.launches(4, 86)[:1]})
    monkeypatch.setattr(launch_table, "identity", lambda device: IDENTITY | {"triton": "3.8.0"})
    with caplog.at_level(logging.INFO):
        launch_table.adopt(CPU)
    assert "measured with other versions" in caplog.text
    assert launch.launches(4, 86) == launch.TABLE[4, 80]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: "{",
        lambda content: "[]",
        lambda content: json.dumps(content | {"rows": {"5": content["rows"]["4"]}}),
        lambda content: json.dumps(content | {"rows": {"4": []}}),
        lambda content: json.dumps(content | {"rows": {"4": [{"kernel": "dot"}]}}),
        lambda content: json.dumps(content | {"rows": {"4": content["rows"]["4"] * 2}}),
        lambda content: json.dumps(content | {"rows": {"4": [content["rows"]["4"][0] | {"block_n": 100}]}}),
        lambda content: json.dumps(content | {"rows": {"4": [content["rows"]["4"][0] | {"block_n": "64"}]}}),
    ],
)
def test_a_broken_file_is_named_and_ignored(change, caplog):
    path = launch_table.save(CPU, {4: launch.launches(4, 86)[:1]})
    path.write_text(change(json.loads(path.read_text())))
    with caplog.at_level(logging.WARNING):
        launch_table.adopt(CPU)
    assert f"ignoring {path}, which cannot be used" in caplog.text
    assert launch.launches(4, 86) == launch.TABLE[4, 80]


def test_the_identity_names_gpu_triton_and_version(monkeypatch):
    monkeypatch.undo()
    assert launch_table.identity(CPU).keys() == IDENTITY.keys()
