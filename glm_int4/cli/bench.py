"""``glm-int4 bench``: speed, memory and share of the bandwidth, of a checkpoint or of random weights."""

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from glm_int4.cli import options
from glm_int4.errors import InputError
from glm_int4.system import size_text

NAME = "bench"


def run(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL_OR_PRESET",
            help="Folder or hub id; or chatglm-6b, chatglm2-6b, chatglm3-6b or glm-4-9b, which need no files.",
        ),
    ] = None,
    bits: Annotated[int | None, typer.Option(help="4, 8 or 16. Default: the checkpoint's, 4 for a preset.")] = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    prefill: Annotated[str, typer.Option(metavar="N,N", help="Lengths of the prompts that are read.")] = "128,512,2048",
    batch: Annotated[list[str] | None, typer.Option(metavar="N,N", help="Rows that decode together: 1,4,16.")] = None,
    context: Annotated[list[str] | None, typer.Option(metavar="N,N", help="Tokens before them: 128,2048.")] = None,
    kv_bits: options.KVBits = 16,
    adapter: options.Adapter = None,
    layers: Annotated[int | None, typer.Option(help="Fewer layers than the model has, of random weights.")] = None,
    seconds: Annotated[float, typer.Option(help="Leave out prompts that would take longer.")] = 60.0,
    tune: Annotated[
        bool, typer.Option("--tune", help="Search this GPU's launch parameters first and keep them.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Measure reading, decoding, memory and the share of the memory's bandwidth."""
    from glm_int4.measuring.speed import BATCHES, CONTEXTS, BenchSettings, UnfinishedError, bench

    if bits not in (None, 4, 8, 16):
        raise InputError(f"expected --bits 4, 8 or 16, got {bits}")
    if layers is not None and layers < 1:
        raise InputError(f"expected --layers of 1 or more, got {layers}")
    settings = BenchSettings(
        prefill=_numbers("--prefill", prefill),
        batches=_numbers("--batch", ",".join(batch)) if batch else BATCHES,
        contexts=_numbers("--context", ",".join(context)) if context else CONTEXTS,
        seconds=seconds,
    )
    if tune:
        _tune(device)
    try:
        result = bench(
            options.find_model(model),
            bits=bits,
            device=device,
            threads=threads,
            kv_bits=kv_bits,
            adapter=options.adapters(adapter),
            num_layers=layers,
            settings=settings,
            report=_say,
        )
    except UnfinishedError as stopped:
        _show(stopped.result, as_json)
        raise (stopped.__cause__ or stopped) from None
    _show(result, as_json)


def _show(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        _print(result)


def _tune(device: str) -> None:
    """Search launch parameters for the kernels on this GPU."""
    from glm_int4.generation.loading import choose_device

    place = choose_device(device)
    if place.type != "cuda":
        raise InputError("expected a CUDA device for --tune, got the CPU, where there is nothing to tune; leave it out")
    from glm_int4.measuring.launches import search_and_keep
    from glm_int4.quantization.kernels import obstacle

    cause = obstacle(place)
    if cause is not None:
        raise InputError(f"expected a GPU that runs the Triton kernels for --tune, got none: {cause}")
    search_and_keep(place, _say)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _numbers(name: str, text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = [0]
    if any(number < 1 for number in numbers):
        raise InputError(f"expected {name} to be whole numbers from 1 on, with commas between them, got {text!r}")
    return numbers


def _print(result: dict[str, Any]) -> None:
    where = f"{result['threads']} threads" if result["device"] == "cpu" else result["device"]
    print(f"{result['model']}, {result['bits']} bits, on {where}")
    print(
        f"loaded in {result['load_s']:.1f} s, peak memory {size_text(result['peak_bytes'])}, "
        f"bandwidth {result['bandwidth_gb_s']:.1f} GB/s"
    )
    read = Table("prompt", "tokens/s", "first token", box=None, pad_edge=False)
    for row in result["prefill"]:
        read.add_row(str(row["tokens"]), f"{row['tokens_per_s']:.1f}", f"{row['ttft_ms']:.0f} ms")
    if row := result["prefill_changing"]:
        lengths = f"{row['tokens'][-1]} to {row['tokens'][0]}"
        read.add_row(lengths, f"{row['tokens_per_s']:.1f}", f"{row['slowest_ttft_ms']:.0f} ms at most")
    decode = Table("batch", "context", "tokens/s", "read for a token", "of the bandwidth", box=None, pad_edge=False)
    for row in result["decode"]:
        cells = [str(row["batch"]), str(row["context"]), f"{row['tokens_per_s']:.1f}"]
        decode.add_row(*cells, size_text(row["bytes_per_token"]), f"{100 * row['share_of_bandwidth']:.0f} %")
    for table in (read, decode):
        for column in table.columns:
            column.justify = "right"
        print()
        Console().print(table)
    launches = [row["launches_per_token"] for row in result["decode"] if "launches_per_token" in row]
    if launches:
        print(f"\nlaunches for a token: {min(launches)} to {max(launches)}")
