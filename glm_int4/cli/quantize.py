"""``glm-int4 quantize``: an official checkpoint in, an INT4 or INT8 checkpoint out."""

import json
import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from glm_int4.cli import console, options
from glm_int4.errors import InputError
from glm_int4.system import size_text

if TYPE_CHECKING:
    from glm_int4.conversion.report import QuantizationReport

NAME = "quantize"


def run(
    model: Annotated[str, typer.Option(help="Folder or hub id of the official checkpoint.")] = "zai-org/chatglm-6b",
    output: Annotated[Path | None, typer.Option(help="Folder to create. Default: ./<name>-int<bits>")] = None,
    bits: Annotated[int, typer.Option(help="4 or 8.")] = 4,
    group_size: Annotated[
        str | None, typer.Option(help="Weights per scale: 32, 64, 128 or channel. Default: 128; 8 bits: channel.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="rtn: round to nearest after a clip search; hqq: half-quadratic; gptq: by a calibration text."
        ),
    ] = "rtn",
    symmetric: Annotated[
        bool | None,
        typer.Option("--symmetric/--asymmetric", help="Store no zero points, or some. Default: none for 8 bits."),
    ] = None,
    head_bits: Annotated[
        int | None, typer.Option(help="Bits of embedding and head: 4, 8 or 16. Default: 8; 16 for vLLM and official.")
    ] = None,
    output_format: Annotated[
        str,
        typer.Option("--format", help="compressed-tensors, or official: the layout of the official -int4 and -int8."),
    ] = "compressed-tensors",
    quantize_embeddings: Annotated[
        bool, typer.Option("--quantize-embeddings", help="With --format official: as in chatglm-6b-int4-qe.")
    ] = False,
    vllm: Annotated[
        bool, typer.Option("--vllm", help="Write what vLLM takes: symmetric, head in 16 bits, tokenizer.json.")
    ] = False,
    target_bits: Annotated[
        float | None, typer.Option(help="Bits per weight in all; picks bits and group size layer by layer.")
    ] = None,
    target_size: Annotated[str | None, typer.Option(help="As --target-bits, for the whole size: 3.2GB.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="A text for gptq and for targets.")] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR[:SCALE]", help="A LoRA adapter of peft to merge into the weights first; may be repeated."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="For gptq and targets: auto, cuda or cpu.")] = "auto",
    model_version: options.ModelVersion = "auto",
    threads: options.Threads = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output folder.")] = False,
    as_json: options.Json = False,
) -> None:
    """Quantize a checkpoint to INT4 or INT8, offline and in little memory."""
    from glm_int4.conversion.quantizing import quantize_checkpoint
    from glm_int4.generation.loading import check_threads, choose_device

    if threads is not None:
        import torch

        torch.set_num_threads(check_threads(threads))
    output = output or Path(f"{Path(os.path.abspath(model)).name}-int{bits}")
    with console.progress("quantizing") as progress:
        report = quantize_checkpoint(
            model,
            output,
            bits=bits,
            group_size=_group_size(group_size),
            method=method,
            symmetric=symmetric,
            head_bits=head_bits,
            format=output_format,
            quantize_embeddings=quantize_embeddings,
            vllm=vllm,
            target_bits=target_bits,
            target_size=target_size,
            calibration=calibration,
            device=str(choose_device(device)),
            model_version=model_version,
            resume=resume,
            overwrite=overwrite,
            adapter=options.adapters(adapter),
            progress=progress,
            announce=lambda line: print(line, file=sys.stderr, flush=True),
        )
    if as_json:
        print(json.dumps(asdict(report), indent=2))
        return
    _print(report)


def _print(report: "QuantizationReport") -> None:
    kinds: dict[tuple[str, int, int | str], list[int]] = {}
    for i, layer in enumerate(report.layers):
        kinds.setdefault((layer.kind, layer.bits, layer.group_size), []).append(i)
    table = Table(
        "layers", "", "bits", "group", "weights", "stored", "b/weight", "error", "largest", box=None, pad_edge=False
    )
    for column in table.columns:
        column.no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for (kind, bits, group_size), indices in kinds.items():
        layers = [report.layers[i] for i in indices]
        weights, stored = sum(x.num_weights for x in layers), sum(x.stored_bytes for x in layers)
        errors = [x.rel_error for x in layers]
        table.add_row(
            kind,
            str(len(layers)),
            str(bits),
            str(group_size),
            f"{weights / 1e6:.1f} M",
            size_text(stored),
            f"{8 * stored / weights:.2f}",
            *(["kept", ""] if report.method == "kept" and not any(errors) else _percents(errors)),
        )
    out = Console()
    out.print(table)
    if report.method == "kept":
        out.print(f"The source's INT{report.bits} weights are kept as they were, without a second rounding.")
    out.print(
        f"{size_text(report.source_bytes)} -> {size_text(report.stored_bytes)}, "
        f"{report.bits_per_weight:.2f} bits per weight as stored, {report.seconds:.1f} s, "
        f"peak memory {size_text(report.peak_rss_bytes)}",
        highlight=False,
        soft_wrap=True,
    )
    out.print(
        f"wrote {report.output}; try: glm-int4 chat {shlex.quote(report.output)}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _percents(errors: list[float]) -> list[str]:
    return [f"{100 * error:.2f} %" for error in (sum(errors) / len(errors), max(errors))]


def _group_size(text: str | None) -> int | str | None:
    if text is None or text == "channel":
        return text
    if not text.isdecimal():
        raise InputError(f"expected a group size of 32, 64, 128 or channel, got {text!r}")
    return int(text)
