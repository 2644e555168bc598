"""Quantize the same float16 weights with glm-int4 and with llama.cpp's quantizer, in turn.

python -m benchmarks.speed.quantizers --model chatglm-6b-random --work . --json benchmarks/results/quantizers.json

Needs the extra ``peers``. llama.cpp knows no ChatGLM-6B; the weights go into a GGUF file of GPT-NeoX, whose
layers have the same four matrices, and its quantizer is called as its own tool does.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.kernels.cpu_switch import commit, cpu_name
from glm_int4.checkpoint.formats import layout
from glm_int4.checkpoint.opening import open_checkpoint

NAMES = {"query_key_value": "attn_qkv", "dense": "attn_output", "dense_h_to_4h": "ffn_up", "dense_4h_to_h": "ffn_down"}


def write_gguf(model: Path, path: Path) -> int:
    """Write a checkpoint's matrices as a float16 GGUF file; returns their bytes."""
    from gguf import GGUFWriter

    reader, info = open_checkpoint(model)
    config = info.config
    writer = GGUFWriter(path, "gptneox", use_temp_file=False)
    writer.add_context_length(config.max_sequence_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.ffn_size)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_head_count(config.num_heads)
    writer.add_parallel_residual(False)
    writer.add_layer_norm_eps(config.layernorm_epsilon)
    names = {layout.embedding(config).name: "token_embd.weight"}
    for matrix in layout.linears(config):
        names[matrix.name] = f"blk.{matrix.name.split('.')[2]}.{NAMES[matrix.kind]}.weight"
    total = 0
    for name, stored in names.items():
        weight = reader[f"{name}.weight"].numpy()
        writer.add_tensor(stored, weight)
        total += weight.nbytes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return total


def quantize_gguf(source: str, target: str) -> None:
    """What ``llama-quantize SOURCE TARGET q4_0 THREADS`` does."""
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = os.cpu_count()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), parameters):
        sys.exit("error: expected llama.cpp to quantize the file, got a failure")


def timed(command: list[str]) -> dict[str, float]:
    """Seconds and peak memory of a process."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise subprocess.CalledProcessError(status, command)
    return {"seconds": seconds, "peak_rss_bytes": usage.ru_maxrss * 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="half-precision checkpoint")
    parser.add_argument("--work", type=Path, default=Path(), help="folder for what is written")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--gguf", nargs=2, help=argparse.SUPPRESS)  # the other quantizer in a process of its own
    arguments = parser.parse_args()
    if arguments.write:
        print(write_gguf(*map(Path, arguments.write)))
        return
    if arguments.gguf:
        quantize_gguf(*arguments.gguf)
        return
    if not arguments.model:
        parser.error("--model is needed")
    source, target, ours = (arguments.work / f"quantizers.{end}" for end in ("f16.gguf", "q4_0.gguf", "int4"))
    # In a process of its own: a child's peak memory counts from its parent's.
    written = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed.quantizers", "--write", str(arguments.model), str(source)],
        check=True,
        stdout=subprocess.PIPE,
    )
    source_bytes = int(written.stdout)
    runs: dict[str, list[dict[str, float]]] = {"glm-int4": [], "llama.cpp": []}
    command = [sys.executable, "-m", "glm_int4", "quantize", "--model", str(arguments.model), "--output", str(ours)]
    for _ in range(arguments.pairs):
        runs["glm-int4"].append(timed([*command, "--overwrite"]))
        runs["llama.cpp"].append(
            timed([sys.executable, "-m", "benchmarks.speed.quantizers", "--gguf", str(source), str(target)])
        )
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
        "cpu": cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": os.cpu_count(),
        "versions": {name: version(name) for name in ("torch", "llama-cpp-python")},
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }
    shutil.rmtree(ours)
    source.unlink()
    target.unlink()
    text = json.dumps(result, indent=2) + "\n"
    print(text)
    if arguments.json:
        arguments.json.write_text(text)


if __name__ == "__main__":
    main()
