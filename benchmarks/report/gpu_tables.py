"""Tables on GPU kernels. They are for English documents and for the terminal, and have no Chinese."""

import json
from collections.abc import Iterable
from typing import Any

from benchmarks.report.texts import MODELS, grid


def floors(measured: list[dict[str, Any]]) -> str:
    """Bytes and launches of a step, which nothing but less of them makes faster."""
    contexts = list(dict.fromkeys(context for row in measured for context in row["bytes"]))
    cards = list(measured[0]["launches"])
    heads = ["model", *(f"GB read behind {context}" for context in contexts), *(f"launches, {card}" for card in cards)]
    heads.append("copies before")
    rows = []
    for row in measured:
        sizes = [f"{row['bytes'][c] / 1e9:.2f}" if c in row["bytes"] else "" for c in contexts]
        precision = f"INT{row['bits']}" if row["bits"] != 16 else "half precision"
        launches = [*(str(row["launches"][card]) for card in cards), str(max(row["launches_before"].values()))]
        rows.append([f"{MODELS[row['model']]}, {precision}", *sizes, *launches])
    return grid(heads, rows)


# What the gate's file has for a launch on an architecture.
GATE_FIGURES = ("registers", "stack_bytes", "shared_bytes", "tensor_cores", "instructions")


def gate_rows(results: Iterable[Any]) -> list[dict[str, Any]]:
    """Results of the gate as its file has them: a row for every launch, with the figures of every architecture."""
    rows: dict[str, dict[str, Any]] = {}
    for result in results:
        launch = {name: getattr(result, name) for name in ("kernel", "constants", "types", "num_warps", "num_stages")}
        row = rows.setdefault(json.dumps(launch), launch)
        row[f"sm_{result.architecture}"] = [getattr(result, name) for name in GATE_FIGURES]
    return list(rows.values())


def gate(versions: dict[str, list[dict[str, Any]]]) -> str:
    """Instructions per weight of every launch, and what the gate saw of each Triton."""
    newest = max(versions)
    cells: dict[tuple[str, int, int], dict[int, float]] = {}
    for row in versions[newest]:
        constants = row["constants"]
        usual = constants.get("GROUP_SIZE") == (128 if constants.get("BITS") == 4 else None)
        zeros = ("zeros_ptr" not in constants) == (constants.get("BITS") == 4)
        if "BLOCK_M" in constants and usual and zeros and constants["USE_ASM"] and constants["ACTIVATION"] is None:
            key = (row["kernel"], constants["BITS"], constants["BLOCK_M"])
            found = {architecture: figures["instructions"] for architecture, figures in _figures(row).items()}
            cells.setdefault(key, {}).update(found)
    architectures = sorted({architecture for row in cells.values() for architecture in row})
    loops = grid(
        ["kernel", "rows of x in a tile", *(f"sm_{a}" for a in architectures)],
        (
            [f"INT{bits} {kernel}", str(block_m), *(f"{row[a]:.2f}" if a in row else "" for a in architectures)]
            for (kernel, bits, block_m), row in sorted(cells.items())
        ),
    )
    seen = []
    for version, rows in sorted(versions.items()):
        results = [figures for row in rows for figures in _figures(row).values()]
        most = {key: max(result[key] for result in results) for key in ("stack_bytes", "registers", "shared_bytes")}
        shared = f"{most['shared_bytes'] / 1024:.0f} KiB"
        seen.append([version, str(len(results)), str(most["stack_bytes"]), str(most["registers"]), shared])
    heads = ["Triton", "kernels", "bytes of spills", "most registers", "most shared memory"]
    note = "INT4 in groups of 128 with zero points, INT8 per channel, as one of several splits of K."
    return f"{loops}\n\n{grid(heads, seen, f'Triton {newest}; {note}')}"


def _figures(row: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """By architecture."""
    return {
        int(name.removeprefix("sm_")): dict(zip(GATE_FIGURES, values, strict=True))
        for name, values in row.items()
        if name.startswith("sm_")
    }


def linear(measured: list[dict[str, Any]]) -> str:
    """Microseconds of every way, a line for each shape and number of rows; in brackets the share of bandwidth."""
    ways = list(dict.fromkeys(row["way"] for row in measured))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in measured:
        line = cells.setdefault(("{} x {}".format(*row["shape"]), str(row["rows"])), {})
        line[row["way"]] = f"{row['microseconds']:.1f} ({100 * row['share']:.0f} %)"
    rows = ([*label, *(line.get(way, "not measured") for way in ways)] for label, line in cells.items())
    note = (
        "Microseconds, and the weights' bytes over time as a share of {bandwidth_gb_s:.0f} GB/s.\n"
        "{device}, torch {torch}, commit {commit}."
    )
    return grid(["N x K", "rows", *ways], rows, note.format_map(measured[0]))
