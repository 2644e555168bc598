"""The measurements of ``glm-int4 bench``, on models of any size."""

import json
from types import SimpleNamespace

import pytest
import torch

from glm_int4.checkpoint.build import resident_bytes
from glm_int4.checkpoint.formats import layout
from glm_int4.errors import InputError
from glm_int4.measuring import bandwidth, speed, timing
from glm_int4.measuring.random_weights import open_random
from glm_int4.measuring.speed import (
    BenchSettings,
    UnfinishedError,
    bench,
    random_engine,
    weight_bytes_per_step,
)
from glm_int4.measuring.timing import FilledDecoder, random_row
from glm_int4.models.config_file import parse_config
from glm_int4.models.kv_cache import kv_bytes_per_token
from glm_int4.models.presets import CONFIGS
from glm_int4.system import free_bytes
from tests.conftest import FIXTURES, MINI

QUICK = BenchSettings(prefill=(8, 16), batches=(1, 3), contexts=(20,))
# Small enough to be made in no time, of the shapes' proportions.
SMALL = {
    "1": CONFIGS["chatglm-6b"]
    | {"hidden_size": 256, "inner_hidden_size": 1024, "num_attention_heads": 4, "vocab_size": 130528 // 32}
    | {name: 100 + i for i, name in enumerate(("bos_token_id", "eos_token_id", "gmask_token_id", "mask_token_id"))},
    "3": CONFIGS["chatglm3-6b"]
    | {
        "hidden_size": 256,
        "ffn_hidden_size": 384,
        "num_attention_heads": 4,
        "kv_channels": 64,
        "padded_vocab_size": 512,
    },
}


@pytest.fixture(autouse=True)
def small_bandwidth(monkeypatch):
    monkeypatch.setattr(bandwidth, "CPU_BYTES", 1 << 22)


class SmallCard:
    """Stands for torch on a GPU with so much free memory, of which not all may be had."""

    def __init__(self, free, granted):
        self.free, self.granted, self.taken, self.sizes = free, granted, 0, []
        self.uint8, self.OutOfMemoryError, self.cuda = torch.uint8, torch.OutOfMemoryError, self
        self.L2_cache_size = 32 << 20

    def empty(self, size, dtype=None, device=None):
        if self.taken + size > self.granted:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes")
        self.taken += size
        self.sizes.append(size)
        return SimpleNamespace(copy_=lambda source: None, size=size)

    def empty_like(self, tensor):
        return self.empty(tensor.size)

    def empty_cache(self):
        self.taken = 0

    def get_device_properties(self, device):
        return self

    def Event(self, enable_timing):  # noqa: N802 (torch's name)
        return SimpleNamespace(record=lambda: None, synchronize=lambda: None, elapsed_time=lambda end: 1.0)


@pytest.mark.parametrize(
    ("free", "granted", "size"),
    [
        (80 << 30, 80 << 30, 1 << 30),
        (1600 << 20, 1600 << 20, 400 << 20),  # beside a model on a card of 6 GB
        (1600 << 20, 500 << 20, 200 << 20),  # what is free need not be in one piece
        (1600 << 20, 200 << 20, None),  # what would be left is little more than the cache
        (300 << 20, 300 << 20, None),
    ],
)
def test_the_bandwidth_is_measured_in_the_memory_that_is_free(monkeypatch, free, granted, size):
    card = SmallCard(free, granted)
    monkeypatch.setattr(bandwidth, "torch", card)
    monkeypatch.setattr(bandwidth, "free_bytes", lambda device: card.free, raising=False)
    rate = bandwidth.measure_bandwidth(torch.device("cuda"))
    assert rate == (2 * size / 1e-3 if size else 0)
    if size:
        assert card.sizes[-2:] == [size, size]
    assert card.taken == 0


def test_on_a_cpu_too_the_bandwidth_leaves_half_of_what_is_free(monkeypatch):
    sizes, ones = [], torch.ones
    monkeypatch.setattr(torch, "ones", lambda count, **options: sizes.append(4 * count) or ones(count, **options))
    monkeypatch.setattr(bandwidth, "LEAST_BYTES", 1 << 18)
    monkeypatch.setattr(bandwidth, "free_bytes", lambda device: 1 << 20, raising=False)
    assert bandwidth.measure_bandwidth(torch.device("cpu")) > 0
    monkeypatch.setattr(bandwidth, "free_bytes", lambda device: 1 << 18)
    assert bandwidth.measure_bandwidth(torch.device("cpu")) == 0
    assert sizes == [1 << 19]


def test_blocks_that_torch_keeps_count_as_free(monkeypatch):
    kept = [3 << 30]
    monkeypatch.setattr(torch.cuda, "empty_cache", kept.clear)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: ((4 << 30) - sum(kept), 6 << 30))
    assert free_bytes(torch.device("cuda")) == 4 << 30


def run_out(*arguments):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_what_memory_does_not_suffice_for_is_left_out_and_the_rest_measured(monkeypatch):
    real, lines = timing.FilledDecoder.new_cache, []

    def new_cache(decoder, batch_size, length):
        return run_out() if batch_size == 3 else real(decoder, batch_size, length)

    monkeypatch.setattr(timing.FilledDecoder, "new_cache", new_cache)
    settings = BenchSettings(prefill=(8,), batches=(1, 3, 2), contexts=(20,))
    result = bench(FIXTURES / "v2_tiny", device="cpu", settings=settings, report=lines.append)
    assert [row["batch"] for row in result["decode"]] == [1, 2]
    assert "decoding 3 x 20 tokens left out: memory ran out" in lines


def test_a_prompt_that_memory_does_not_suffice_for_is_left_out(monkeypatch):
    read = timing.Decoder.prefill
    monkeypatch.setattr(
        timing.Decoder, "prefill", lambda self, batch, s: run_out() if batch.num_tokens == 16 else read(self, batch, s)
    )
    result = bench(FIXTURES / "v2_tiny", device="cpu", settings=QUICK, report=lambda line: None)
    assert [row["tokens"] for row in result["prefill"]] == [8]
    assert len(result["decode"]) == 2


@pytest.mark.parametrize("fault", [RuntimeError("CUDA error: an illegal instruction"), KeyboardInterrupt()])
def test_what_was_measured_before_a_fault_is_not_lost(monkeypatch, fault):
    measure, calls = bandwidth.measure_bandwidth, []

    def once(device):
        calls.append(device)
        if len(calls) == 2:
            raise fault
        return measure(device)

    monkeypatch.setattr(bandwidth, "measure_bandwidth", once)
    with pytest.raises(UnfinishedError) as caught:
        bench(FIXTURES / "v2_tiny", device="cpu", settings=QUICK, report=lambda line: None)
    assert caught.value.__cause__ is fault
    result = caught.value.result
    assert [len(result[part]) for part in ("prefill", "decode")] == [2, 2]
    assert all(row["share_of_bandwidth"] > 0 for row in result["decode"])
    assert result["peak_bytes"] > 0


def test_the_command_prints_what_was_measured_and_then_the_fault(monkeypatch, capsys):
    from glm_int4.cli.main import main

    def fail(*arguments):
        raise RuntimeError("CUDA error: an illegal instruction")

    monkeypatch.setattr(speed, "_decode", fail)
    words = ["bench", str(FIXTURES / "v2_tiny"), "--device", "cpu", "--prefill", "8", "--json"]
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 1
    printed = capsys.readouterr()
    assert [row["tokens"] for row in json.loads(printed.out)["prefill"]] == [8]
    assert "CUDA error: an illegal instruction" in printed.err.splitlines()[-1]


@pytest.mark.parametrize(("model", "bits"), [("v2_tiny", 16), ("v3_tiny_int8", 8), ("v1_tiny_int4_qe", 4)])
def test_the_figures_of_a_checkpoint(model, bits):
    lines = []
    result = bench(FIXTURES / model, device="cpu", settings=QUICK, report=lines.append)
    assert list(result) == [
        "model", "bits", "device", "threads", "load_s", "prefill", "prefill_changing", "decode", "bandwidth_gb_s",
        "peak_bytes",
    ]  # fmt: skip
    assert (result["bits"], result["device"]) == (bits, "cpu")
    assert [row["tokens"] for row in result["prefill"]] == [8, 16]
    assert all(row["ttft_ms"] * row["tokens_per_s"] == pytest.approx(1e3 * row["tokens"]) for row in result["prefill"])
    assert result["prefill_changing"]["tokens"] == [7, 6, 5, 4, 3]
    assert result["prefill_changing"]["tokens_per_s"] > 25 / (5 * result["prefill_changing"]["slowest_ttft_ms"] / 1e3)
    assert [(row["batch"], row["context"]) for row in result["decode"]] == [(1, 20), (3, 20)]
    for row in result["decode"]:
        share = row["bytes_per_token"] * row["tokens_per_s"] / result["bandwidth_gb_s"] / 1e9
        assert row["share_of_bandwidth"] == pytest.approx(share)
        assert list(row) == ["batch", "context", "tokens_per_s", "bytes_per_token", "share_of_bandwidth"]
    assert result["peak_bytes"] > 50e6
    assert len(lines) == 7
    assert lines[4].startswith("prompts of 3 to 7 tokens: ")


def test_prompts_of_changing_lengths_show_what_every_new_shape_costs(monkeypatch):
    """As a library does that makes a plan for a shape when it meets it: prompts of one length hide that."""
    engine = random_engine("small", SMALL["3"] | {"num_layers": 1}, 4, torch.device("cpu"))
    met = set()

    def reading_time(engine, decoder, tokens, seed):
        seconds = 0.01 if tokens in met else 0.41
        met.add(tokens)
        return seconds

    monkeypatch.setattr(timing, "_reading_time", reading_time)
    settings = BenchSettings(prefill=(128,))
    steady = list(speed._prefill(engine, settings, str))
    changing = speed._prefill_changing(engine, steady, settings, str)
    assert steady[0]["ttft_ms"] == pytest.approx(10)
    assert changing["tokens"] == [118, 108, 98, 88, 78]
    assert changing["slowest_ttft_ms"] == pytest.approx(410)
    assert changing["tokens_per_s"] < steady[0]["tokens_per_s"] / 20
    assert speed._prefill_changing(engine, [], settings, str) is None


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("version", SMALL)
def test_random_weights_have_the_shapes_and_answer_with_numbers(version, bits):
    engine = random_engine("small", SMALL[version] | {"num_layers": 2}, bits, torch.device("cpu"))
    logits = engine.logits(random_row(engine, 12, seed=0))
    assert logits.shape == (1, 12, engine.config.vocab_size)
    assert logits.isfinite().all()
    assert 0.1 < logits.std() < 10
    scheme = engine.info.linear_scheme
    assert (scheme.bits if scheme else 16) == bits
    total = resident_bytes(engine.info, engine.setup)
    skipped = 0
    if version == "3":
        embedding = layout.embedding(engine.config)
        rows = engine.model.transformer.embedding.word_embeddings
        skipped = sum(t.nbytes for t in (*rows.parameters(), *rows.buffers()))
        assert skipped >= embedding.out_features * embedding.in_features
    assert weight_bytes_per_step(engine) == pytest.approx(total - skipped, rel=0.01)


def test_the_presets_are_the_official_configs():
    assert [parse_config(raw).version for raw in CONFIGS.values()] == ["1", "2", "3", "4"]
    reader, info = open_random("chatglm-6b", CONFIGS["chatglm-6b"], 4, torch.device("cpu"))
    assert sum(pool.nbytes for pool in reader._pools.values()) < 1e8
    assert 3.4e9 < info.weight_bytes < 3.5e9  # what quantizing the real one writes


def test_bits_that_the_checkpoint_has_not_get_random_weights(mini_int4):
    lines = []
    result = bench(MINI, bits=8, device="cpu", settings=QUICK, report=lines.append)
    assert result["bits"] == 8
    assert "the checkpoint has 16 bits: random weights of its shapes instead" in lines
    lines.clear()
    assert bench(mini_int4, bits=4, device="cpu", settings=QUICK, report=lines.append)["bits"] == 4
    assert len(lines) == 7


def test_what_does_not_fit_is_left_out_and_said(monkeypatch):
    lines = []
    settings = BenchSettings(prefill=(8, 4096), batches=(1, 4), contexts=(16, 4096))
    monkeypatch.setattr(speed, "free_bytes", lambda device: 2 * 17 * kv_bytes_per_token(2, 2, 16, torch.float16))
    result = bench(FIXTURES / "v3_tiny", device="cpu", settings=settings, report=lines.append)
    assert [row["tokens"] for row in result["prefill"]] == [8]
    assert [(row["batch"], row["context"]) for row in result["decode"]] == [(1, 16)]
    left_out = [line for line in lines if "left out" in line]
    assert len(left_out) == 4
    assert "the model was made for 128" in left_out[0]
    assert "its cache takes" in left_out[2]


def test_a_prompt_that_would_take_too_long_is_left_out():
    lines = []
    settings = BenchSettings(prefill=(8, 64), batches=(), contexts=(), seconds=1e-6)
    result = bench(FIXTURES / "v2_tiny", device="cpu", settings=settings, report=lines.append)
    assert [row["tokens"] for row in result["prefill"]] == [8]
    assert any("give --seconds to wait for it" in line for line in lines)


def test_a_filled_cache_is_as_long_as_the_prompts_and_finite(tiny):
    from glm_int4.generation.padded_batch import Batch
    from glm_int4.generation.sampling import Sampler, SamplingParams

    decoder = FilledDecoder(tiny.model, tiny.setup, 40)
    batch = Batch(tiny.model, [random_row(tiny, 30, seed=0)], tiny.device)
    sampler = Sampler(SamplingParams(temperature=0), "1")
    assert len(list(decoder.stream(batch, 5, sampler, frozenset()))) == 5
    assert decoder._kept.cache.length == 34


def test_bits_that_do_not_exist_are_refused():
    with pytest.raises(InputError, match="expected bits 4, 8 or 16, got 5"):
        open_random("x", CONFIGS["chatglm-6b"], 5, torch.device("cpu"))
