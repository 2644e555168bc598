"""Tables of whole models' speed, from what bench_generate.py measured; ``tables.py`` puts them into the documents."""

import json
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results"
NAMES = {"chatglm-6b": "ChatGLM-6B", "chatglm2-6b": "ChatGLM2-6B", "chatglm3-6b": "ChatGLM3-6B"}
WAYS = {
    "int4": "INT4",
    "int8": "INT8",
    "half": "half precision",
    "official int4": "the official way, INT4",
    "llama.cpp q4_0": "llama.cpp Q4_0",
    "chatglm.cpp q4_0": "chatglm.cpp Q4_0",
}
COMMANDS = {"cpu": "make bench", "gpu": "make gpu-bench"}
MISSING = "not measured"


def read(place: str) -> dict | None:
    """The kept results of "cpu" or "gpu", None where there are none yet."""
    path = RESULTS / f"generate_{place}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def speed() -> str:
    """Tokens per second on a CPU and on a GPU."""
    return "\n\n".join(speed_of(place, read(place)) for place in COMMANDS)


def pairs() -> str:
    """Tokens per second beside other programs', from what cpu_pairs.py measured in turn."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("cpu_pairs_*.json")]
    for result in results:
        result["cpu"] = result["cpu"].replace("(R)", "").removesuffix(" Processor")
    keys = ("capability", "cpu", "peer", "preset", "threads")
    results.sort(key=lambda result: [result[key] for key in keys], reverse=True)
    heads = ["prompt of 128", "prompt of 512", "answer behind 128", "share of the bandwidth"]
    lines = [f"| INT4 | beside | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|"]
    for result in results:
        prefill = {row["tokens"]: row for row in result["prefill"]}
        cells = [_pair(prefill.get(128)), _pair(prefill.get(512)), _pair(result["decode"][0])]
        low, high = (f"{100 * share:.0f}" for share in result["share_spread"])
        threads = f"{result['threads']} thread{'' if result['threads'] == 1 else 's'}"
        share = f"{100 * result['share_of_bandwidth']:.0f} % ({low} to {high})"
        label = f"{result['cpu']} ({result['capability']}), {NAMES[result['preset']]}, {threads}"
        lines.append(f"| {label} | {result['peer']} | {' | '.join([*cells, share])} |")
    versions, commits, dates = (
        ", ".join(sorted({form.format_map(result) for result in results}))
        for form in ("{peer} {peer_version}", "{commit}", "{date}")
    )
    last = results[-1]
    pairs = " or ".join(sorted({str(result["pairs"]) for result in results}))
    return "\n".join(lines) + (
        f"\n\nTokens per second at {last['layers']} layers, and in brackets how many times that of the other program's "
        f"Q4_0 in the same shapes: the median of {pairs} runs in turn, least and most. "
        f"The share is that of an answer's bytes a second in what a plain sum over memory reads. {versions}; "
        f"shared machines; torch {last['torch']}, {dates}, commits {commits}."
    )


def _pair(row: dict | None) -> str:
    """Our speed, and how many times the other's it is."""
    if row is None:
        return MISSING
    low, high = row["spread"]
    return f"{row['glm_int4']:.1f} ({row['ratio']:.2f}; {low:.2f} to {high:.2f})"


def _rate(tokens_per_s: float) -> str:
    """With a digit more where a token takes seconds."""
    return f"{tokens_per_s:.1f}" if tokens_per_s >= 1 else f"{tokens_per_s:.2f}"


def floors() -> str:
    """Bytes and launches of a step, which nothing but less of them makes faster."""
    rows = json.loads((RESULTS / "floors.json").read_text(encoding="utf-8"))["rows"]
    contexts = list(dict.fromkeys(context for row in rows for context in row["bytes"]))
    cards = list(rows[0]["launches"])
    heads = [f"GB read behind {context}" for context in contexts] + [f"launches, {card}" for card in cards]
    lines = [f"| model | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for row in rows:
        sizes = [f"{row['bytes'][c] / 1e9:.2f}" if c in row["bytes"] else "" for c in contexts]
        precision = f"INT{row['bits']}" if row["bits"] != 16 else "half precision"
        launches = [str(row["launches"][card]) for card in cards]
        lines.append(f"| {NAMES[row['model']]}, {precision} | {' | '.join(sizes + launches)} |")
    return "\n".join(lines)


def speed_of(place: str, result: dict | None) -> str:
    """A line for every model and kind of work, a column for every way."""
    if result is None:
        return f"On a {place.upper()}: {MISSING} yet (`{COMMANDS[place]}`)."
    ways = [way for way in WAYS if any(row["way"] == way for row in result["rows"])]
    lines = [f"| tokens/s, {place.upper()} | {' | '.join(WAYS[way] for way in ways)} |", "|---" * (len(ways) + 1) + "|"]
    cells: dict[str, dict[str, str]] = {}
    for row in result["rows"]:
        line = cells.setdefault(f"{NAMES[row['model']]}, {work(row)}", {})
        share = f" ({100 * row['share']:.0f} %)" if "share" in row else ""
        line[row["way"]] = _rate(row["tokens_per_s"]) + share
    for label, line in cells.items():
        lines.append(f"| {label} | {' | '.join(line.get(way, MISSING) for way in ways)} |")
    return "\n".join([*lines, "", provenance(result)])


def work(row: dict) -> str:
    """What a row measures."""
    if row["kind"] == "prefill":
        return f"prompt of {row['tokens']}"
    rows = f"{row['batch']} answers at once" if row["batch"] > 1 else "answer"
    return f"{rows} behind {row['context']}"


def provenance(result: dict) -> str:
    """Where and with what it was measured."""
    machine, layers = result["machine"], {row["layers"] for row in result["rows"]}
    counts = ", ".join(map(str, sorted(layers)))
    depth = "" if layers == {28} else f"; {counts} layers instead of 28"
    return (
        f"Random weights{depth}; in brackets the bytes read as a share of the bandwidth measured "
        f"beside it, {machine['bandwidth_gb_s']:.0f} GB/s at most. {machine['device']} ({machine['capability']}), "
        f"{machine['threads']} threads, torch {machine['torch']}, {machine['date']}, commit {machine['commit']}, "
        f"`{result['command']}`."
    )
