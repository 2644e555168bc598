"""Training runs on the mini model: what they learn, leave behind, resume from, and refuse."""

import errno
import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import glm_int4
from glm_int4.errors import CheckpointError, GLMError, InputError, OutputError
from glm_int4.tuning import checkpoints
from glm_int4.tuning.methods import trained_prefix
from tests.conftest import FIXTURES, MINI
from tests.read_only import in_read_only_system
from tests.tolerances import HALF_PRECISION_LOSS
from tests.tuning.conftest import digests, log, losses

FEW = {"pre_seq_len": 4, "gradient_accumulation_steps": 2, "max_steps": 4, "save_steps": 2, "logging_steps": 1}


@pytest.fixture
def ptune(mini_int4, train_file, tmp_path):
    """Train a little; arguments may be changed."""

    def run(output=tmp_path / "out", **changes):
        arguments = {"model": mini_int4, "train_file": train_file, "output": output, "device": "cpu"}
        return glm_int4.ptune(**arguments | FEW | changes)

    return run


@pytest.mark.parametrize("projection", [False, True])
def test_a_checkpoint_has_the_official_layout_and_loads(ptune, mini_int4, tmp_path, projection):
    report = ptune(prefix_projection=projection)
    folder = tmp_path / "out" / "checkpoint-4"
    assert (report.checkpoint, report.step, report.samples) == (str(folder), 4, 4)
    official = torch.load(folder / "pytorch_model.bin", weights_only=True)
    width = 2 * 7 * 256
    expected = {"embedding.weight": (4, 256 if projection else width)}
    if projection:
        expected |= {
            "trans.0.weight": (256, 256),
            "trans.0.bias": (256,),
            "trans.2.weight": (width, 256),
            "trans.2.bias": (width,),
        }
    stem = "transformer.prefix_encoder."
    assert {n: tuple(t.shape) for n, t in official.items()} == {stem + n: shape for n, shape in expected.items()}
    assert {t.dtype for t in official.values()} == {torch.float32}
    assert all(torch.equal(t, official[n]) for n, t in load_file(folder / "prefix_encoder.safetensors").items())
    config = json.loads((folder / "config.json").read_text())
    assert (config["pre_seq_len"], config["prefix_projection"], config["model_type"]) == (4, projection, "chatglm")
    assert "quantization_config" not in config
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "checkpoint-2", "checkpoint-4", "loss.png", "trainer_log.jsonl"
    ]  # fmt: skip
    assert (tmp_path / "out" / "loss.png").read_bytes().startswith(b"\x89PNG")
    engine = glm_int4.load(mini_int4, device="cpu", prefix=tmp_path / "out")
    assert engine.prefix.length == 4
    assert engine.chat([{"role": "user", "content": "你好"}], 4)


def test_the_model_stays_as_it_is_and_the_prefix_learns(ptune, mini_int4, tmp_path):
    before = digests(mini_int4)
    report = ptune(max_steps=60, save_steps=60, learning_rate=0.2)
    assert digests(mini_int4) == before
    values = losses(tmp_path / "out")
    assert values[-1] < 0.5 * values[0]
    assert report.loss == values[-1]
    assert report.parameters == 4 * 2 * 7 * 256


@pytest.mark.parametrize("changes", [{}, {"prefix_projection": True}, {"logging_steps": 4}])
def test_a_resumed_run_has_the_same_losses_and_the_same_prefix(ptune, tmp_path, changes):
    settings = {"max_steps": 7, "save_steps": 3, "per_device_train_batch_size": 2} | changes
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    ptune(whole, **settings)

    class Killed(BaseException):
        pass

    def kill(done, total, item):
        if done == 5:
            raise Killed

    with pytest.raises(Killed):
        ptune(broken, progress=kill, **settings)
    (broken / "checkpoint-6.partial").mkdir()
    report = ptune(broken, resume=True, **settings)
    assert report.step == 7
    assert losses(broken) == losses(whole)
    assert [entry["step"] for entry in log(broken)] == [entry["step"] for entry in log(whole)]
    a, b = (load_file(folder / "checkpoint-7" / "prefix_encoder.safetensors") for folder in (whole, broken))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not list(broken.glob("*.partial"))


def test_resuming_a_complete_run_trains_no_more(ptune, tmp_path):
    ptune()
    before = digests(tmp_path / "out" / "checkpoint-4")
    report = ptune(resume=True)
    assert (report.step, report.tokens_per_s, len(log(tmp_path / "out"))) == (4, None, 4)
    assert digests(tmp_path / "out" / "checkpoint-4") == before


def test_resuming_nothing_starts(ptune):
    assert ptune(resume=True).step == 4


def test_recomputing_activations_changes_no_loss(ptune, tmp_path):
    for name, recompute in (("a", True), ("b", False)):
        ptune(tmp_path / name, gradient_checkpointing=recompute)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_the_seed_decides(ptune, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        ptune(tmp_path / name, seed=seed)
    assert losses(tmp_path / "a") == losses(tmp_path / "b") != losses(tmp_path / "c")


def test_the_learning_rate_rises_then_falls_to_nothing(ptune, tmp_path):
    ptune(warmup_steps=2, max_steps=4, learning_rate=0.4)
    assert [entry["learning_rate"] for entry in log(tmp_path / "out")] == pytest.approx([0.2, 0.4, 0.2, 0])


@pytest.mark.slow(20)
def test_an_evaluation_has_the_official_figures(ptune, train_file, tmp_path):
    report = ptune(eval_file=train_file, eval_greedy=True, max_steps=100, save_steps=100, learning_rate=0.2)
    result = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert report.evaluation == result
    assert result.keys() == {"loss", "rouge-1", "rouge-2", "rouge-l", "bleu-4", "exact", "samples"}
    lines = [json.loads(line) for line in (tmp_path / "out" / "generated_predictions.txt").read_text().splitlines()]
    assert [line["labels"] for line in lines] == ["再见", "八", "three", "巴黎很美"]
    assert result["exact"] == 25 * sum(line["labels"] == line["predict"] for line in lines) >= 75
    sampled = ptune(resume=True, eval_file=train_file, max_steps=100, save_steps=100, learning_rate=0.2)
    assert sampled.evaluation["loss"] == pytest.approx(result["loss"])


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(ptune, tmp_path, monkeypatch):
    calls = []

    def overflowing(*arguments, **named):
        calls.append(1)
        loss = training_loss(*arguments, **named)
        return loss * float("nan") if len(calls) > 5 else loss

    training_loss = trained_prefix.prefix_loss
    monkeypatch.setattr(trained_prefix, "prefix_loss", overflowing)
    with pytest.raises(GLMError, match=r"in step 3, got nan .*checkpoint-2: go on from it with --resume") as caught:
        ptune()
    assert caught.value.exit_code == 1
    assert losses(tmp_path / "out") == losses(tmp_path / "out")[:2]
    monkeypatch.setattr(trained_prefix, "prefix_loss", training_loss)
    assert ptune(resume=True, learning_rate=1e-3).step == 4


def test_a_disk_that_fills_up_keeps_the_earlier_checkpoints(ptune, tmp_path, monkeypatch):
    class Full:
        """A file whose disk is full after a few bytes."""

        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            self.file.close()

        def write(self, data):
            raise OSError(28, "No space left on device")

        def __getattr__(self, name):
            return getattr(self.file, name)

    save = checkpoints.torch.save
    written = []

    def fill(value, file):
        written.append(1)
        save(value, Full(file) if len(written) > 3 else file)

    monkeypatch.setattr(checkpoints.torch, "save", fill)
    with pytest.raises(OutputError, match=r"checkpoint-4 to be written, got: No space left on device; .* --resume"):
        ptune()
    assert sorted(p.name for p in (tmp_path / "out").glob("checkpoint*")) == ["checkpoint-2"]
    monkeypatch.undo()
    assert ptune(resume=True).step == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre_seq_len": 0}, "pre_seq_len to be a whole number from 1"),
        ({"max_steps": 2.5}, "max_steps to be a whole number"),
        ({"learning_rate": 0}, "learning_rate above 0"),
        ({"learning_rate": float("nan")}, "learning_rate above 0"),
        ({"max_source_length": 500}, "at most 511 together"),
        ({"num_epochs": 3}, "expected arguments among pre_seq_len, .* got num_epochs"),
        ({"train_file": "nowhere.json"}, "got none"),
        ({"prompt_column": "question"}, "expected the column question"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_before_anything_is_written(ptune, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        ptune(**changes)
    assert not (tmp_path / "out").exists()


def test_official_arguments_that_are_decided_elsewhere_are_ignored_aloud(ptune, caplog):
    assert ptune(do_train=True, quantization_bit=4, overwrite_cache=True).step > 0
    assert "ignoring do_train, quantization_bit, overwrite_cache" in caplog.text


def test_answers_that_are_too_long_are_cut_and_counted(ptune, caplog):
    report = ptune(max_target_length=4)
    assert report.cut_answers > 0
    assert f"{report.cut_answers} of 4 answers are longer than max_target_length 4 and were cut" in caplog.text


def test_an_output_that_exists_is_kept_unless_told_otherwise(ptune, tmp_path):
    ptune()
    with pytest.raises(OutputError, match="pass --resume to go on"):
        ptune()
    assert ptune(overwrite=True, max_steps=2).step == 2
    assert not (tmp_path / "out" / "checkpoint-4").exists()
    (tmp_path / "out" / "loss.png.tmp").write_text("what a kill leaves")
    assert ptune(overwrite=True, max_steps=2).step == 2
    (tmp_path / "out" / "7").mkdir()
    with pytest.raises(OutputError, match=r"with 7 in it"):
        ptune(overwrite=True)
    (tmp_path / "out" / "7").rmdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"with thesis.txt in it"):
        ptune(overwrite=True)
    assert (tmp_path / "out" / "checkpoint-2").is_dir()
    with pytest.raises(OutputError, match="expected an output folder that can be made"):
        ptune(tmp_path / "out" / "thesis.txt")


def test_a_second_run_to_the_same_output_is_refused(ptune, tmp_path):
    refused = []

    def start_another(done, total, item):
        if done == 3:
            with pytest.raises(OutputError, match="another run that is writing it") as caught:
                ptune(overwrite=True)
            refused.append(caught)

    assert ptune(progress=start_another).step == 4
    assert refused
    assert (tmp_path / "out" / "checkpoint-2").is_dir()


def test_a_run_is_resumed_with_its_own_arguments_and_data_alone(ptune, train_file, tmp_path):
    ptune(max_steps=2)
    with pytest.raises(InputError, match="expected seed 42 to resume"):
        ptune(resume=True, seed=7)
    text = train_file.read_text()
    train_file.write_text(text.replace("再见", "晚安"))
    with pytest.raises(InputError, match="got other rows"):
        ptune(resume=True)
    train_file.write_text(text)
    (tmp_path / "out" / "checkpoint-2" / "training_state.pt").write_bytes(b"\x80")
    with pytest.raises(CheckpointError, match="expected a state to go on from"):
        ptune(resume=True)


def test_what_is_not_installed_is_named(ptune, train_file, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "rouge_chinese", None)
    with pytest.raises(
        InputError, match=r'none of the name rouge_chinese; install them: pip install "glm-int4\[ptune\]"'
    ):
        ptune(eval_file=train_file)
    ptune()
    assert "no loss.png: matplotlib is not installed" in caplog.text
    assert not (tmp_path / "out" / "loss.png").exists()


def test_a_plot_without_a_folder_for_matplotlib_is_left_out_in_one_line():
    """Not even a temporary folder can be made there."""
    program = (
        "import logging; logging.basicConfig(); from glm_int4.system import name_a_temporary_folder as name; name();"
        "from glm_int4.tuning.log import has_matplotlib as has; print(has())"
    )
    pytest.importorskip("matplotlib")
    result = in_read_only_system([sys.executable, "-c", program], env={"MPLCONFIGDIR": "/nonexistent/matplotlib"})
    assert (result.returncode, result.stdout) == (0, "False\n"), result.stderr
    (line,) = result.stderr.splitlines()
    assert "no loss.png: matplotlib has no folder to write to" in line
    assert line.endswith("set MPLCONFIGDIR to one")


def test_a_disk_that_is_full_for_the_plot_leaves_nothing_and_resuming_draws_it(ptune, tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure").Figure

    def half(self, path, **_):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(figure, "savefig", half)
        with pytest.raises(OutputError, match="No space left on device"):
            ptune(max_steps=2)
    (output,) = (path.parent for path in tmp_path.rglob("trainer_log.jsonl"))
    assert not list(output.glob("*.tmp"))
    ptune(max_steps=2, resume=True)
    assert (output / "loss.png").is_file()


def test_an_unquantized_model_is_trained_too(ptune):
    assert ptune(model=MINI, max_steps=2).step == 2


def test_half_precision_learns_what_float32_learns(ptune, tmp_path):
    for name in ("float32", "float16", "bfloat16"):
        ptune(tmp_path / name, dtype=getattr(torch, name))
    exact = losses(tmp_path / "float32")
    assert losses(tmp_path / "float16") == pytest.approx(exact, rel=HALF_PRECISION_LOSS)
    assert losses(tmp_path / "bfloat16") == pytest.approx(exact, rel=8 * HALF_PRECISION_LOSS)


@pytest.fixture(params=["2", "3"], ids=["v2", "v3"])
def bpe_model(request, small_bpe, tmp_path):
    """A tiny model of version 2 or 3 with a tokenizer that was trained on the spot, and its version."""
    folder = tmp_path / "model"
    folder.mkdir()
    tiny = FIXTURES / f"v{request.param}_tiny"
    config = json.loads((tiny / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"padded_vocab_size": 512, "eos_token_id": 2}))
    tensors = load_file(tiny / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name in ("transformer.embedding.word_embeddings.weight", "transformer.output_layer.weight"):
        tensors[name] = torch.randn(512, 64, generator=generator).half()
    save_file(tensors, folder / "model.safetensors")
    shutil.copy(small_bpe, folder / "tokenizer.model")
    return folder, request.param


def test_versions_2_and_3_are_trained_and_answer_with_their_prefix(bpe_model, ptune, tmp_path):
    model, version = bpe_model
    file = tmp_path / "one.csv"
    file.write_text("content,summary\nhello,world\n", encoding="utf-8")
    changes = {"model": model, "model_version": version, "train_file": file, "max_source_length": 40}
    changes |= {"max_target_length": 40, "learning_rate": 0.3, "max_steps": 60, "save_steps": 60, "pre_seq_len": 8}
    report = ptune(eval_file=file, eval_greedy=True, **changes)
    assert report.evaluation["exact"] == 100
    stored = torch.load(tmp_path / "out" / "checkpoint-60" / "pytorch_model.bin", weights_only=True)
    assert {name: tuple(t.shape) for name, t in stored.items()} == {
        "transformer.prefix_encoder.embedding.weight": (8, 2 * 2 * 2 * 16)
    }
    question, greedy = [{"role": "user", "content": "hello"}], glm_int4.SamplingParams(temperature=0)
    engine = glm_int4.load(model, device="cpu", model_version=version, prefix=tmp_path / "out")
    assert engine.chat(question, 8, greedy).strip() == "world"
    plain = glm_int4.load(model, device="cpu", model_version=version)
    assert plain.chat(question, 8, greedy).strip() != "world"
