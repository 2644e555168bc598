"""Train a prefix on the mini model in INT4 and write down what it learnt, and what that took.

python -m benchmarks.speed.ptuning --work FOLDER --json benchmarks/results/ptuning.json

With --full-size DIR, an INT4 checkpoint of 6 billion parameters with its tokenizer, one step on that is measured too.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import glm_int4
from benchmarks.machine import EXAMPLES, MINI, PROGRAM, facts, parser, write

GREEDY = glm_int4.SamplingParams(temperature=0)
# Found by short runs; the official learning rate of 2e-2 learns the same in more steps.
SETTINGS: dict[str, Any] = {
    "pre_seq_len": 32,
    "learning_rate": 0.1,
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "max_steps": 600,
    "save_steps": 200,
}


def exact_share(model: Path, rows: list[dict[str, str]], prefix: Path | None = None) -> float:
    """Share of questions that are answered word for word, by greedy chat."""
    glm = glm_int4.load(model, device="cpu", prefix=prefix)
    answers = (glm.chat([{"role": "user", "content": row["content"]}], 60, GREEDY) for row in rows)
    return sum(answer == row["summary"] for answer, row in zip(answers, rows, strict=True)) / len(rows)


def full_size_step(model: Path, work: Path) -> dict[str, object]:
    """Time and memory of one step of one sample of 64 and 64 tokens, in a process of its own."""
    data, output = work / "one.json", work / "full-size"
    data.write_text(json.dumps([{"content": "天气" * 100, "summary": "晴朗" * 100}]), encoding="utf-8")
    command = [*PROGRAM, "ptune", "--model", model, "--train-file", data, "--output", output]
    options = "--pre-seq-len 128 --max-target-length 64 --max-steps 1 --gradient-accumulation-steps 1 --overwrite"
    result = subprocess.run(
        [*command, *options.split(), "--device", "cpu", "--json"], check=True, stdout=subprocess.PIPE
    )
    report = json.loads(result.stdout)
    keys = ("parameters", "seconds", "tokens_per_s", "planned_bytes", "peak_rss_bytes")
    return {"options": options} | {key: report[key] for key in keys}


def digest(folder: Path) -> str:
    """SHA-256 over all files of a folder."""
    sha = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        sha.update(path.read_bytes())
    return sha.hexdigest()


def main() -> None:
    """Train, and write what was learnt."""
    options = parser(__doc__)
    options.add_argument("--work", type=Path, required=True, help="folder for model, data and checkpoints")
    options.add_argument("--full-size", type=Path)
    arguments = options.parse_args()
    model, data, output = (arguments.work / name for name in ("mini-int4", "data", "ptuned"))
    glm_int4.quantize_checkpoint(MINI, model, bits=4, overwrite=True)
    subprocess.run([sys.executable, EXAMPLES / "ptuning" / "make_data.py", data], check=True)
    rows = [json.loads(line) for line in (data / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    before = digest(model)
    exact_before = exact_share(model, rows)
    report = glm_int4.ptune(
        model,
        data / "train.jsonl",
        output,
        eval_file=data / "test.jsonl",
        eval_greedy=True,
        overwrite=True,
        device="cpu",
        progress=lambda done, total, item: None if done % 50 else print(item, file=sys.stderr, flush=True),
        **SETTINGS,
    )
    log = [json.loads(line) for line in (output / "trainer_log.jsonl").read_text().splitlines()]
    result = {
        "command": "python -m benchmarks.speed.ptuning --work FOLDER",
        "model": "examples/mini-chatglm, INT4",
        "settings": SETTINGS,
        "parameters": report.parameters,
        "samples": report.samples,
        "questions": len(rows),
        "exact_before": exact_before,
        "exact_after": exact_share(model, rows, output),
        "seconds": report.seconds,
        "tokens_per_s": report.tokens_per_s,
        "loss": [{"step": entry["step"], "loss": entry["loss"]} for entry in log if entry["step"] % 100 == 0],
        "evaluation": report.evaluation,
        "model_unchanged": digest(model) == before,
        "prefix_bytes": (Path(report.checkpoint) / "prefix_encoder.safetensors").stat().st_size,
        "full_size": full_size_step(arguments.full_size, arguments.work) if arguments.full_size else None,
    }
    write(result | facts(), arguments.json)


if __name__ == "__main__":
    main()
