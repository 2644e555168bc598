"""Checkpoints as training programs and other tools leave them: read where that is safe, otherwise named."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import glm_int4
from glm_int4.checkpoint.opening import open_checkpoint
from glm_int4.errors import CheckpointError
from tests.conftest import FIXTURES, TINY

HEAD, EMBEDDING = "lm_head", "transformer.word_embeddings"
EXACT = {"device": "cpu", "dtype": torch.float32}
OFFICIAL = ("v1_tiny", "v1_tiny_int8", "v1_tiny_int4", "v1_tiny_int4_qe", "v2_tiny", "v2_tiny_int4")


@pytest.fixture
def changed(tmp_path):
    """A copy of a fixture whose tensors (a dictionary) or config a function has changed."""

    def change(fixture, edit=lambda tensors: tensors, file="model.safetensors", **config):
        folder = tmp_path / f"changed-{fixture}"
        folder.mkdir(exist_ok=True)
        raw = json.loads((FIXTURES / fixture / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps(raw))
        tensors = load_file(FIXTURES / fixture / "model.safetensors")
        tensors = edit(tensors) or tensors
        if file.endswith(".bin"):
            torch.save(tensors, folder / file)
        else:
            save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / file)
        return folder

    return change


def weights(folder):
    """Every parameter and buffer of the loaded model."""
    return glm_int4.load(folder, **EXACT, prefix="none").model.state_dict()


def assert_same_model(folder, fixture):
    found, expected = weights(folder), weights(FIXTURES / fixture)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def only_the_head(tensors):
    """What safetensors may keep of a tied matrix: its last name."""
    for part in ("weight", "weight_scale"):
        tensors.pop(f"{HEAD}.{part}", None)
        if f"{EMBEDDING}.{part}" in tensors:
            tensors[f"{HEAD}.{part}"] = tensors.pop(f"{EMBEDDING}.{part}")


@pytest.mark.parametrize("fixture", [name for name in OFFICIAL if name.startswith("v1")])
def test_tied_matrix_that_is_stored_as_the_head_alone(changed, fixture, tmp_path):
    folder = changed(fixture, only_the_head)
    assert_same_model(folder, fixture)
    bits = 8 if fixture.endswith("int8") else 4
    for source, output in ((folder, "ours"), (FIXTURES / fixture, "theirs")):
        glm_int4.quantize_checkpoint(source, tmp_path / output, bits=bits, group_size=None if "int" in fixture else 32)
    ours, theirs = (load_file(next((tmp_path / name).glob("*.safetensors"))) for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_tied_matrix_of_version_2_is_not_its_embedding(changed):
    def drop(tensors):
        tensors["lm_head.weight"] = tensors.pop("transformer.embedding.word_embeddings.weight")

    with pytest.raises(CheckpointError, match=r"missing transformer\.embedding\.word_embeddings\.weight"):
        glm_int4.load(changed("v2_tiny", drop), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("fixture", ["v1_tiny_int8", "v1_tiny_int4", "v1_tiny_int4_qe", "v2_tiny_int4"])
def test_scales_in_another_dtype_are_converted(changed, fixture, dtype):
    def convert(tensors):
        return {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}

    folder = changed(fixture, convert)
    found, expected = weights(folder), weights(FIXTURES / fixture)
    for name, tensor in expected.items():
        tolerance = 0 if dtype != torch.bfloat16 else 1e-2
        torch.testing.assert_close(found[name], tensor, rtol=tolerance, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scales_of_our_own_format_in_another_dtype_are_converted(changed, tmp_path, dtype):
    glm_int4.quantize_checkpoint(TINY, tmp_path / "ours", group_size=32)
    expected = weights(tmp_path / "ours")
    (file,) = (tmp_path / "ours").glob("*.safetensors")
    save_file({n: t.to(dtype) if t.is_floating_point() else t for n, t in load_file(file).items()}, file)
    found = weights(tmp_path / "ours")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0 if dtype == torch.float32 else 1e-2, atol=0)


BEYOND = "beyond its range"


@pytest.mark.parametrize(("value", "message"), [(1e6, BEYOND), (1e-12, BEYOND), (float("nan"), "finite scales")])
def test_scales_that_do_not_fit_float16_are_named(changed, value, message):
    name = "transformer.layers.0.attention.dense.weight_scale"

    def damage(tensors):
        tensors[name] = tensors[name].float()
        tensors[name][3] = value

    with pytest.raises(CheckpointError, match=message) as caught:
        glm_int4.load(changed("v1_tiny_int4", damage), **EXACT)
    assert name in str(caught.value)


def test_double_precision_weights_are_quantized_as_single(changed, tmp_path):
    for dtype in (torch.float32, torch.float64):
        folder = changed("v1_tiny", lambda tensors, dtype=dtype: {n: t.to(dtype) for n, t in tensors.items()})
        glm_int4.quantize_checkpoint(folder, tmp_path / str(dtype), group_size=32)
    single, double = (load_file(next((tmp_path / f"torch.float{b}").glob("*.safetensors"))) for b in (32, 64))
    assert all(torch.equal(single[name], double[name]) for name in single if "weight_packed" in name)


def renamed(before="", inside="", drop=""):
    def change(tensors):
        return {
            before + name.removeprefix(drop).replace(".weight", f".{inside}weight" if "query" in name else ".weight"): t
            for name, t in tensors.items()
        }

    return change


@pytest.mark.parametrize("fixture", OFFICIAL)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"before": "module."}, "module (data-parallel training)"),
        ({"before": "_orig_mod."}, "_orig_mod (torch.compile)"),
        ({"before": "model."}, "model (peft or a training framework)"),
        ({"before": "module._orig_mod."}, "module (data-parallel training), _orig_mod (torch.compile)"),
        ({"before": "base_model.model."}, "base_model (peft)"),
        ({"inside": "base_layer."}, "base_layer (peft)"),
        ({"inside": "original_module."}, "original_module (peft)"),
        ({"inside": "_fsdp_wrapped_module."}, "_fsdp_wrapped_module (FSDP)"),
        ({"drop": "transformer."}, None),
        ({"before": "model.", "drop": "transformer."}, "model (peft or a training framework)"),
    ],
    ids=str,
)
def test_the_prefix_of_a_training_program_is_taken_off_tensor_names(changed, fixture, words, said, caplog):
    assert_same_model(changed(fixture, renamed(**words)), fixture)
    assert said is None or f"without {said}" in caplog.text


def test_a_prefix_that_makes_two_tensors_one_is_refused(changed):
    def twice(tensors):
        tensors["module.transformer.final_layernorm.bias"] = torch.ones(64)

    with pytest.raises(CheckpointError, match="unwrapped"):
        glm_int4.load(changed("v1_tiny", twice), **EXACT)


QKV = "transformer.layers.0.attention.query_key_value"
FOREIGN = [
    (f"{QKV}.lora_A.default.weight", "merge them into the model first"),
    (f"{QKV}.lora_B.weight", "merge them into the model first"),
    (f"{QKV}.lora_magnitude_vector.default", "merge them into the model first"),
    (f"{QKV}.modules_to_save.default.weight", "peft trained these modules"),
    (f"{QKV}.SCB", "bitsandbytes quantized these weights"),
    (f"{QKV}.weight.absmax", "bitsandbytes quantized these weights"),
    (f"{QKV}.weight.quant_state.bitsandbytes__nf4", "bitsandbytes quantized these weights"),
    (f"{QKV}.qweight", "GPTQ or AWQ"),
    (f"{QKV}.g_idx", "GPTQ or AWQ"),
    (f"{QKV}.qzeros", "GPTQ or AWQ"),
    ("v_head.summary.weight", "reward model"),
    ("score.weight", "classifier"),
    ("transformer.colorama.weight", "do the config and the weights belong together"),  # holds "lora"
    ("transformer.submodule.weight", "do the config and the weights belong together"),  # holds "module."
]


@pytest.mark.parametrize(("name", "advice"), FOREIGN)
def test_tensors_of_another_program_are_refused_with_their_own_advice(changed, name, advice):
    with pytest.raises(CheckpointError) as caught:
        glm_int4.load(changed("v1_tiny", lambda tensors: tensors | {name: torch.zeros(2)}), **EXACT)
    assert advice in str(caught.value)


def test_base_layer_beside_lora_tensors_is_refused_with_a_word_about_adapters(changed):
    def wrap(tensors):
        tensors[f"{QKV}.base_layer.weight"] = tensors.pop(f"{QKV}.weight")
        tensors[f"{QKV}.lora_A.default.weight"] = torch.zeros(8, 64)

    with pytest.raises(CheckpointError, match="these are LoRA weights"):
        glm_int4.load(changed("v1_tiny", wrap), **EXACT)


def test_placeholders_of_zero_3_are_named(changed):
    with pytest.raises(CheckpointError, match=r"zero_to_fp32\.py"):
        glm_int4.load(changed("v1_tiny", lambda ts: {n: torch.zeros(0).half() for n in ts}), **EXACT)


@pytest.mark.parametrize("key", ["state_dict", "module", "model", "model_state_dict"])
def test_tensors_inside_of_a_training_programs_file_are_read(changed, key):
    def wrap(tensors):
        return {key: {f"model.{name}": t for name, t in tensors.items()}, "epoch": 3, "lr": [0.1], "note": "x"}

    assert_same_model(changed("v1_tiny", wrap, file="pytorch_model.bin"), "v1_tiny")


LEFT = {"quant_method": "bitsandbytes", "load_in_4bit": True}


@pytest.mark.parametrize("left", [LEFT, {"quant_method": "gptq", "bits": 4}, {"quant_method": "awq"}], ids=str)
def test_a_leftover_quantization_config_over_plain_weights_is_ignored_aloud(changed, left, caplog, tmp_path):
    folder = changed("v1_tiny", quantization_config=left)
    assert_same_model(folder, "v1_tiny")
    assert f"ignoring what config.json says of {left['quant_method']}" in caplog.text
    glm_int4.quantize_checkpoint(folder, tmp_path / "official", format="official")
    assert "quantization_config" not in json.loads((tmp_path / "official" / "config.json").read_text())
    glm_int4.load(tmp_path / "official", **EXACT)


def test_weights_that_bitsandbytes_has_quantized_are_named(changed):
    def quantize(tensors):
        tensors[f"{QKV}.weight"] = torch.zeros(192 * 32, 1, dtype=torch.uint8)
        tensors[f"{QKV}.weight.absmax"] = torch.zeros(192)

    with pytest.raises(CheckpointError, match="bitsandbytes quantized these weights"):
        open_checkpoint(changed("v1_tiny", quantize, quantization_config=LEFT))


@pytest.fixture(params=[0, 1], ids=["embedding", "projection"])
def with_prefix(request, changed, tmp_path):
    """A model and its P-Tuning prefix in one checkpoint, in one file or in shards; and the prefix alone."""
    prefix = load_file(TINY / f"prefix_proj{request.param}.safetensors")
    alone = tmp_path / "prefix.safetensors"
    save_file(prefix, alone)
    return changed(
        "v1_tiny", lambda tensors: tensors | prefix, pre_seq_len=8, prefix_projection=bool(request.param)
    ), alone


def shard(folder):
    """Store the tensors of a folder in two files and an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, some in parts.items():
        save_file({name: tensors[name] for name in some}, folder / file)
    index = {"weight_map": {name: file for file, some in parts.items() for name in some}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def logits(folder, **options):
    return glm_int4.load(folder, **EXACT, **options).logits([5, 6, 7, 8])


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "shards"])
def test_a_prefix_and_its_model_in_one_checkpoint(with_prefix, sharded, caplog, tmp_path):
    folder, alone = with_prefix
    if sharded:
        shard(folder)
    expected, plain = logits(TINY, prefix=alone), logits(TINY)
    assert not torch.equal(expected, plain)
    assert torch.equal(logits(folder), expected)
    assert "using the P-Tuning prefix of 8 columns" in caplog.text
    assert torch.equal(logits(folder, prefix="none"), plain)
    assert torch.equal(logits(TINY, prefix=folder), expected)
    for output_format in ("compressed-tensors", "official"):
        output = tmp_path / output_format
        glm_int4.quantize_checkpoint(
            folder, output, format=output_format, group_size=32 if output_format != "official" else None
        )
        bare = tmp_path / f"bare-{output_format}"
        shutil.copytree(output, bare)
        (bare / "prefix_encoder.safetensors").unlink()
        assert torch.equal(logits(output), logits(bare, prefix=alone))
        assert not torch.equal(logits(output), logits(bare))
