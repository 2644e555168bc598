"""The official quantized checkpoints: read, written, and re-written in our format."""

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import glm_int4
from glm_int4.checkpoint.formats import layout
from glm_int4.checkpoint.formats.official import from_official, to_official
from glm_int4.checkpoint.opening import open_checkpoint, read_weight
from glm_int4.errors import CheckpointError, ConfigError, InputError
from glm_int4.generation.sampling import SamplingParams
from glm_int4.models.config_file import parse_config
from glm_int4.quantization.cpu.integer import IntegerMatrix
from glm_int4.quantization.gpu.matrix import ReferenceMatrix
from glm_int4.quantization.rounding.rtn import dequantize
from tests.conftest import FIXTURES
from tests.tolerances import INT16_RELATIVE_RMS, ORACLE_ABSOLUTE, relative_rms

GREEDY = SamplingParams(temperature=0)
KINDS = [(v, q) for v in ("v1", "v2", "v3") for q in ("int4", "int8", "int4_qe") if v == "v1" or q != "int4_qe"]
IDS = [f"{v}-{q}" for v, q in KINDS]
# The input whose logits the official code computed.
CASE = {"v1": "gmask_with_answer", "v2": "long", "v3": "long"}
PROMPT = {"v1": "gmask_prompt", "v2": "prompt", "v3": "prompt"}


@pytest.fixture(params=KINDS, ids=IDS)
def kind(request):
    return request.param


def folder_of(version, quantized):
    return FIXTURES / f"{version}_tiny_{quantized}"


def load(folder, version, **options):
    return glm_int4.load(folder, device="cpu", model_version=version[1], **{"dtype": torch.float32, **options})


def ids_of(version, case):
    return load_file(FIXTURES / f"{version}_tiny" / "cases.safetensors")[f"{case}.input_ids"][0].tolist()


def expected_of(version):
    return load_file(FIXTURES / f"{version}_tiny" / "quant_cases.safetensors")


def test_logits_and_greedy_tokens_are_the_official_ones(kind):
    version, quantized = kind
    engine, expected = load(folder_of(*kind), version), expected_of(version)
    logits = engine.logits(ids_of(version, CASE[version]))
    expected_logits = expected[f"{quantized}.float.{CASE[version]}.logits"]
    torch.testing.assert_close(logits, expected_logits, atol=ORACLE_ABSOLUTE, rtol=0)
    greedy = expected[f"{quantized}.float.greedy"][0].tolist()
    assert engine.generate(ids_of(version, PROMPT[version]), len(greedy), GREEDY, stop_ids=[]) == greedy


def test_weights_rounded_to_half_precision_give_the_official_gpu_logits(kind):
    version, quantized = kind
    engine, expected = load(folder_of(*kind), version), expected_of(version)
    for module in engine.model.modules():
        if isinstance(module, ReferenceMatrix):
            bias = 0 if module.bias is None else module.bias
            module.forward = lambda x, m=module, b=bias, **_: x @ m.dequantize(slice(None)).half().float().T + b
            dequantize = module.dequantize
            module.dequantize = lambda rows, d=dequantize: d(rows).half().float()
    logits = engine.logits(ids_of(version, CASE[version]))
    expected_logits = expected[f"{quantized}.half.{CASE[version]}.logits"]
    torch.testing.assert_close(logits, expected_logits, atol=ORACLE_ABSOLUTE, rtol=0)


def test_dequantized_weights_are_the_official_ones_bit_for_bit(kind):
    version, quantized = kind
    reader, info = open_checkpoint(folder_of(*kind), version[1])
    expected = expected_of(version)
    shape = tuple(expected[f"{quantized}.example_dequant_float"].shape)
    found = 0
    for name, matrix in layout.matrices(info.config).items():
        if info.schemes[name] is None or (matrix.out_features, matrix.in_features) != shape:
            continue
        weights = ReferenceMatrix(read_weight(reader, info, matrix)).dequantize(slice(None))
        if torch.equal(weights, expected[f"{quantized}.example_dequant_float"]):
            assert torch.equal(weights.half(), expected[f"{quantized}.example_dequant_half"])
            found += 1
    assert found == 1


def test_the_fast_path_of_a_cpu_takes_these_checkpoints(kind):
    version, _ = kind
    exact, fast = load(folder_of(*kind), version), load(folder_of(*kind), version, dtype=None)
    ids = ids_of(version, CASE[version])
    a, b = exact.logits(ids).softmax(-1), fast.logits(ids).softmax(-1)
    assert (a - b).abs().max() < 0.15  # 16-bit inputs; the tiny models' logits reach 20
    if fast.setup.backend == "integer":
        assert any(isinstance(module, IntegerMatrix) for module in fast.model.modules())


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_that_are_no_multiple_of_4_weights_load(bits, tmp_path):
    raw = json.loads((FIXTURES / "v2_tiny" / "config.json").read_text()) | {"ffn_hidden_size": 214}
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text(json.dumps(raw))
    config, generator = parse_config(raw), torch.Generator().manual_seed(0)
    shapes = layout.vectors(config) | {
        f"{m.name}.weight": (m.out_features, m.in_features) for m in layout.matrices(config).values()
    }
    tensors = {name: torch.randn(shape, generator=generator).mul(0.3).half() for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "half" / "model.safetensors")
    glm_int4.quantize_checkpoint(tmp_path / "half", tmp_path / "official", bits=bits, format="official")
    reader, info = open_checkpoint(tmp_path / "official")
    plain = {
        f"{name}.weight": dequantize(read_weight(reader, info, matrix))
        for name, matrix in layout.matrices(config).items()
        if info.schemes[name] is not None
    }
    (tmp_path / "plain").mkdir()
    shutil.copy(tmp_path / "half" / "config.json", tmp_path / "plain")
    save_file(
        {name: plain.get(name, tensor).float() for name, tensor in tensors.items()},
        tmp_path / "plain" / "model.safetensors",
    )
    ids = list(range(3, 40))
    expected = load(tmp_path / "plain", "v2").logits(ids)
    torch.testing.assert_close(load(tmp_path / "official", "v2").logits(ids), expected, atol=ORACLE_ABSOLUTE, rtol=0)
    fast = load(tmp_path / "official", "v2", dtype=None).logits(ids)
    assert relative_rms(fast, expected) < 20 * INT16_RELATIVE_RMS


@pytest.mark.parametrize("bits", [4, 8])
def test_byte_orders_convert_back_and_forth_for_every_byte(bits):
    every = torch.arange(256, dtype=torch.uint8).view(torch.int8)[None]
    assert torch.equal(to_official(from_official(every, bits), bits), every)
    if bits == 4:  # even k in the high nibble, two's complement: 0x1F is 1 and -1
        assert from_official(torch.tensor([[0x1F]], dtype=torch.uint8).view(torch.int8), 4).item() == (7 << 4) | 9


@pytest.mark.parametrize(("version", "quantized"), KINDS, ids=IDS)
def test_the_written_tensors_are_bit_equal_to_the_official_ones(version, quantized, tmp_path):
    out = tmp_path / "out"
    report = glm_int4.quantize_checkpoint(
        FIXTURES / f"{version}_tiny",
        out,
        bits=int(quantized[3]),
        format="official",
        quantize_embeddings=quantized.endswith("qe"),
        model_version=version[1],
    )
    assert (report.method, report.group_size) == ("official", "channel")
    written = {}
    for shard in out.glob("*.safetensors"):
        written |= load_file(shard)
    expected = load_file(folder_of(version, quantized) / "model.safetensors")
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        assert written[name].dtype == tensor.dtype, name
        assert torch.equal(written[name], tensor), name
    config = json.loads((out / "config.json").read_text())
    original = json.loads((FIXTURES / f"{version}_tiny" / "config.json").read_text())
    added = {"quantization_bit": int(quantized[3])}
    assert config == original | added | ({"quantization_embeddings": True} if quantized.endswith("qe") else {})
    ids = ids_of(version, CASE[version])
    assert torch.equal(load(out, version).logits(ids), load(folder_of(version, quantized), version).logits(ids))


def test_odd_rows_are_rounded_without_wrapping(tmp_path, tiny_folder, edit_tensors):
    name = "transformer.layers.0.attention.dense.weight"

    def change(tensors):
        tensors[name][0] = 0
        tensors[name][1] = 6e-8  # a subnormal whose scale is zero in half precision
        tensors[name][2] = 1e-5 * torch.linspace(-1, 1, 64)

    edit_tensors(change)
    for bits in (4, 8):
        glm_int4.quantize_checkpoint(tiny_folder, tmp_path / str(bits), bits=bits, format="official")
        reader, info = open_checkpoint(tmp_path / str(bits))
        matrix = layout.matrices(info.config)[name.removesuffix(".weight")]
        rows = ReferenceMatrix(read_weight(reader, info, matrix)).dequantize(slice(None))[:3]
        assert torch.isfinite(rows).all()
        assert (rows[0] == 0).all()
        assert (rows - load_file(tiny_folder / "model.safetensors")[name][:3].float()).abs().max() < 1e-5


def test_an_official_checkpoint_is_rewritten_in_our_format_without_rounding_again(kind, tmp_path):
    version, quantized = kind
    bits, out = int(quantized[3]), tmp_path / "out"
    head_bits = None if quantized == "int4_qe" else 16
    report = glm_int4.quantize_checkpoint(
        folder_of(*kind), out, bits=bits, model_version=version[1], head_bits=head_bits
    )
    assert report.method == "kept"
    linears = [layer for layer in report.layers if layer.kind not in ("embedding", "head", "embedding + head")]
    assert all((layer.bits, layer.group_size, layer.rel_error) == (bits, "channel", 0.0) for layer in linears)
    ours, theirs = load(out, version), load(folder_of(*kind), version)
    assert not ours.info.official
    ids = ids_of(version, CASE[version])
    assert torch.equal(ours.logits(ids), theirs.logits(ids))
    assert "quantization_bit" not in json.loads((out / "config.json").read_text())


def test_the_half_precision_head_of_an_official_checkpoint_is_quantized_unless_told_otherwise(tmp_path):
    glm_int4.quantize_checkpoint(folder_of("v2", "int4"), tmp_path / "out", bits=4)
    _, info = open_checkpoint(tmp_path / "out")
    assert info.schemes["transformer.output_layer"].bits == 8
    assert info.linear_scheme.bits == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 8}, "expected --bits 4, which the weights"),
        ({"bits": 4, "group_size": 64}, "quantized per channel, got 64"),
        ({"bits": 4, "format": "official"}, "expected a half-precision checkpoint"),
    ],
)
def test_what_would_need_a_second_rounding_is_refused(options, message, tmp_path):
    with pytest.raises((InputError, CheckpointError), match=message):
        glm_int4.quantize_checkpoint(folder_of("v1", "int4"), tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_a_quantized_embedding_is_kept_and_other_bits_refused(tmp_path):
    with pytest.raises(InputError, match="expected --head-bits 4, which the embedding"):
        glm_int4.quantize_checkpoint(folder_of("v1", "int4_qe"), tmp_path / "out", head_bits=16)


def test_a_resumed_run_may_spell_out_what_was_the_default(tmp_path):
    source = FIXTURES / "v2_tiny"
    options = {"bits": 8, "max_shard_bytes": 1 << 14}
    first = glm_int4.quantize_checkpoint(source, tmp_path / "out", **options)
    options |= {"head_bits": 8, "group_size": "channel", "model_version": "2", "symmetric": True}
    assert glm_int4.quantize_checkpoint(source, tmp_path / "out", resume=True, **options) == first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "gguf"}, "expected the format compressed-tensors or official"),
        ({"format": "official", "group_size": 128}, "which has no groups"),
        ({"format": "official", "head_bits": 8}, "expected no --head-bits 8"),
        ({"format": "official", "vllm": True}, "expected no --vllm"),
        ({"quantize_embeddings": True}, "expected --format official"),
        ({"vllm": True}, "which vLLM does not run"),
        ({"vllm": True, "head_bits": 8}, "expected head bits 16 for vLLM"),
    ],
)
def test_options_that_contradict_each_other_are_named(options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        glm_int4.quantize_checkpoint(FIXTURES / "v1_tiny", tmp_path / "out", **options)


def test_only_the_first_version_has_a_layout_with_quantized_embeddings(tmp_path):
    with pytest.raises(InputError, match="expected ChatGLM-6B with --quantize-embeddings"):
        glm_int4.quantize_checkpoint(
            FIXTURES / "v2_tiny", tmp_path / "out", format="official", quantize_embeddings=True
        )


@pytest.fixture
def copy(tmp_path):
    """A copy of an official INT4 checkpoint that a test may damage."""
    folder = tmp_path / "copy"
    shutil.copytree(folder_of("v2", "int4"), folder)
    return folder


def edit(folder, *, config=None, tensors=None):
    if config:
        raw = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))
    if tensors:
        state = load_file(folder / "model.safetensors")
        tensors(state)
        save_file(state, folder / "model.safetensors")


def test_a_quantized_config_without_scales_is_named(copy):
    shutil.copy(FIXTURES / "v2_tiny" / "model.safetensors", copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"query_key_value.weight_scale in .* has quantization_bit 4"):
        open_checkpoint(copy)


def test_one_missing_scale_is_named(copy):
    edit(copy, tensors=lambda state: state.pop("transformer.encoder.layers.1.mlp.dense_4h_to_h.weight_scale"))
    with pytest.raises(CheckpointError, match=r"1.mlp.dense_4h_to_h.weight_scale .*\(1 layers have no scales\)"):
        open_checkpoint(copy)


@pytest.mark.parametrize(("quantized", "bits"), [("int4", 4), ("int8", 8)])
def test_scales_without_a_quantized_config_are_named(quantized, bits, tmp_path):
    shutil.copytree(folder_of("v2", quantized), tmp_path / "copy")
    edit(tmp_path / "copy", config={"quantization_bit": None})
    with pytest.raises(CheckpointError, match=f'or add "quantization_bit": {bits}'):
        open_checkpoint(tmp_path / "copy")


def test_other_bits_than_the_config_says_are_a_shape_error(copy):
    edit(copy, config={"quantization_bit": 8})
    with pytest.raises(CheckpointError, match="mis-shaped"):
        open_checkpoint(copy)


@pytest.mark.parametrize("value", [3, "4", True, [4], 4.0])
def test_bits_that_do_not_exist_are_named(copy, value):
    edit(copy, config={"quantization_bit": value})
    with pytest.raises(ConfigError, match="expected quantization_bit 4, 8 or none"):
        open_checkpoint(copy)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_scales_that_make_no_sense_are_named(copy, value):
    name = "transformer.encoder.layers.0.self_attention.dense.weight_scale"
    edit(copy, tensors=lambda state: state[name].__setitem__(3, value))
    with pytest.raises(CheckpointError, match=f"finite scales (of 0 or more )?in {name}"):
        load(copy, "v2")


def test_a_base_model_that_is_chatted_with_is_warned_of(copy, caplog):
    caplog.set_level(logging.WARNING)
    edit(copy, config={"_name_or_path": "THUDM/chatglm3-6b-base"})
    _, info = open_checkpoint(copy)
    assert info.is_base
