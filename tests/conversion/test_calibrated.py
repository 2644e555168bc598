"""GPTQ and mixed precision over whole checkpoints: what they gain, go on from, and refuse."""

import json
import logging
from pathlib import Path

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig

import glm_int4
from glm_int4.checkpoint.formats import layout
from glm_int4.checkpoint.opening import open_checkpoint
from glm_int4.conversion.calibrated import gptq_pass, streamed_model
from glm_int4.conversion.calibrated.sequences import read_calibration, sample_sequences
from glm_int4.conversion.calibrated.streamed_model import Activations, StreamedModel
from glm_int4.conversion.mixed import choice
from glm_int4.conversion.mixed.choice import spend
from glm_int4.conversion.quantization_options import parse_size
from glm_int4.errors import CheckpointError, InputError, OutputError
from glm_int4.generation.scoring import measure
from tests.conftest import EXAMPLES, FIXTURES, MINI, TINY

TEXT = (EXAMPLES / "heldout.txt").read_text(encoding="utf-8")[:2400]
CALIBRATION = (EXAMPLES / "train_sample.txt").read_text(encoding="utf-8")[:11_000]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def little_text(monkeypatch):
    """Sensitivities of the mini model on 256 tokens, as those of large models."""
    monkeypatch.setattr(choice, "_SEQUENCES", 2)
    monkeypatch.setattr(choice, "_TOKENS", 128)


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text(CALIBRATION, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def gptq(tmp_path_factory, calibration):
    folder = tmp_path_factory.mktemp("gptq") / "out"
    glm_int4.quantize_checkpoint(MINI, folder, method="gptq", calibration=calibration, max_shard_bytes=700_000)
    return folder


def divergence(folder, mini):
    return measure(glm_int4.load(folder, device="cpu", dtype=torch.float32), TEXT, reference=mini).kl


def test_gptq_loses_less_than_half_of_what_rounding_loses(gptq, mini, mini_int4):
    assert divergence(gptq, mini) < 0.5 * divergence(mini_int4, mini)
    report = json.loads((gptq / "quantization_report.json").read_text())
    assert report["method"] == "gptq"
    assert report["bits"] == 4


def test_gptq_goes_on_after_an_interruption_to_the_same_bytes(gptq, calibration, tmp_path):
    options = {"method": "gptq", "calibration": calibration, "max_shard_bytes": 700_000, "resume": True}

    def stop(done, total, name):
        if name == "transformer.layers.3.mlp.dense_h_to_4h":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        glm_int4.quantize_checkpoint(MINI, tmp_path / "out", progress=stop, **options)
    assert len(list((tmp_path / "out.partial").glob("*.safetensors"))) == 2
    glm_int4.quantize_checkpoint(MINI, tmp_path / "out", **options)
    for path in sorted(gptq.glob("*.safetensors")):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


@pytest.mark.parametrize("version", ["2", "3"])
@pytest.mark.parametrize(
    "options", [{"group_size": 32}, {"bits": 8}, {"group_size": "channel", "symmetric": True}], ids=str
)
def test_gptq_quantizes_versions_2_and_3(small_checkpoints, calibration, tmp_path, version, options):
    text = tmp_path / "text.txt"
    text.write_text("你好 world the weather price 12 " * 60, encoding="utf-8")
    lines = []
    glm_int4.quantize_checkpoint(
        small_checkpoints[version], tmp_path / "g", method="gptq", calibration=text, announce=lines.append, **options
    )
    assert "will take about" in lines[0]
    glm_int4.quantize_checkpoint(small_checkpoints[version], tmp_path / "r", **options)
    reference, *engines = (
        glm_int4.load(folder, device="cpu", dtype=torch.float32)
        for folder in (small_checkpoints[version], tmp_path / "g", tmp_path / "r")
    )
    losses = [measure(engine, "the weather price 12 world 你好", reference=reference).kl for engine in engines]
    assert losses[0] < losses[1]


@pytest.mark.parametrize("options", [{"bits": 8, "symmetric": False}, {"bits": 4, "method": "hqq"}], ids=str)
def test_other_methods_and_int8_with_zero_points_load(tmp_path, mini, options):
    glm_int4.quantize_checkpoint(MINI, tmp_path / "out", **options)
    assert divergence(tmp_path / "out", mini) < 2e-3
    _, info = open_checkpoint(tmp_path / "out")
    assert not info.linear_scheme.symmetric
    assert glm_int4.load(tmp_path / "out", device="cpu").logits([5, 6]).isfinite().all()


def test_a_streamed_network_is_the_model(mini):
    reader, info = open_checkpoint(MINI)
    network = StreamedModel(reader, info)
    ids = [*mini.text_prefix, *mini.tokenizer.encode("法国的首都是巴黎。")]
    x = network.embed(ids)
    for index in range(info.config.num_layers):
        network.load_layer(index)
        x = network.run_layer(index, x, ids)
        network.drop_layer(index)
    expected = mini.hidden_states(ids)
    torch.testing.assert_close(network.normalize(x), expected, rtol=0.02, atol=0.02)  # half-precision rotary tables


def test_many_activations_lie_in_a_file(tmp_path, monkeypatch, gptq, calibration):
    monkeypatch.setattr(streamed_model, "MAX_ACTIVATION_BYTES", 1000)
    activations = Activations(tmp_path, 2000)
    assert activations.on_disk
    for i in range(3):
        activations[i] = torch.full((2, 5), float(i))
    activations[1] = torch.arange(10.0).view(2, 5)
    assert activations[0].unique().tolist() == [0]
    assert activations[1].flatten().tolist() == list(range(10))
    assert activations[2].unique().tolist() == [2]
    glm_int4.quantize_checkpoint(
        MINI, tmp_path / "out", method="gptq", calibration=calibration, max_shard_bytes=700_000
    )
    for path in sorted(gptq.glob("*.safetensors")):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


@pytest.mark.concurrency
def test_a_disk_that_has_no_room_for_activations_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(streamed_model, "MAX_ACTIVATION_BYTES", 1000)
    full = Path("/dev/full")
    monkeypatch.setattr(streamed_model.tempfile, "TemporaryFile", lambda dir: full.open("r+b"))
    for num_values in (500, 5000):  # fewer and more than a buffer holds
        activations = Activations(tmp_path, 4 * num_values)
        with pytest.raises(OutputError, match=f"for activations in {tmp_path}, got: No space left on") as caught:
            fill(activations, num_values)
        assert "\n" not in str(caught.value)


def fill(activations, num_values):
    for i in range(2):
        activations[i] = torch.zeros(num_values)
    return activations[0]


def test_the_estimate_grows_with_the_text(monkeypatch):
    config = open_checkpoint(MINI)[1].config
    monkeypatch.setattr(gptq_pass.time, "perf_counter", iter(range(100)).__next__)
    assert gptq_pass.estimated_seconds(config, 20_000) > 1.5 * gptq_pass.estimated_seconds(config, 10_000)


# --- mixed precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [{"target_bits": 4.6}, {"target_size": "4.2MB"}], ids=str)
def test_a_target_is_kept_and_nearly_used_up(tmp_path, calibration, mini, mini_int4, target):
    lines = []
    report = glm_int4.quantize_checkpoint(
        MINI, tmp_path / "out", calibration=calibration, announce=lines.append, **target
    )
    limit = target.get("target_bits", 4_200_000 * 8 / layout.num_parameters(mini.config))
    assert 0.98 * limit < report.bits_per_weight <= limit
    assert lines[-1].startswith("chose INT4")
    assert f"{report.bits_per_weight:.3f} bits per weight" in lines[-1]
    assert (report.bits, report.group_size) == ("mixed", "mixed")
    assert len({(layer.bits, layer.group_size) for layer in report.layers}) > 2
    assert all(layer.expected_kl > 0 for layer in report.layers)
    assert divergence(tmp_path / "out", mini) < divergence(mini_int4, mini)
    _, info = open_checkpoint(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    groups = QuantizationConfig.model_validate(config["quantization_config"]).config_groups
    for matrix in layout.linears(info.config):
        scheme = info.schemes[matrix.name]
        (weights,) = [group.weights for group in groups.values() if matrix.name in group.targets]
        assert (weights.num_bits, weights.group_size) == (scheme.bits, scheme.group_size)
    assert glm_int4.load(tmp_path / "out", device="cpu").logits([5, 6]).isfinite().all()


def test_a_target_works_without_text_and_without_tokenizer(tmp_path, caplog):
    report = glm_int4.quantize_checkpoint(TINY, tmp_path / "out", target_bits=7)
    assert report.bits_per_weight <= 7
    assert "random tokens" in caplog.text
    glm_int4.quantize_checkpoint(TINY, tmp_path / "out8", target_bits=8.2, head_bits=8)


def test_a_target_works_with_gptq(tmp_path, calibration):
    report = glm_int4.quantize_checkpoint(
        MINI, tmp_path / "out", target_bits=4.3, method="gptq", calibration=calibration
    )
    assert report.bits_per_weight <= 4.3
    assert report.method == "gptq"


def test_bytes_go_where_they_save_most():
    costs = {"a": [8.0, 4.0, 0.0], "b": [1.0, 0.9, 0.0]}
    sizes = {"a": [10, 20, 30], "b": [10, 20, 30]}
    assert spend(costs, sizes, 20) == {"a": 0, "b": 0}
    assert spend(costs, sizes, 30) == {"a": 1, "b": 0}
    assert spend(costs, sizes, 49) == {"a": 2, "b": 0}
    assert spend(costs, sizes, 60) == {"a": 2, "b": 2}


@pytest.mark.parametrize(
    ("size", "expected"), [("3.2GB", 3_200_000_000), ("900 mb", 900_000_000), (77, 77), ("1e6", 10**6)]
)
def test_sizes_are_read(size, expected):
    assert parse_size(size) == expected


# --- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "awq"}, "expected the method rtn, hqq or gptq, got 'awq'"),
        ({"method": "gptq"}, "expected --calibration FILE with --method gptq"),
        ({"calibration": "x.txt"}, "which needs no text"),
        ({"method": "hqq", "format": "official"}, "rounded as officially"),
        ({"format": "official", "symmetric": False}, "knows no zero points"),
        ({"target_bits": 4.5, "target_size": 10**9}, "got both"),
        ({"target_bits": 4.5, "group_size": 64}, "expected no --group-size with a target"),
        ({"target_bits": 4.5, "format": "official"}, "expected no --format official with a target"),
        ({"target_bits": float("nan")}, "target bits above 0"),
        ({"target_bits": 3.5}, "expected a target that a mix of INT4 and INT8 can reach, got 3.5"),
        ({"target_size": "1MB"}, "the smallest is --target-size"),
        ({"target_bits": 4.2, "head_bits": 16}, "may take fewer without --head-bits"),
        ({"target_size": "much"}, "expected a size like 3.2GB"),
        ({"target_size": "-5MB"}, "above 0"),
        ({"device": "tpu"}, "expected the device auto, cuda or cpu, got 'tpu'"),
    ],
)
def test_requests_that_cannot_be_met_are_named(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        glm_int4.quantize_checkpoint(MINI, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got an empty file"),
        (b" \n", "got an empty file"),
        ("太短了".encode(), "expected a calibration text of 32 x 510 tokens, or 510 at the least, got"),
        (b"\xff\xfe\x00", "expected UTF-8"),
        (b"PK\x03\x04" + bytes(900), "got a binary file"),
        (None, "No such file"),
    ],
)
def test_a_calibration_text_that_is_none_is_named(tmp_path, content, message):
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    for options in ({"method": "gptq"}, {"target_bits": 4.5}):
        with pytest.raises(InputError, match=message):
            glm_int4.quantize_checkpoint(MINI, tmp_path / "out", calibration=path, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [{"method": "gptq"}, {"target_bits": 4.5}, {"method": "hqq"}], ids=str)
def test_a_model_that_is_quantized_already_is_refused(tmp_path, calibration, mini_int4, options):
    if options != {"method": "hqq"}:
        options = options | {"calibration": calibration}
    for source in (mini_int4, FIXTURES / "v1_tiny_int4"):
        with pytest.raises(CheckpointError, match=r"expected a half-precision checkpoint .* quantized already"):
            glm_int4.quantize_checkpoint(source, tmp_path / "out", **options)


def test_gptq_without_a_tokenizer_is_refused(tmp_path, calibration):
    with pytest.raises(InputError, match=r"expected a tokenizer \(ice_text.model\)"):
        glm_int4.quantize_checkpoint(TINY, tmp_path / "out", method="gptq", calibration=calibration)


def test_a_short_text_is_taken_and_told(mini, calibration, caplog):
    calibration = read_calibration(calibration, mini.tokenizer, mini.config)
    assert 1 < len(calibration.sequences) < 32
    for ids in calibration.sequences:
        assert ids[:2] == mini.text_prefix
        assert len(ids) == 512
    few = sample_sequences(calibration, mini.tokenizer, mini.config, 2, 100)
    assert [len(ids) for ids in few] == [102, 102]
    with caplog.at_level(logging.WARNING):
        built_in = sample_sequences(None, mini.tokenizer, mini.config, 2, 100)
    assert [len(ids) for ids in built_in] == [102, 102]
    assert "built-in text" in caplog.text
