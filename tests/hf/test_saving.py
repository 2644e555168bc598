"""What ``save_pretrained`` writes, beside the table's rows."""

import json
import logging
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from glm_int4.errors import InputError, OutputError
from tests.conftest import FIXTURES, MINI

IDS = torch.tensor([[5, 6, 7, 145]])


def loaded(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)


def test_values_that_the_files_dtype_would_lose_are_kept(tmp_path):
    model = loaded(FIXTURES / "v1_tiny")
    with torch.no_grad():
        model.transformer.layers[0].mlp.dense_4h_to_h.weight.mul_(1 / 3)
        model.transformer.word_embeddings.weight[7] += 2**-20
    model.save_pretrained(tmp_path)
    again = loaded(tmp_path)
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert not torch.equal(again(IDS).logits, loaded(FIXTURES / "v1_tiny")(IDS).logits)
    unchanged = loaded(FIXTURES / "v1_tiny")
    unchanged.save_pretrained(tmp_path / "unchanged")
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path, tmp_path / "unchanged")]
    assert sizes[1] < sizes[0]  # float16, as read


def test_a_folder_can_be_saved_over_itself(tmp_path):
    folder = tmp_path / "mini"
    shutil.copytree(MINI, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.num_things = 3
    model.save_pretrained(folder)
    assert not list(folder.glob("*.bin*"))
    assert not list(folder.glob("*.tmp"))
    again = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert again.chat(tokenizer, "3加5等于几?", do_sample=False)[0] == "8"
    assert model.chat(tokenizer, "3加5等于几?", do_sample=False)[0] == "8"


def test_a_version_that_only_the_caller_knew_is_kept(tmp_path):
    source = tmp_path / "unnamed"
    shutil.copytree(FIXTURES / "v3_tiny", source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "_name_or_path"}))
    assert loaded(source).engine.config.version == "2"
    loaded(source, model_version="3").save_pretrained(tmp_path / "saved")
    assert loaded(tmp_path / "saved").engine.config.version == "3"


def test_a_prefix_from_elsewhere_is_named_and_one_beside_the_weights_is_kept(tmp_path, caplog):
    prefix = FIXTURES / "v1_tiny" / "prefix_proj0.safetensors"
    caplog.set_level(logging.WARNING)
    loaded(FIXTURES / "v1_tiny", prefix=prefix).save_pretrained(tmp_path / "a")
    assert "is not saved with the model" in caplog.text
    source = tmp_path / "source"
    shutil.copytree(FIXTURES / "v1_tiny", source)
    shutil.copy(prefix, source / "prefix_encoder.safetensors")
    model = loaded(source)
    model.save_pretrained(tmp_path / "b")
    assert model.engine.prefix.length == 8
    assert torch.equal(loaded(tmp_path / "b")(IDS).logits, model(IDS).logits)
    loaded(source, prefix="none").save_pretrained(tmp_path / "c")
    assert loaded(tmp_path / "c").engine.prefix is None


def test_other_processes_write_nothing_and_other_options_are_refused(tmp_path):
    model = loaded(FIXTURES / "v1_tiny")
    model.save_pretrained(tmp_path / "a", is_main_process=False)
    assert not (tmp_path / "a").exists()
    for options in ({"variant": "fp16"}, {"push_to_hub": True}):
        with pytest.raises(InputError, match="leave them out"):
            model.save_pretrained(tmp_path / "a", **options)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another folder"):
        model.save_pretrained(tmp_path / "file")


def test_a_training_goes_on_from_its_checkpoint(tmp_path):
    pytest.importorskip("accelerate", reason="needs accelerate: pip install accelerate")
    from transformers import Trainer, TrainingArguments

    ids = torch.tensor([5, 6, 141, 144, 7, 9, 145])
    data = [{"input_ids": ids, "labels": ids}] * 4

    def trained(resume):
        model = loaded(FIXTURES / "v1_tiny").requires_grad_(True)
        settings = {"max_steps": 4, "save_steps": 2, "report_to": [], "use_cpu": True, "disable_tqdm": True}
        arguments = TrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=1, **settings)
        Trainer(model=model, args=arguments, train_dataset=data).train(resume_from_checkpoint=resume)
        return model(IDS).logits

    assert torch.equal(trained(None), trained(str(tmp_path / "checkpoint-2")))
