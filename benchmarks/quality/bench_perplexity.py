"""How much worse is a quantized model? Every method on one text, against the unquantized model.

pytest benchmarks/quality/bench_perplexity.py                                 the mini model
pytest benchmarks/quality/bench_perplexity.py --model DIR --text FILE --calibration FILE --results out.json

Each row quantizes the model and predicts every token of the text. Differences are taken token by token,
so that their standard errors are those of the difference; one of less than two of them counts as none.
The mini model computes in float32, so that only the weights differ; a larger one as it would be used. Questions
are answered as they would be in a chat.
"""

import json
import math
import time
from typing import Any

import pytest
import torch

import glm_int4
from benchmarks.machine import EXAMPLES, MINI
from benchmarks.report.tables import OFFICIAL
from glm_int4.checkpoint.formats import layout
from glm_int4.checkpoint.opening import open_checkpoint
from glm_int4.generation.scoring import MAX_WINDOW, score_tokens
from glm_int4.quantization.rounding import rtn
from glm_int4.text.text_file import read_text

GREEDY = glm_int4.SamplingParams(temperature=0)
NUM_QUESTIONS = 200
STRIDE = 512

# name: (method of the plot, options of quantize_checkpoint, options of load)
ROWS: dict[str, tuple[str, dict[str, Any] | None, dict[str, Any]]] = {
    "FP16": ("", None, {}),
    "FP16, INT8 cache": ("", None, {"kv_bits": 8}),
    "INT8": ("INT8", {"bits": 8}, {}),
    OFFICIAL: ("official", {"bits": 4, "format": "official"}, {}),
    **{f"RTN g{size}": ("RTN", {"group_size": size}, {}) for size in (128, 64, 32)},
    **{f"RTN g{n}, no clip search": ("RTN, no clip search", {"group_size": n}, {}) for n in (128, 64, 32)},
    **{f"HQQ g{size}": ("HQQ", {"method": "hqq", "group_size": size}, {}) for size in (128, 64, 32)},
    "GPTQ per channel": ("GPTQ", {"method": "gptq", "group_size": "channel"}, {}),
    **{f"GPTQ g{size}": ("GPTQ", {"method": "gptq", "group_size": size}, {}) for size in (128, 32)},
    "mixed, as large as RTN g128": ("mixed RTN", {"target_bits": 128}, {}),
    "mixed, as large as RTN g32": ("mixed RTN", {"target_bits": 32}, {}),
    "mixed GPTQ, as large as RTN g128": ("mixed GPTQ", {"target_bits": 128, "method": "gptq"}, {}),
    "RTN g128, INT8 cache": ("", {"group_size": 128}, {"kv_bits": 8}),
    "RTN g128, as computed on a CPU": ("", {"group_size": 128}, {"dtype": None}),
}


@pytest.fixture(scope="module")
def setting(request):
    """Paths, ids and the unquantized model."""
    option = request.config.getoption
    model, is_mini = option("--model"), option("--model") == MINI
    calibration = option("--calibration") or (EXAMPLES / "train_sample.txt" if is_mini else None)
    questions = option("--questions") or (EXAMPLES / "heldout.jsonl" if is_mini else None)
    lines = read_text(questions).rstrip("\n").split("\n")[:NUM_QUESTIONS] if questions else []
    options: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"} if is_mini else {}
    threads = torch.get_num_threads()
    if is_mini:
        torch.set_num_threads(1)
    reference = glm_int4.load(model, **options)
    text = read_text(option("--text"))
    yield {
        "model": model, "calibration": calibration, "questions": [json.loads(line) for line in lines],
        "options": options, "reference": reference, "ids": reference.tokenizer.encode(text),
    }  # fmt: skip
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def scored(write_results):
    """Rows so far, and the losses and divergences of their tokens."""
    rows: list[dict[str, Any]] = []
    tokens: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    yield rows, tokens
    write_results(__name__, rows)


@pytest.mark.parametrize("name", ROWS)
def test_quality(name, setting, scored, tmp_path, monkeypatch, benchmark):
    method, options, load_options = ROWS[name]
    row = {"name": name, "method": method}
    folder = setting["model"]
    if options is not None:
        if options.get("method") == "gptq" and setting["calibration"] is None:
            pytest.skip("needs --calibration")
        folder = tmp_path / "out"
        if name.endswith("no clip search"):
            monkeypatch.setattr(rtn, "CLIP_SHARES_GROUP", (1.0,))
        options = complete(options, setting, scored[0])
        started = time.process_time()
        report = benchmark.pedantic(
            glm_int4.quantize_checkpoint, (setting["model"], folder), options, rounds=1, iterations=1
        )
        row |= {"cpu_seconds": time.process_time() - started, "bits_per_weight": report.bits_per_weight}
        row["linear_bits"] = linear_bits(folder)
    else:
        benchmark.pedantic(lambda: None, rounds=1, iterations=1)
        row |= {"bits_per_weight": setting["reference"].info.bits_per_weight, "linear_bits": 16.0}
    engine = glm_int4.load(folder, **setting["options"] | load_options)
    row |= measure(name, engine, setting, scored[1])
    if setting["questions"]:
        engine = glm_int4.load(folder, device="cpu", kv_bits=load_options.get("kv_bits", 16))
        answers = [engine.chat(q["messages"], max_new_tokens=64, sampling=GREEDY) for q in setting["questions"]]
        right = [answer == q["answer"] for answer, q in zip(answers, setting["questions"], strict=True)]
        row |= {"accuracy": sum(right) / len(right), "questions": len(right)}
    scored[0].append(row)
    benchmark.extra_info.update(row)
    assert math.isfinite(row["perplexity"])


def complete(options, setting, rows):
    """Options with their texts, and the size of another row as a target."""
    options = dict(options)
    if "target_bits" in options:
        size = options["target_bits"]
        sizes = {row["name"]: row["bits_per_weight"] for row in rows}
        options["target_bits"] = sizes.get(f"RTN g{size}", {128: 4.5, 32: 4.95}[size])
    if "target_bits" in options or options.get("method") == "gptq":
        options["calibration"] = setting["calibration"]
    return options


def linear_bits(folder):
    """Bits per weight of the linear layers alone, as stored."""
    _, info = open_checkpoint(folder)
    linears = list(layout.linears(info.config))
    weights = sum(m.out_features * m.in_features for m in linears)
    return 8 * sum(info.stored_bytes[m.name] for m in linears) / weights


def measure(name, engine, setting, tokens):
    """Perplexity and divergence with their standard errors, and differences to other rows, token by token."""
    window = min(MAX_WINDOW, engine.max_length)
    stride = min(STRIDE, window)
    reference = setting["reference"]
    parts = list(score_tokens(engine, setting["ids"], window=window, stride=stride, reference=reference))
    losses, divergences, agreements = (
        torch.cat([getattr(part, key) for part in parts]) for key in ("losses", "divergences", "agreements")
    )
    tokens[name] = losses, divergences
    perplexity = math.exp(losses.mean().item())
    row = {
        "tokens": len(losses), "window": window, "stride": stride,
        "perplexity": perplexity, "standard_error": perplexity * error(losses),
        "kl": divergences.mean().item(), "kl_standard_error": error(divergences), "top1": agreements.mean().item(),
    }  # fmt: skip
    if "FP16" in tokens:
        row["loss_increase"] = difference(losses, tokens["FP16"][0])
    if OFFICIAL in tokens:
        row["kl_less_official"] = difference(divergences, tokens[OFFICIAL][1])
    return row


def difference(values, others):
    """Mean difference, its paired standard error, and whether it is beyond two of them."""
    mean, deviation = (values - others).mean().item(), error(values - others)
    return {"mean": mean, "standard_error": deviation, "counts": abs(mean) > 2 * deviation}


def error(values):
    """Standard error of a mean."""
    return values.std().item() / math.sqrt(len(values))
