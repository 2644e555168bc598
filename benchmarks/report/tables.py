"""Write the tables of the documents from the committed results and from the server's cases, in English and in Chinese.

python -m benchmarks.report.tables                rewrites the READMEs, triton_kernels/README.md and two of docs/
python -m benchmarks.report.tables --check        fails where they are not what the results say
python -m benchmarks.report.tables --linear FILE  prints the table of what bench_linear.py measured

A table is a function of a language, and stands in a document between ``<!-- table: NAME -->`` and ``<!-- end -->``.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS, ROOT, read
from benchmarks.report import gpu_tables
from benchmarks.report.texts import MODELS, WAYS, grid, joined, name, say
from tests.server import cases

DOCUMENTS = {
    ROOT / "README.md": "en",
    ROOT / "README.zh.md": "zh",
    ROOT / "triton_kernels" / "README.md": "en",
    ROOT / "docs" / "performance.md": "en",
    ROOT / "docs" / "serving.md": "en",
    ROOT / "docs" / "structured-output.md": "en",
    ROOT / "docs" / "adapters.md": "en",
}
COMMANDS = {"cpu": "make bench", "gpu": "make gpu-bench"}
# The method that others are compared with.
OFFICIAL = "INT4 official, per channel"


def read_speed(place: str) -> dict[str, Any] | None:
    """What bench_generate.py measured on a "cpu" or a "gpu", None where there is nothing yet."""
    return read(f"generate_{place}") if (RESULTS / f"generate_{place}.json").is_file() else None


def mini(language: str) -> str:
    """The table of ``make demo``."""
    result = read("mini")
    rows = (
        [
            name(row["weights"], language),
            f"{row['weight_bytes'] / 1e6:.2f} MB",
            f"{row['bits_per_weight']:.2f}",
            f"{row['perplexity']:.4f} ± {row['standard_error']:.4f}",
            f"{100 * row['accuracy']:.1f} %",
            f"{row['tokens_per_s']:.0f}",
        ]
        for row in result["rows"]
    )
    note = say("mini", language, result["rows"][0] | result["machine"])
    return grid(say("mini heads", language).split("|"), rows, note)


def full_size(language: str) -> str:
    """What the 6-billion-parameter checkpoints take on a CPU: a column for each."""
    results = {model: read(f"full_size_{file}") for file, model in MODELS.items()}
    columns = [say("full-size heads", language).split("|")]
    for model, result in results.items():
        for row in result["rows"]:
            columns.append([f"{model}, INT{row['quantize']['bits']}", *_full_size_cells(row, say("second", language))])
    commits = joined([f"{model} {result['commit']}" for model, result in results.items()], language)
    heads, *rows = zip(*columns, strict=True)
    threads = result["rows"][0]["threads"]
    return grid(heads, rows, say("full-size", language, result, commits=commits, threads=threads))


def _full_size_cells(row: dict[str, Any], second: str) -> list[str]:
    quantize = row["quantize"]
    speed = quantize["source_bytes"] / quantize["seconds"] / 1e9
    memory = ("weight_bytes", "load_rss_bytes", "short_chat_rss_bytes", "chat_rss_bytes", "peak_rss_bytes")
    return [
        f"{quantize['seconds']:.0f}{second} ({speed:.2f} GB/s)",
        f"{quantize['peak_rss_bytes'] / 1e9:.2f} GB",
        f"{quantize['stored_bytes'] / 1e9:.2f} GB",
        f"{quantize['bits_per_weight']:.2f}",
        f"{row['load_s']:.1f}{second}",
        *(f"{row[key] / 1e9:.2f} GB" for key in memory),
        *(f"{measured['tokens_per_s']:.1f} tokens/s" for measured in (*row["prefill"], row["decode"])),
    ]


def quantizers(language: str) -> str:
    """Our quantizer beside llama.cpp's."""
    result = read("quantizers")
    size = result["source_bytes"] / 1e9
    ours, theirs = (
        {
            "seconds": (seconds := statistics.median(run["seconds"] for run in runs)),
            "gb_s": size / seconds,
            "gb": statistics.median(run["peak_rss_bytes"] for run in runs) / 1e9,
        }
        for runs in result["runs"].values()
    )
    versions, times = result["versions"], len(result["runs"]["glm-int4"])
    figures = {"size": size, "times": times, "ours": ours, "theirs": theirs, "release": versions["llama-cpp-python"]}
    text = say("quantizers", language, figures | result["speed_ratio"])
    return f"{text}\n\n{say('machine', language, result, torch=versions['torch'])}"


def ptuning(language: str) -> str:
    """What the prefix of the walk-through learns, and a step at full size."""
    result = read("ptuning")
    before, after = (100 * result[key] for key in ("exact_before", "exact_after"))
    gb = result["full_size"]["peak_rss_bytes"] / 1e9
    text = say("ptuning", language, result, before=before, after=after, gb=gb)
    return f"{text}\n\n{say('machine', language, result)}"


def server(language: str) -> str:
    """Many clients at the server, beside one."""
    result = read("server")
    lost, different = (result["one_by_one"][key] + result["together"][key] for key in ("lost", "different"))
    text = say("server", language, result, lost=lost, different=different)
    return f"{text}\n\n{say('machine', language, result)}"


def quality(language: str) -> str:
    """Every method of bench_perplexity.py on the mini model."""
    result = read("quality")["bench_perplexity"]
    official = next(row["kl"] for row in result["rows"] if row["name"] == OFFICIAL)
    rows = []
    for row in result["rows"]:
        quantized = "cpu_seconds" in row
        share = f"{row['kl'] / official:.2f}" if quantized else ""
        if quantized and row["name"] != OFFICIAL and not row.get("kl_less_official", {"counts": True})["counts"]:
            share = f"({share})"
        rows.append(
            [
                name(row["name"], language),
                f"{row['bits_per_weight']:.2f}",
                f"{row['perplexity']:.4f} ± {row['standard_error']:.4f}",
                _percent(row["loss_increase"]),
                f"{1e4 * row['kl']:.3f} ± {1e4 * row['kl_standard_error']:.3f}" if row["kl"] > 1e-9 else "0",
                share,
                f"{100 * row['accuracy']:.1f} %",
                f"{row['cpu_seconds']:.1f}{say('second', language)}" if quantized else "",
            ]
        )
    note = say("quality", language, result["rows"][0] | result["machine"])
    return grid(say("quality heads", language).split("|"), rows, note)


def _percent(increase: dict[str, Any]) -> str:
    """An increase and its standard error; in brackets where it may be chance."""
    text = f"{100 * increase['mean']:+.3f} ± {100 * increase['standard_error']:.3f} %"
    return text if increase["counts"] or not increase["mean"] else f"({text})"


def outliers(language: str) -> str:
    """Outlier channels in the mini model, and layers of 6B widths, by bench_outliers.py."""
    result = read("quality")["bench_outliers"]
    shares = {(row["name"], row["case"]): row["share_of_official"] for row in result["rows"]}
    methods, cases = (list(dict.fromkeys(names)) for names in zip(*shares, strict=True))
    heads = [say("outliers head", language), *(name(case, language) for case in cases)]
    rows = (
        [name(method, language)]
        + [f"{share:.4f}" if share < 0.01 else f"{share:.2f}" for share in (shares[method, case] for case in cases)]
        for method in methods
    )
    int8 = next(row for row in result["rows"] if row["name"] == "INT8" and "loss_increase" in row)
    return grid(heads, rows, say("outliers", language, result["machine"], change=_percent(int8["loss_increase"])))


def gptq(language: str) -> str:
    """One line: what GPTQ takes for a 6-billion-parameter model."""
    result = read("gptq_layer")
    layer = result["one_layer"]["gptq"]
    minutes, cpu_minutes = layer["seconds"] / 60, layer["cpu_seconds"] / 60
    gb = layer["peak_rss_bytes"] / 1e9
    return say("gptq", language, result, minutes=minutes, cpu_minutes=cpu_minutes, gb=gb)


def pairs(language: str) -> str:
    """Tokens per second beside other programs', from what cpu_pairs.py measured in turn."""
    results = [read(path.stem) for path in RESULTS.glob("cpu_pairs_*.json")]
    for result in results:
        result["cpu"] = result["cpu"].replace("(R)", "").removesuffix(" Processor")
    keys = ("capability", "cpu", "peer", "preset", "threads")
    results.sort(key=lambda result: [result[key] for key in keys], reverse=True)
    rows = []
    for result in results:
        prefill = {row["tokens"]: row for row in result["prefill"]}
        rates = (prefill.get(128), prefill.get(512), result["decode"][0])
        median, low, high = (100 * share for share in (result["share_of_bandwidth"], *result["share_spread"]))
        rows.append(
            [
                say("pairs label", language, result, model=MODELS[result["preset"]]),
                result["peer"],
                *(say("pairs rate" if rate else "missing", language, rate) for rate in rates),
                say("pairs share", language, median=median, low=low, high=high),
            ]
        )
    versions, commits, dates = (
        joined(sorted({form.format_map(result) for result in results}), language)
        for form in ("{peer} {peer_version}", "{commit}", "{date}")
    )
    counts = say("alternatives", language).join(sorted({str(result["pairs"]) for result in results}))
    note = say("pairs", language, results[-1], pairs=counts, versions=versions, commits=commits, dates=dates)
    return grid(say("pairs heads", language).split("|"), rows, note)


def speed(language: str) -> str:
    """Tokens per second on a CPU and on a GPU."""
    return "\n\n".join(speed_of(place, read_speed(place), language) for place in COMMANDS)


def speed_of(place: str, result: dict[str, Any] | None, language: str = "en") -> str:
    """A line for every model and kind of work, a column for every way."""
    if result is None:
        return say("no speed", language, place=place.upper(), command=COMMANDS[place])
    ways = [way for way in WAYS if any(row["way"] == way for row in result["rows"])]
    cells: dict[str, dict[str, str]] = {}
    for row in result["rows"]:
        kind = "prompt" if row["kind"] == "prefill" else "answers" if row["batch"] > 1 else "answer"
        line = cells.setdefault(say(kind, language, row, model=MODELS[row["model"]]), {})
        rate = row["tokens_per_s"]
        share = f" ({100 * row['share']:.0f} %)" if "share" in row else ""
        line[row["way"]] = (f"{rate:.1f}" if rate >= 1 else f"{rate:.2f}") + share
    missing = say("missing", language)
    rows = ([label, *(line.get(way, missing) for way in ways)] for label, line in cells.items())
    layers = {row["layers"] for row in result["rows"]}
    depth = "" if layers == {28} else say("depth", language, layers=", ".join(map(str, sorted(layers))))
    note = say("speed", language, result["machine"], command=result["command"], depth=depth)
    return grid([f"tokens/s, {place.upper()}", *(name(WAYS[way], language) for way in ways)], rows, note)


BUSY_WORK = {
    "decode": "answer",
    "prompt": "prompt of 128",
    "server": "8 answers in the server",
    "perplexity": "perplexity",
    "training": "training a prefix",
    "quantizing": "quantizing a matrix",
}
CROWDS = {"2-loops": "2 busy loops", "6-loops": "6 busy loops", "2-spinning": "2 programs with spinning threads"}


def busy(_: str) -> str:
    """What is left of the fair share beside other programs: a line for every kind of work, a column for every crowd."""
    result = read("busy")["bench_busy"]
    lines: dict[tuple[str, str, int], dict[str, str]] = {}
    for row in result["rows"]:
        line = lines.setdefault((row["kind"], row["model"], row["threads"]), {"": f"{row['quiet_rate']:.1f}"})
        line[row["others"]] = f"{row['median_of_fair']:.2f} ({row['least_of_fair']:.2f})"
    rows = (
        [BUSY_WORK[kind], model, str(threads), line[""], *(line[crowd] for crowd in CROWDS)]
        for (kind, model, threads), line in lines.items()
    )
    note = (
        "Shares of what is fair: the median of seven runs and, in brackets, the least. Alone, an answer and a prompt "
        "are counted in tokens, quantizing in millions of weights. Two processors, {cpu} ({capability}), torch "
        "{torch}, {date}, commit {commit}."
    ).format_map(result["machine"])
    return grid(["", "model", "threads", "alone, per second", *CROWDS.values()], rows, note)


def adapters(_: str) -> str:
    """Rates without and with a LoRA; a line for every kind of work and number of threads."""
    result = read("adapters")["bench_adapters"]
    rows = [
        [
            BUSY_WORK[row["kind"]],
            str(row["threads"]),
            f"{row['alone']:.1f}",
            f"{row['with_lora']:.1f}",
            f"{row['ratio']:.3f}",
        ]
        for row in result["rows"]
    ]
    note = (
        "Four layers of ChatGLM2-6B's shapes with its head, INT4, rank 8 on query_key_value; medians of seven pairs. "
        "{cpu} ({capability}), torch {torch}, {date}, commit {commit}."
    ).format_map(result["machine"])
    return grid(["tokens/s, CPU", "threads", "alone", "with LoRA", "ratio"], rows, note)


def answer_forms(_: str) -> str:
    """What a form costs, by library; a line for every schema and vocabulary."""
    result = read("answer_forms")
    figures = ("compile_ms", "mask_median_ms", "mask_mean_ms", "mask_max_ms")
    heads = ["library", "vocabulary", "schema", "compile", "mask, median", "mean", "largest"]
    rows = [
        [row["library"], f"version {row['version']}", row["case"], *(f"{row[figure]:.2f}" for figure in figures)]
        for row in result["rows"]
    ]
    taken_in = {row["version"]: row["prepare_ms"] / 1e3 for row in result["rows"]}
    note = "; ".join(f"version {version}'s vocabulary is taken in in {s:.1f} s" for version, s in taken_in.items())
    where = f"{result['cpu']}, commit {result['commit']}, {result['date']}"
    return grid(heads, rows, f"{note[0].upper()}{note[1:]} ({where}).")


def _requests(group: str, _: str) -> str:
    return cases.table(group)


TABLES: dict[str, Callable[[str], str]] = {
    "mini": mini,
    "full-size": full_size,
    "quantizers": quantizers,
    "ptuning": ptuning,
    "server": server,
    "kernels": lambda _: gpu_tables.gate(read("kernel_gate")),
    "quality": quality,
    "outliers": outliers,
    "gptq": gptq,
    "pairs": pairs,
    "speed": speed,
    "busy": busy,
    "adapters": adapters,
    "answer-forms": answer_forms,
    "floors": lambda _: gpu_tables.floors(read("floors")["rows"]),
    **{f"requests-{group}": partial(_requests, group) for group in cases.GROUPS},
}


def render(document: str, language: str) -> str:
    """Return a document with its tables replaced by what the results say."""

    def fresh(match: re.Match[str]) -> str:
        return f"{match[1]}{TABLES[match[2]](language)}\n{match[3]}"

    return re.sub(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", fresh, document, flags=re.DOTALL)


def main() -> int:
    """Rewrite or check the documents, or print the table of a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--linear", type=Path)
    arguments = parser.parse_args()
    if arguments.linear:
        benchmarks = json.loads(arguments.linear.read_text(encoding="utf-8"))["benchmarks"]
        print(gpu_tables.linear([benchmark["extra_info"] for benchmark in benchmarks]))
        return 0
    stale = False
    for path, language in DOCUMENTS.items():
        document = path.read_text(encoding="utf-8")
        rendered = render(document, language)
        stale |= rendered != document
        if not arguments.check:
            path.write_text(rendered, encoding="utf-8")
    return int(stale and arguments.check)


if __name__ == "__main__":
    sys.exit(main())
