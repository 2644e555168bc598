"""Write the tables of the READMEs from the committed results.

python -m benchmarks.report.tables            rewrites the READMEs, triton_kernels/README.md and docs/performance.md
python -m benchmarks.report.tables --check    fails where they are not what the results say
"""

import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.report import generate_tables, quality_report
from benchmarks.report.chinese import translate

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
CHINESE = ROOT / "README.zh.md"
DOCUMENTS = (ROOT / "README.md", CHINESE, ROOT / "triton_kernels" / "README.md", ROOT / "docs" / "performance.md")


def mini() -> str:
    """The table of ``make demo``."""
    result = json.loads((RESULTS / "mini.json").read_text(encoding="utf-8"))
    lines = ["| weights | size | bits per weight | perplexity | accuracy | tokens/s |", "|---|---|---|---|---|---|"]
    for row in result["rows"]:
        lines.append(
            f"| {row['weights']} | {row['weight_bytes'] / 1e6:.2f} MB | {row['bits_per_weight']:.2f} "
            f"| {row['perplexity']:.4f} ± {row['standard_error']:.4f} | {100 * row['accuracy']:.1f} % "
            f"| {row['tokens_per_s']:.0f} |"
        )
    first, machine = result["rows"][0], result["machine"]
    lines.append("")
    lines.append(
        f"Perplexity over {first['tokens']} tokens and exact answers to {first['questions']} questions. "
        "Their number pairs never occur in training in that order (a sum's mirror image mostly does); "
        "the other kinds of question repeat it; "
        f"one sequence, {machine['threads']} thread(s) of {machine['cpu']} ({machine['capability']}), "
        f"torch {machine['torch']}, {machine['date']}, commit {machine['commit']}."
    )
    return "\n".join(lines)


MODELS = {"ChatGLM-6B": "chatglm-6b", "ChatGLM2-6B": "chatglm2-6b", "ChatGLM3-6B": "chatglm3-6b"}


def full_size() -> str:
    """What the 6-billion-parameter checkpoints take on a CPU."""
    heads = "|quantizing|its peak memory|size on disk|bits per weight|loading|weights in memory|memory once loaded"
    heads += "|in a short chat|after a prompt of 512|peak|prompt of 128 tokens|prompt of 512|answer"
    columns = [[head] for head in heads.split("|")]
    notes = []
    for name, file in MODELS.items():
        result = json.loads((RESULTS / f"full_size_{file}.json").read_text(encoding="utf-8"))
        for row in result["rows"]:
            for column, cell in zip(columns, [f"{name}, INT{row['quantize']['bits']}", *_cells(row)], strict=True):
                column.append(cell)
        notes.append(f"{name} {result['commit']}")
    lines = [f"| {' | '.join(columns[0])} |", "|---" * len(columns[0]) + "|"]
    lines += [f"| {' | '.join(column)} |" for column in columns[1:]]
    lines.append("")
    lines.append(
        f"{result['rows'][0]['threads']} threads of {result['cpu']} ({result['capability']}), a shared machine; "
        f"torch {result['torch']}, {result['date']}, commits {', '.join(notes)}. GB = 1e9 bytes; "
        "files in the page cache; medians of 3 runs."
    )
    return "\n".join(lines)


def _cells(row: dict) -> list[str]:
    quantize = row["quantize"]
    speed = quantize["source_bytes"] / quantize["seconds"] / 1e9
    memory = ("weight_bytes", "load_rss_bytes", "short_chat_rss_bytes", "chat_rss_bytes", "peak_rss_bytes")
    return [
        f"{quantize['seconds']:.0f} s ({speed:.2f} GB/s)",
        f"{quantize['peak_rss_bytes'] / 1e9:.2f} GB",
        f"{quantize['stored_bytes'] / 1e9:.2f} GB",
        f"{quantize['bits_per_weight']:.2f}",
        f"{row['load_s']:.1f} s",
        *(f"{row[key] / 1e9:.2f} GB" for key in memory),
        *(f"{prefill['tokens_per_s']:.1f} tokens/s" for prefill in row["prefill"]),
        f"{row['decode']['tokens_per_s']:.1f} tokens/s",
    ]


def quantizers() -> str:
    """Our quantizer beside llama.cpp's."""
    result = json.loads((RESULTS / "quantizers.json").read_text(encoding="utf-8"))
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in ("seconds", "peak_rss_bytes")}
        for name, runs in result["runs"].items()
    }
    size = result["source_bytes"] / 1e9
    parts = [
        f"{figures['seconds']:.0f} s ({size / figures['seconds']:.2f} GB/s, peak "
        f"{figures['peak_rss_bytes'] / 1e9:.2f} GB)"
        for figures in medians.values()
    ]
    ratio, release = result["speed_ratio"], result["versions"]["llama-cpp-python"]
    return (
        f"Quantizing the same {size:.1f} GB of float16 to 4 bits, in turn, {len(result['runs']['glm-int4'])} times: "
        f"ours {parts[0]}, with a search for every group's range; llama.cpp's Q4_0 ({release}) "
        f"{parts[1]}, without one. Ours has {ratio['median']:.2f} times llama.cpp's speed "
        f"({ratio['least']:.2f} to {ratio['largest']:.2f}).\n\n"
        f"{result['threads']} threads of {result['cpu']} ({result['capability']}), a shared machine; "
        f"torch {result['versions']['torch']}, {result['date']}, commit {result['commit']}."
    )


def ptuning() -> str:
    """What the prefix of the walk-through learns, and a step at full size."""
    result = json.loads((RESULTS / "ptuning.json").read_text(encoding="utf-8"))
    step = result["full_size"]
    return (
        f"{result['parameters']:,} parameters, {result['settings']['max_steps']} steps, {result['seconds']:.0f} s: "
        f"word for word right are {100 * result['exact_before']:.1f} % of {result['questions']} held-out questions "
        f"before and {100 * result['exact_after']:.1f} % after. At the size of ChatGLM-6B (random weights, INT4, "
        f"128 columns, one sample of 64 and 64 tokens) a step takes {step['seconds']:.0f} s and at most "
        f"{step['peak_rss_bytes'] / 1e9:.2f} GB of memory.\n\n"
        f"{result['threads']} threads of {result['cpu']} ({result['capability']}), a shared machine; "
        f"torch {result['torch']}, {result['date']}, commit {result['commit']}."
    )


def server() -> str:
    """Many clients at the server, beside one."""
    result = json.loads((RESULTS / "server.json").read_text(encoding="utf-8"))
    one, many = result["one_by_one"], result["together"]
    return (
        f"{result['clients']} clients with {result['requests']} requests of mixed lengths, on the mini model in INT4, "
        f"{result['parallel']} answers at a time: {many['tokens_per_s']:.0f} tokens/s, "
        f"{result['throughput_ratio']:.1f} times one client's {one['tokens_per_s']:.0f}. "
        f"The first token came after {many['ttft_p50_ms']:.0f} ms (median; 95 % within {many['ttft_p95_ms']:.0f} ms, "
        f"most of it in the queue), for one client after {one['ttft_p50_ms']:.0f} ms. "
        f"Answers lost: {one['lost'] + many['lost']}; other than the engine's own: "
        f"{one['different'] + many['different']}.\n\n"
        f"{result['threads']} thread{'' if result['threads'] == 1 else 's'} of {result['cpu']} "
        f"({result['capability']}), a shared machine; torch {result['torch']}, {result['date']}, "
        f"commit {result['commit']}."
    )


def kernels() -> str:
    """Instructions per weight of every launch, and what the gate saw of each Triton."""
    versions = json.loads((RESULTS / "kernel_gate.json").read_text(encoding="utf-8"))
    newest = max(versions)
    cells: dict[tuple[str, int, int], dict[int, float]] = {}
    for result in versions[newest]:
        constants = result["constants"]
        usual = constants.get("GROUP_SIZE") == (128 if constants.get("BITS") == 4 else None)
        zeros = ("zeros_ptr" not in constants) == (constants.get("BITS") == 4)
        if "BLOCK_M" in constants and usual and zeros and constants["USE_ASM"] and constants["ACTIVATION"] is None:
            key = (result["kernel"], constants["BITS"], constants["BLOCK_M"])
            cells.setdefault(key, {})[result["architecture"]] = result["instructions"]
    architectures = sorted({architecture for row in cells.values() for architecture in row})
    lines = [f"| kernel | rows of x in a tile | {' | '.join(f'sm_{a}' for a in architectures)} |"]
    lines.append("|---" * (len(architectures) + 2) + "|")
    for (kernel, bits, block_m), row in sorted(cells.items()):
        values = [f"{row[a]:.2f}" if a in row else "" for a in architectures]
        lines.append(f"| INT{bits} {kernel} | {block_m} | {' | '.join(values)} |")
    lines += [
        "",
        "| Triton | kernels | bytes of spills | most registers | most shared memory |",
        "|---|---|---|---|---|",
    ]
    for version, results in sorted(versions.items()):
        spills, registers, shared = (
            max(result[name] for result in results) for name in ("stack_bytes", "registers", "shared_bytes")
        )
        lines.append(f"| {version} | {len(results)} | {spills} | {registers} | {shared / 1024:.0f} KiB |")
    lines.append("")
    lines.append(
        f"Triton {newest}; INT4 in groups of 128 with zero points, INT8 per channel, as one of several splits of K."
    )
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "mini": mini,
    "full-size": full_size,
    "quantizers": quantizers,
    "ptuning": ptuning,
    "server": server,
    "kernels": kernels,
    "quality": quality_report.methods,
    "outliers": quality_report.outliers,
    "gptq": quality_report.full_size,
    "pairs": generate_tables.pairs,
    "speed": generate_tables.speed,
    "floors": generate_tables.floors,
}


def render(readme: str, *, chinese: bool = False) -> str:
    """Return a README with its tables replaced by what the results say."""
    for name, table in TABLES.items():
        if f"<!-- table: {name} -->" not in readme:
            continue
        text = translate(table()) if chinese else table()
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        readme = re.sub(pattern, lambda match, text=text: f"{match[1]}{text}\n{match[2]}", readme, flags=re.S)
    return readme


def main() -> int:
    stale = False
    for path in DOCUMENTS:
        readme = path.read_text(encoding="utf-8")
        rendered = render(readme, chinese=path == CHINESE)
        stale |= rendered != readme
        if "--check" not in sys.argv[1:]:
            path.write_text(rendered, encoding="utf-8")
    return int(stale and "--check" in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
