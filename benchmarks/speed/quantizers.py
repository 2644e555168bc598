"""Quantize the same float16 weights with glm-int4 and with llama.cpp's quantizer, in turn.

python -m benchmarks.speed.quantizers --model chatglm-6b-random --work . --json benchmarks/results/quantizers.json

Needs the extra ``peers``. llama.cpp knows no ChatGLM-6B; the weights go into a GGUF file of GPT-NeoX, whose
layers have the same four matrices, and its quantizer is called as its own tool does.
"""

import argparse
import importlib
import os
import shutil
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from benchmarks.machine import PROGRAM, facts, parser, timed, write
from benchmarks.peers import llama_peer
from glm_int4.checkpoint.formats import layout
from glm_int4.checkpoint.opening import open_checkpoint


def write_gguf(model: Path, path: Path) -> int:
    """Write a checkpoint's matrices as a float16 GGUF file; returns their bytes."""
    reader, info = open_checkpoint(model)
    writer = llama_peer.gguf_writer(path, info.config)
    names = {layout.embedding(info.config).name: "token_embd.weight"}
    for matrix in layout.linears(info.config):
        names[matrix.name] = f"blk.{matrix.name.split('.')[2]}.{llama_peer.NAMES[matrix.kind]}.weight"
    total = 0
    for name, stored in names.items():
        weight = reader[f"{name}.weight"].numpy()
        writer.add_tensor(stored, weight)
        total += weight.nbytes
    llama_peer.finish(writer)
    return total


def quantize_gguf(source: str, target: str) -> None:
    """What ``llama-quantize SOURCE TARGET q4_0 THREADS`` does."""
    llama_cpp = importlib.import_module("llama_cpp")
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = os.cpu_count()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), parameters):
        sys.exit("error: expected llama.cpp to quantize the file, got a failure")


def main() -> None:
    """Quantize in turn, and write the result."""
    options = parser(__doc__)
    options.add_argument("--model", type=Path, help="half-precision checkpoint")
    options.add_argument("--work", type=Path, default=Path(), help="folder for what is written")
    options.add_argument("--pairs", type=int, default=3)
    options.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    options.add_argument("--gguf", nargs=2, help=argparse.SUPPRESS)  # the other quantizer in a process of its own
    arguments = options.parse_args()
    if arguments.write:
        print(write_gguf(*map(Path, arguments.write)))
        return
    if arguments.gguf:
        quantize_gguf(*arguments.gguf)
        return
    if not arguments.model:
        options.error("--model is needed")
    source, target, ours = (arguments.work / f"quantizers.{end}" for end in ("f16.gguf", "q4_0.gguf", "int4"))
    # In a process of its own: a child's peak memory counts from its parent's.
    again = [sys.executable, "-m", "benchmarks.speed.quantizers"]
    written = subprocess.run([*again, "--write", arguments.model, source], check=True, stdout=subprocess.PIPE)
    source_bytes = int(written.stdout)
    runs: dict[str, list[dict[str, float]]] = {"glm-int4": [], "llama.cpp": []}
    command = [*PROGRAM, "quantize", "--model", arguments.model, "--output", ours, "--overwrite"]
    for _ in range(arguments.pairs):
        runs["glm-int4"].append(timed(command)[0])
        runs["llama.cpp"].append(timed([*again, "--gguf", source, target])[0])
        print({name: run[-1] for name, run in runs.items()}, file=sys.stderr)
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(*runs.values(), strict=True)]
    result = {
        "command": "python -m benchmarks.speed.quantizers",
        "source_bytes": source_bytes,
        "stored_bytes": {
            "glm-int4": sum(file.stat().st_size for file in ours.glob("*.safetensors")),
            "llama.cpp": target.stat().st_size,
        },
        "runs": runs,
        "speed_ratio": {"median": statistics.median(ratios), "least": min(ratios), "largest": max(ratios)},
        "versions": {name: version(name) for name in ("torch", "llama-cpp-python")},
    }
    shutil.rmtree(ours)
    source.unlink()
    target.unlink()
    write(result | facts() | {"threads": os.cpu_count()}, arguments.json)


if __name__ == "__main__":
    main()
