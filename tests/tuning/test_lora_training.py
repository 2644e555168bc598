"""LoRA runs on the mini model and on small ones: what they learn, leave behind, resume from, and refuse."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import glm_int4
from glm_int4.errors import CheckpointError, ConfigError, InputError
from tests.conftest import MINI
from tests.tolerances import ADAPTER_ABSOLUTE, HALF_PRECISION_LOSS
from tests.tuning.conftest import QUESTIONS, digests, losses

FEW = {"gradient_accumulation_steps": 2, "max_steps": 4, "save_steps": 2, "logging_steps": 1, "learning_rate": 0.01}
GREEDY = glm_int4.SamplingParams(temperature=0)


@pytest.fixture
def finetune(mini_int4, train_file, tmp_path):
    """Train a little; arguments may be changed."""

    def run(output=tmp_path / "out", **changes):
        arguments = {"model": mini_int4, "train_file": train_file, "output": output, "device": "cpu"}
        return glm_int4.finetune(**arguments | FEW | changes)

    return run


def adapter(folder):
    return load_file(folder / "adapter_model.safetensors")


def test_a_checkpoint_is_a_folder_of_peft_and_load_takes_it(finetune, mini_int4, tmp_path):
    report = finetune()
    folder = tmp_path / "out" / "checkpoint-4"
    assert (report.checkpoint, report.step, report.samples, report.method) == (str(folder), 4, 4, "lora")
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "training_state.pt"
    ]  # fmt: skip
    stem = "base_model.model.transformer.layers.{}.attention.query_key_value.lora_{}.weight"
    shapes = {"A": (8, 256), "B": (768, 8)}
    assert {name: tuple(tensor.shape) for name, tensor in adapter(folder).items()} == {
        stem.format(layer, part): shape for layer in range(7) for part, shape in shapes.items()
    }
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (8, 32, 0.1)
    assert settings["target_modules"] == ["query_key_value"]
    assert report.parameters == 7 * 8 * (256 + 768)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "checkpoint-2", "checkpoint-4", "loss.png", "trainer_log.jsonl"
    ]  # fmt: skip
    ids = [11, 22, 33]
    plain = glm_int4.load(mini_int4, device="cpu").logits(ids)
    assert not torch.equal(glm_int4.load(mini_int4, device="cpu", adapter=tmp_path / "out").logits(ids), plain)


def test_a_few_steps_lower_the_loss_and_the_model_stays_as_it_is(finetune, mini_int4, tmp_path):
    before = digests(mini_int4)
    report = finetune(max_steps=40, save_steps=40)
    assert digests(mini_int4) == before
    values = losses(tmp_path / "out")
    assert values[-1] < 0.5 * values[0]
    assert report.loss == values[-1]


@pytest.mark.parametrize(
    "changes",
    [{}, {"target_modules": "all-linear", "gradient_checkpointing": False}, {"logging_steps": 4, "lora_dropout": 0.0}],
)
def test_a_resumed_run_has_the_same_losses_and_the_same_adapter(finetune, tmp_path, changes):
    settings = {"max_steps": 7, "save_steps": 3, "per_device_train_batch_size": 2} | changes
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finetune(whole, **settings)

    class Killed(BaseException):
        pass

    def kill(done, total, item):
        if done == 5:
            raise Killed

    with pytest.raises(Killed):
        finetune(broken, progress=kill, **settings)
    (broken / "checkpoint-6.partial").mkdir()
    report = finetune(broken, resume=True, **settings)
    assert report.step == 7
    assert losses(broken) == losses(whole)
    a, b = (adapter(folder / "checkpoint-7") for folder in (whole, broken))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not list(broken.glob("*.partial"))


def test_recomputing_activations_changes_no_loss(finetune, tmp_path):
    for name, recompute in (("a", True), ("b", False)):
        finetune(tmp_path / name, gradient_checkpointing=recompute, target_modules="all-linear")
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_the_seed_decides(finetune, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        finetune(tmp_path / name, seed=seed)
    assert losses(tmp_path / "a") == losses(tmp_path / "b") != losses(tmp_path / "c")


@pytest.mark.slow(20)
def test_an_evaluation_answers_with_the_adapter_and_load_answers_the_same(finetune, mini_int4, train_file, tmp_path):
    report = finetune(eval_file=train_file, eval_greedy=True, max_steps=60, save_steps=60)
    assert report.evaluation == json.loads((tmp_path / "out" / "eval_results.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "out" / "generated_predictions.txt").read_text().splitlines()]
    assert [line["labels"] for line in lines] == [answer for _, answer in QUESTIONS]
    assert report.evaluation["exact"] == 25 * sum(line["labels"] == line["predict"] for line in lines) >= 75
    engine = glm_int4.load(mini_int4, device="cpu", adapter=tmp_path / "out")
    answers = [engine.chat([{"role": "user", "content": question}], 16, GREEDY) for question, _ in QUESTIONS]
    assert answers == [line["predict"] for line in lines]


def test_ptuning_is_a_method_and_ptune_its_other_name(finetune, mini_int4, train_file, tmp_path):
    few = {name: value for name, value in FEW.items() if name != "learning_rate"} | {"pre_seq_len": 4}
    report = finetune(method="ptuning", learning_rate=2e-2, pre_seq_len=4)
    glm_int4.ptune(mini_int4, train_file, tmp_path / "ptuned", device="cpu", **few)
    assert report.method == "ptuning"
    assert losses(tmp_path / "out") == losses(tmp_path / "ptuned")
    assert (
        digests(tmp_path / "ptuned" / "checkpoint-4")["pytorch_model.bin"]
        == (digests(tmp_path / "out" / "checkpoint-4")["pytorch_model.bin"])
    )


def test_what_was_trained_is_named_where_it_is_given_as_the_other(finetune, mini_int4, tmp_path):
    few = {"max_steps": 1, "save_steps": 1}
    finetune(tmp_path / "lora", **few)
    finetune(tmp_path / "prefix", method="ptuning", pre_seq_len=2, **few)
    for folder in (tmp_path / "lora", tmp_path / "lora" / "checkpoint-1"):
        with pytest.raises(InputError, match="got an adapter of peft; give it with --adapter"):
            glm_int4.load(mini_int4, device="cpu", prefix=folder)
    for folder in (tmp_path / "prefix", tmp_path / "prefix" / "checkpoint-1"):
        with pytest.raises(ConfigError, match="this is a P-Tuning prefix: give it with --prefix"):
            glm_int4.load(mini_int4, device="cpu", adapter=folder)


def test_a_run_is_resumed_with_its_own_method_and_arguments_alone(finetune, tmp_path):
    finetune(max_steps=2)
    for changes, message in (
        ({"r": 4}, "expected r 8 to resume"),
        ({"target_modules": ["dense"]}, "expected target_modules"),
        ({"lora_dropout": 0}, "expected lora_dropout 0.1 to resume"),
        ({"method": "ptuning"}, "expected the method lora to resume"),
    ):
        with pytest.raises(InputError, match=message):
            finetune(resume=True, **changes)
    path = tmp_path / "out" / "checkpoint-2" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is truncated"):
        finetune(resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "full"}, "expected the method lora or ptuning, got 'full'"),
        ({"r": 0}, "r to be a whole number from 1"),
        ({"r": 1 << 15}, "r to be at most 16384"),
        ({"lora_alpha": 0}, "lora_alpha above 0"),
        ({"lora_alpha": float("nan")}, "lora_alpha to be a number"),
        ({"lora_dropout": 1}, "lora_dropout to be a number from 0 on, below 1"),
        ({"target_modules": "query_key_value,"}, "expected names of linear layers"),
        ({"target_modules": []}, "at least one of the linear layers"),
        ({"target_modules": ["q_proj"]}, "expected target_modules among query_key_value, .*all-linear.* got q_proj"),
        ({"pre_seq_len": 4}, "expected arguments among r, .* got pre_seq_len"),
        ({"method": "ptuning", "r": 4}, "expected arguments among pre_seq_len, .* got r"),
        ({"max_source_length": 500, "max_target_length": 64}, "at most 511 together"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_before_anything_is_written(finetune, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        finetune(**changes)
    assert not (tmp_path / "out").exists()


def test_half_precision_learns_what_float32_learns(finetune, tmp_path):
    for name in ("float32", "float16", "bfloat16"):
        finetune(tmp_path / name, dtype=getattr(torch, name))
    exact = losses(tmp_path / "float32")
    assert losses(tmp_path / "float16") == pytest.approx(exact, rel=HALF_PRECISION_LOSS)
    assert losses(tmp_path / "bfloat16") == pytest.approx(exact, rel=8 * HALF_PRECISION_LOSS)


def test_an_unquantized_model_and_one_in_int8_are_trained_too(finetune, tmp_path):
    assert finetune(model=MINI, max_steps=2).step == 2
    glm_int4.quantize_checkpoint(MINI, tmp_path / "int8", bits=8)
    assert finetune(tmp_path / "out8", model=tmp_path / "int8", max_steps=2).step == 2


CONVERSATION = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "world"},
    {"role": "user", "content": "you"},
    {"role": "assistant", "content": "me"},
]


@pytest.mark.parametrize("version", ["2", "3"])
def test_versions_2_and_3_learn_conversations(version, finetune, small_checkpoints, tmp_path):
    """In INT4, every answer of theirs; what they were asked before changes what they answer."""
    model = tmp_path / "int4"
    glm_int4.quantize_checkpoint(small_checkpoints[version], model, bits=4, group_size=32)
    shutil.copy(small_checkpoints[version] / "tokenizer.model", model / "tokenizer.model")
    file = tmp_path / "talk.jsonl"
    file.write_text(json.dumps({"conversations": CONVERSATION}), encoding="utf-8")
    changes = {"model": model, "train_file": file, "max_source_length": 90, "max_target_length": 40, "max_steps": 60}
    changes |= {"save_steps": 60, "lora_dropout": 0.0, "gradient_accumulation_steps": 1, "target_modules": "all-linear"}
    report = finetune(eval_file=file, eval_greedy=True, **changes)
    assert (report.samples, report.evaluation["samples"]) == ({"2": 2, "3": 1}[version], 2)
    assert report.evaluation["exact"] == 100
    engine = glm_int4.load(model, device="cpu", adapter=tmp_path / "out")
    assert engine.chat(CONVERSATION[:1], 8, GREEDY) == "world"
    assert engine.chat(CONVERSATION[:3], 8, GREEDY) == "me"
    assert glm_int4.load(model, device="cpu").chat(CONVERSATION[:1], 8, GREEDY) != "world"


def test_conversations_without_an_answer_in_their_beginning_are_left_out(finetune, small_checkpoints, tmp_path, caplog):
    file = tmp_path / "talk.jsonl"
    long = [{"role": "user", "content": "hello " * 50}, CONVERSATION[1]]
    file.write_text("\n".join(json.dumps({"messages": m}) for m in (CONVERSATION, long)), encoding="utf-8")
    changes = {"model": small_checkpoints["3"], "train_file": file, "max_source_length": 30, "max_target_length": 20}
    report = finetune(max_steps=2, **changes)
    assert (report.samples, report.left_out) == (1, 1)
    assert "1 of 2 conversations have no answer in their first 51 tokens and were left out" in caplog.text
    with pytest.raises(InputError, match="got none; raise them"):
        finetune(tmp_path / "none", max_steps=2, **changes | {"max_source_length": 3, "max_target_length": 3})


def test_peft_computes_with_what_a_run_has_written(finetune, mini_int4, tmp_path):
    peft = pytest.importorskip("peft", reason="needs peft: pip install peft")
    from glm_int4.hf import ChatGLMForCausalLM

    finetune(target_modules=["query_key_value", "dense_4h_to_h"], r=3)
    base = ChatGLMForCausalLM.from_pretrained(mini_int4, device_map="cpu", dtype=torch.float32)
    ids = [11, 22, 33, base.config.gmask_token_id, base.config.bos_token_id]
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "out" / "checkpoint-4")
    ours = glm_int4.load(mini_int4, device="cpu", dtype=torch.float32, adapter=tmp_path / "out")
    with torch.no_grad():
        found = theirs(torch.tensor([ids]), use_cache=False).logits
    assert (found - ours.logits(ids)).abs().max() < ADAPTER_ABSOLUTE
