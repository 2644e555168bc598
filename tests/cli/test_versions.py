"""All versions and official quantized checkpoints through the command line."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.test_commands import glm, refused, text
from tests.conftest import FIXTURES

FOLDERS = sorted(folder for folder in FIXTURES.glob("v?_tiny*") if folder.is_dir())


@pytest.mark.slow(20)
def test_info_describes_every_fixture():
    assert len(FOLDERS) == 10
    for folder in FOLDERS:
        info = json.loads(text(glm("info", folder, "--json")))
        bits = int(folder.name.split("int")[1][0]) if "int" in folder.name else 16
        assert info["version"] == ("1" if folder.name.startswith("v1") else "2"), folder.name
        assert info["bits"] == bits
        assert info["group_size"] == (None if bits == 16 else "channel")
        length = 2048 if folder.name.startswith("v1") else 128
        assert info["plan"]["tokens_in_memory"]["4 GB"] == {"16": length, "8": length}


def test_info_says_how_it_decided_and_takes_another_version():
    assert "ChatGLM2-6B (decided by nothing that speaks for version 3" in text(glm("info", FIXTURES / "v3_tiny"))
    assert "ChatGLM3-6B (decided by the caller)" in text(glm("info", FIXTURES / "v3_tiny", "--model-version", 3))


@pytest.mark.parametrize("quantized", ["int4", "int4_qe"])
def test_the_official_format_is_written_bit_for_bit(quantized, tmp_path):
    out = tmp_path / "out"
    options = ["--quantize-embeddings"] if quantized == "int4_qe" else []
    text(glm("quantize", "--model", FIXTURES / "v1_tiny", "--format", "official", "--output", out, *options))
    (shard,) = out.glob("*.safetensors")
    written, expected = load_file(shard), load_file(FIXTURES / f"v1_tiny_{quantized}" / "model.safetensors")
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], expected[name]) for name in expected)


def test_rewriting_an_official_checkpoint_says_what_was_kept(tmp_path):
    out = text(glm("quantize", "--model", FIXTURES / "v2_tiny_int8", "--bits", 8, "--output", tmp_path / "out"))
    assert "INT8 weights are kept as they were, without a second rounding" in out
    refused(glm("quantize", "--model", FIXTURES / "v2_tiny_int8", "--output", tmp_path / "x"), "expected --bits 8")


@pytest.mark.parametrize("version", ["2", "3"])
def test_a_chat_with_either_version(small_checkpoints, version):
    run = glm("chat", small_checkpoints[version], "--prompt", "你好", "--max-new-tokens", 3, "--greedy", "--kv-bits", 8)
    assert run.returncode == 0


@pytest.mark.slow(15)
def test_tools_are_read_from_a_file(small_checkpoints, tmp_path):
    tools = tmp_path / "tools.json"
    ask = ("chat", small_checkpoints["3"], "--prompt", "price", "--max-new-tokens", 2, "--greedy", "--tools", tools)
    tools.write_text('[{"name": "track", "parameters": {"type": "object", "properties": {"symbol": {}}}}]')
    assert glm(*ask).returncode == 0
    tools.write_text('[{"name": "track", "parameters": []}]')
    refused(glm(*ask), '"type": "object"')
    tools.write_text("[{")
    refused(glm(*ask), "expected a JSON list of tools")
    tools.write_text('{"name": "track"}')
    refused(glm(*ask), "expected a list of tools")
    tools.write_text('[{"name": "track"}]')
    refused(
        glm("chat", small_checkpoints["2"], "--prompt", "price", "--tools", tools), "expected no tools for version 2"
    )
