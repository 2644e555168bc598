"""Compare checkpoints: size, perplexity, accuracy on questions, speed.

python tools/compare.py examples/mini-chatglm mini-int4 --text examples/heldout.txt --questions examples/heldout.jsonl
"""

import argparse
import json
import logging
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import glm_int4
from glm_int4.checkpoint.opening import CheckpointInfo
from glm_int4.system import size_text
from glm_int4.text.text_file import read_text

GREEDY = glm_int4.SamplingParams(temperature=0)
SPEED_TOKENS = 128


def accuracy(glm: glm_int4.Engine, questions: list[dict[str, Any]]) -> float:
    """Share of questions whose greedy answer is exactly the expected one."""
    right = sum(glm.chat(q["messages"], max_new_tokens=64, sampling=GREEDY) == q["answer"] for q in questions)
    return right / len(questions)


def tokens_per_second(glm: glm_int4.Engine) -> float:
    """Decoding speed of one sequence, the best of three runs."""
    prompt = glm.tokenizer.encode_prompt("你好")
    times = []
    for _ in range(3):
        started = time.perf_counter()
        count = len(glm.generate(prompt, SPEED_TOKENS, GREEDY, stop_ids=[]))
        times.append((time.perf_counter() - started) / count)
    return 1 / min(times)


def label(info: CheckpointInfo) -> str:
    """FP16, INT8 or INT4, and the group where it is not a whole row."""
    scheme = info.linear_scheme
    if len(info.linear_counts) > 1:
        return "mixed"
    if scheme is None:
        return "FP16"
    return f"INT{scheme.bits}" + ("" if scheme.group_size is None else f", groups of {scheme.group_size}")


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    names = [line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")]
    folder = Path(__file__).parent
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True)
    return {
        "cpu": names[0] if names else platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "glm_int4": glm_int4.__version__,
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="checkpoint folders")
    parser.add_argument("--text", type=Path, required=True, help="UTF-8 text for the perplexity")
    parser.add_argument(
        "--questions", type=Path, required=True, help='JSON lines: {"messages": [...], "answer": "..."}'
    )
    parser.add_argument("--stride", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1, help="one suits the mini model's small matrices")
    parser.add_argument("--ask", help="a question to put to the last model")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    text = read_text(arguments.text)
    questions = [json.loads(line) for line in read_text(arguments.questions).split("\n") if line.strip()]
    rows = []
    for model in arguments.models:
        glm = glm_int4.load(model, device="cpu", threads=arguments.threads)
        result = glm.perplexity(text, stride=arguments.stride)
        rows.append(
            {
                "model": model,
                "weights": label(glm.info),
                "weight_bytes": glm.info.weight_bytes,
                "bits_per_weight": glm.info.bits_per_weight,
                "perplexity": result.perplexity,
                "standard_error": result.standard_error,
                "tokens": result.tokens,
                "accuracy": accuracy(glm, questions),
                "questions": len(questions),
                "tokens_per_s": tokens_per_second(glm),
            }
        )
    if arguments.json:
        print(json.dumps({"command": " ".join(sys.argv), "machine": machine(), "rows": rows}, indent=2))
        return
    console = Console()
    if arguments.ask:
        answer = glm.chat([{"role": "user", "content": arguments.ask}], sampling=GREEDY)
        console.print(
            f"\n{arguments.models[-1]} is asked {arguments.ask} and answers {answer}\n", highlight=False, markup=False
        )
    table = Table("weights", "size", "bits/weight", "perplexity", "accuracy", "tokens/s", box=None, pad_edge=False)
    for column in table.columns:
        column.no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(
            row["weights"],
            size_text(row["weight_bytes"]),
            f"{row['bits_per_weight']:.2f}",
            f"{row['perplexity']:.4f} ± {row['standard_error']:.4f}",
            f"{100 * row['accuracy']:.1f} %",
            f"{row['tokens_per_s']:.0f}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
