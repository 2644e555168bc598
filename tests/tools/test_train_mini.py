"""The program that made the shipped model runs: two small steps end in a checkpoint that loads and answers."""

import sys

import pytest
import torch

import glm_int4
from tests.conftest import EXAMPLES

SMALL = {"SAMPLES_PER_STEP": 8, "DOCUMENTS_PER_STEP": 1, "DOCUMENT_TOKENS": 24, "EVALUATED_QUESTIONS": 10}


@pytest.fixture
def train(monkeypatch, tmp_path):
    """Run the program with small batches; it saves after every step."""
    monkeypatch.syspath_prepend(EXAMPLES.parent / "tools")
    import train_mini

    for name, value in (SMALL | {"SAVE_EVERY": 1}).items():
        monkeypatch.setattr(train_mini, name, value)

    def run(steps=2):
        arguments = ["--output", str(tmp_path / "mini"), "--steps", str(steps), "--quiet"]
        monkeypatch.setattr(sys, "argv", ["train_mini.py", *arguments])
        train_mini.main()
        return tmp_path / "mini"

    return run


def test_two_steps_end_in_a_checkpoint_that_loads_and_answers(train, capsys):
    folder = train()
    assert {path.name for path in folder.parent.iterdir()} == {"mini"}
    out = capsys.readouterr().out
    assert "step 2 loss" in out
    assert "all 0." in out
    glm = glm_int4.load(folder, device="cpu")
    assert glm.model.config.num_layers == 7
    assert isinstance(glm.chat([{"role": "user", "content": "3加5等于几?"}], max_new_tokens=4), str)


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(train, monkeypatch, capsys):
    import train_mini

    step, done = train_mini.train_step, []

    def stopped(*arguments):
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(1)
        return step(*arguments)

    whole = torch.load(train() / "pytorch_model-00001-of-00002.bin", weights_only=True)
    monkeypatch.setattr(train_mini, "train_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        train()
    with pytest.raises(SystemExit, match="delete it to start over"):
        train(steps=3)
    monkeypatch.setattr(train_mini, "train_step", step)
    resumed = torch.load(train() / "pytorch_model-00001-of-00002.bin", weights_only=True)
    assert "going on from step 1" in capsys.readouterr().out
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
