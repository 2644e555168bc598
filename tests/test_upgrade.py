"""What earlier releases wrote loads as it was: checkpoints bit for bit, prefixes, training runs, saved chats.

``fixtures/written_by_COMMIT`` holds files as that commit wrote them (from the tiny and the mini model), and in
``expected.json`` what it read from them. They never change; a new format gets a folder of its own.
"""

import hashlib
import json
import shutil

import pytest
import torch

import glm_int4
from glm_int4.checkpoint.formats import layout
from glm_int4.checkpoint.opening import open_checkpoint, read_weight
from glm_int4.checkpoint.prefix_file import read_prefix_encoder
from glm_int4.cli.terminal import saved
from glm_int4.cli.terminal.conversation import Conversation
from glm_int4.quantization.rounding.rtn import dequantize
from tests.conftest import FIXTURES, MINI

WRITTEN = FIXTURES / "written_by_25215b6"
EXPECTED = json.loads((WRITTEN / "expected.json").read_text(encoding="utf-8"))


def digest(folder):
    """SHA-256 over the names, schemes and dequantized weights of a checkpoint, in float32."""
    reader, info = open_checkpoint(folder)
    sha = hashlib.sha256()
    for name, matrix in layout.matrices(info.config).items():
        scheme = info.schemes[name]
        weight = reader[f"{name}.weight"] if scheme is None else dequantize(read_weight(reader, info, matrix))
        sha.update(f"{name} {scheme}".encode() + weight.float().contiguous().numpy().tobytes())
    for name in layout.vectors(info.config):
        sha.update(name.encode() + reader[name].float().contiguous().numpy().tobytes())
    return sha.hexdigest()


@pytest.mark.parametrize("name", EXPECTED["weights"])
def test_a_checkpoint_loads_bit_for_bit(name):
    assert digest(WRITTEN / name) == EXPECTED["weights"][name]


@pytest.mark.parametrize("name", EXPECTED["ids"])
def test_a_checkpoint_says_what_it_said(name):
    engine = glm_int4.load(WRITTEN / name, device="cpu", dtype=torch.float32)
    prompt = [11, 12, 13, 14]
    if name.startswith("v1"):
        prompt[2:] = engine.config.gmask_token_id, engine.config.bos_token_id
    greedy = glm_int4.SamplingParams(temperature=0)
    assert engine.generate(prompt, 8, greedy, stop_ids=[]) == EXPECTED["ids"][name]


def test_a_prefix_loads_bit_for_bit(mini):
    columns = read_prefix_encoder(WRITTEN / "ptuned", mini.config)()
    assert hashlib.sha256(columns.contiguous().numpy().tobytes()).hexdigest() == EXPECTED["prefix"]


def test_a_training_run_goes_on_to_the_same_losses(tmp_path):
    output = shutil.copytree(WRITTEN / "ptuned", tmp_path / "ptuned")
    options = {"device": "cpu", "dtype": torch.float32, "resume": True} | EXPECTED["training"]["arguments"]
    glm_int4.ptune(MINI, WRITTEN / "train.jsonl", output, **options)
    log = (output / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["loss"] for line in log] == pytest.approx(EXPECTED["training"]["losses"], rel=1e-4)


def test_a_saved_chat_comes_back(mini):
    chat = Conversation(mini, glm_int4.SamplingParams(), name="mini", system=None, max_new_tokens=None, tools=None)
    saved.load(chat, WRITTEN / "conversation.json")
    assert (chat.messages, chat.system, chat.max_new_tokens) == (EXPECTED["messages"], "简短", 50)
    assert (chat.sampling.temperature, chat.sampling.seed, chat.sampling.stop) == (0, 3, ("。",))
