"""Quantizing a checkpoint offline: one piece of rows at a time, in little memory.

What is to be done is decided in ``plan.py``; the files that come out are described in
``checkpoint/formats``; how they are put in place, in ``checkpoint/writing``.
"""

import json
import logging
import math
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from glm_int4.adapters.adapter_source import Adapters, find_adapters
from glm_int4.checkpoint.checks import check_finite
from glm_int4.checkpoint.files.folder import PROGRESS, read_config, resolve_folder, text_files
from glm_int4.checkpoint.files.safetensors_file import SafetensorsWriter, TensorSpec, map_safetensors
from glm_int4.checkpoint.formats import layout
from glm_int4.checkpoint.formats import official as official_format
from glm_int4.checkpoint.formats import packed as packed_format
from glm_int4.checkpoint.formats.converted_config import official_config
from glm_int4.checkpoint.formats.tensor_names import PREFIX_STEM
from glm_int4.checkpoint.prefix_file import SAFETENSORS_FILE
from glm_int4.checkpoint.writing.output_folder import OutputFolder, Unit, sha256
from glm_int4.checkpoint.writing.publishing import REPORT, check_output, tidy
from glm_int4.conversion.calibrated.gptq_pass import CalibratedQuantizer, estimated_seconds
from glm_int4.conversion.matrices import PIECE_WEIGHTS, ErrorSums, quantized_pieces
from glm_int4.conversion.mixed.sensitivity import Progress
from glm_int4.conversion.plan import QuantizationPlan, make_plan
from glm_int4.conversion.quantization_options import QuantizationOptions, parse_size
from glm_int4.conversion.report import QuantizationReport, layer_report, read_report
from glm_int4.errors import OutputError
from glm_int4.quantization.gpu.cuda_device import cuda_fault
from glm_int4.system import peak_bytes, size_text
from glm_int4.version import __version__

logger = logging.getLogger(__name__)

_WRITTEN_ANEW = ("config.json", "tokenizer_config.json", PROGRESS, REPORT)  # not copied

Notes = list[dict[str, Any]]


def quantize_checkpoint(
    model: str | Path,
    output: str | Path,
    *,
    bits: int = 4,
    group_size: int | str | None = None,
    method: str = "rtn",
    symmetric: bool | None = None,
    head_bits: int | None = None,
    format: str = "compressed-tensors",
    quantize_embeddings: bool = False,
    vllm: bool = False,
    target_bits: float | None = None,
    target_size: int | str | None = None,
    calibration: str | Path | None = None,
    device: str = "cpu",
    model_version: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    max_shard_bytes: int | None = None,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
    adapter: Adapters | None = None,
) -> QuantizationReport:
    """Quantize a half-precision ChatGLM checkpoint, or re-write an official quantized one in our format.

    Args:
        model: folder or hub id of the official checkpoint. Weights that are quantized already (-int4,
            -int8, -int4-qe) are kept as they are.
        output: folder to create.
        bits: 4 or 8.
        group_size: 32, 64, 128 or "channel"; None takes 128 for 4 bits and "channel" for 8.
        method: "rtn": round to nearest in the range that a clip search chose; "hqq": half-quadratic fitting; "gptq":
            column by column, by what the layers see of a calibration text.
        symmetric: no zero points; None takes zero points for 4 bits and none for 8.
        head_bits: of the embedding and the head: 8 (per row), 4 or 16; None takes 8, or 16 where the
            format or vLLM knows nothing else.
        format: "compressed-tensors", or "official": the layout of the official -int4 and -int8
            checkpoints, rounded exactly as they are.
        quantize_embeddings: with the official format, the layout of chatglm-6b-int4-qe.
        vllm: write what vLLM takes: symmetric, the head unquantized, and a tokenizer.json.
        target_bits: instead of bits and group size: bits per weight of the whole model as stored, at most. Bits and
            group size are picked matrix by matrix, from how much each one's rounding changes the predictions.
        target_size: as ``target_bits``, for all tensors: bytes, or a text like "3.2GB" (1e9 bytes).
        calibration: a UTF-8 text file; "gptq" needs one, a target takes one.
        device: for "gptq" and targets: "cpu", "cuda" or "auto".
        resume: go on from an interrupted run with the same options.
        overwrite: replace an existing output once the new one is complete.
        max_shard_bytes: of a file; None takes 1 GiB, 256 MiB for "gptq".
        progress: called with bytes (or layers) done, in all, and the name of what is at hand.
        announce: called with lines on what will take long and what was chosen; None logs them.
        adapter: LoRA to merge into the weights before they are rounded, as of ``load``.
    Raises:
        UserError: one line on what is wrong; nothing that loads is left behind.
    """
    started = time.monotonic()
    options = QuantizationOptions(
        bits=bits,
        group_size=group_size,
        method=method,
        symmetric=symmetric,
        head_bits=head_bits,
        output_format=format,
        quantize_embeddings=quantize_embeddings,
        vllm=vllm,
        target_bits=target_bits,
        target_bytes=None if target_size is None else parse_size(target_size),
        calibration=None if calibration is None else Path(calibration),
        device=("cuda" if cuda_fault() is None else "cpu") if device == "auto" else device,
        model_version=model_version,
        max_shard_bytes=max_shard_bytes,
        adapters=tuple(find_adapters(adapter)),
    )
    output = Path(os.path.realpath(output))
    if not resume:
        check_output(output, overwrite=overwrite)
    folder = resolve_folder(model)
    if folder.resolve().is_relative_to(output.resolve()):
        raise OutputError(f"expected an output folder apart from the checkpoint, got {output}, which holds {folder}")
    scratch = next(parent for parent in output.parents if parent.is_dir())
    announce = announce or logger.info
    for source in options.adapters:
        announce(f"merging the adapter {source.folder} into the weights")
    plan = make_plan(folder, options, scratch, progress)
    if options.mixed:
        announce(f"chose {plan.mix_text}")
    finished = _finished_report(output, plan) if resume else None
    if finished is not None:
        return finished
    target = OutputFolder(output, resume=resume, overwrite=overwrite, fingerprint=plan.fingerprint)
    with target:
        return _run(plan, target, progress, announce, started)


def _run(
    plan: QuantizationPlan,
    target: OutputFolder,
    progress: Progress | None,
    announce: Callable[[str], None],
    started: float,
) -> QuantizationReport:
    """Write and publish what a plan says; the sources' checksums are computed beside."""
    with ThreadPoolExecutor(1) as pool:
        checksums = {file.name: pool.submit(sha256, file) for file in plan.reader.files}
        try:
            target.check_space({name: sum(unit.num_bytes for unit in units) for name, units in plan.shards.items()})
            notes = _write_shards(plan, target, progress, _calibrated(plan, target, announce))
            report = _report(plan, target.output, notes, started)
            _write_files(plan, target, report, {name: checksum.result() for name, checksum in checksums.items()})
            target.publish()
        except OSError as error:
            raise OutputError(
                f"expected to write {size_text(plan.stored_bytes)} to {target.output}, got: {error.strerror or error} "
                f"({error.filename or 'output'}); free some space or choose another disk"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
    return report


def _finished_report(output: Path, plan: QuantizationPlan) -> QuantizationReport | None:
    """The report of an output that a run like this has completed, however it ended; None where there is none."""
    report = read_report(output / REPORT, plan.fingerprint)
    if report is None:
        return None
    stored, checksums = report
    if checksums.keys() != plan.shards.keys():
        return None
    for name, checksum in checksums.items():
        if not (output / name).is_file() or sha256(output / name) != checksum:
            return None
    logger.warning("%s is complete already", output)
    tidy(output, plan.fingerprint)
    return stored


def _calibrated(
    plan: QuantizationPlan, target: OutputFolder, announce: Callable[[str], None]
) -> CalibratedQuantizer | None:
    """GPTQ for the linear layers, announced with the time that it will take; None for another method."""
    if plan.method != "gptq" or plan.calibration is None:
        return None
    device = plan.options.device
    seconds = estimated_seconds(plan.config, plan.calibration.num_tokens, device)
    announce(
        f"GPTQ on {len(plan.calibration.sequences)} sequences ({plan.calibration.num_tokens} tokens) will take "
        + (f"about {seconds / 60:.0f} minutes" if seconds > 90 else f"about {math.ceil(seconds)} seconds")
    )
    return CalibratedQuantizer(plan.reader, plan.info, plan.calibration, plan.folding, target.partial, device)


def _write_shards(
    plan: QuantizationPlan, target: OutputFolder, progress: Progress | None, calibrated: CalibratedQuantizer | None
) -> Notes:
    """Write the shards that are not finished; returns a note for every quantized matrix."""
    done, total = 0, plan.total_source_bytes

    def fill(unit: Unit, writer: SafetensorsWriter) -> dict[str, Any]:
        nonlocal done
        if progress:
            progress(done, total, unit.key)
        note = _write_unit(plan, unit, writer, calibrated)
        done += plan.source_bytes(unit)
        return note

    notes: Notes = []
    for name, units in plan.shards.items():
        finished = target.finished(name)
        if finished is None:
            finished = target.write_shard(name, units, fill)
        else:
            done += sum(plan.source_bytes(unit) for unit in units)
            if calibrated is not None:
                _skip_finished(plan, target.partial / name, units, calibrated)
        notes += [note for note in finished if note]
    if progress:
        progress(total, total, "writing the index")
    return notes


def _skip_finished(plan: QuantizationPlan, shard: Path, units: list[Unit], calibrated: CalibratedQuantizer) -> None:
    """Let the calibration text run through the matrices that an earlier run has quantized."""
    tensors, _ = map_safetensors(shard)
    for unit in units:
        if calibrated.takes(unit.key):
            scheme = plan.schemes[unit.key]
            assert scheme is not None
            calibrated.skip(unit.key, packed_format.read_weight(tensors, plan.matrices[unit.key], scheme))


def _write_unit(
    plan: QuantizationPlan, unit: Unit, writer: SafetensorsWriter, calibrated: CalibratedQuantizer | None
) -> dict[str, Any]:
    """Write one matrix, or tensors as they are; returns what to note about a quantized matrix."""
    matrix = plan.matrices.get(unit.key)
    if matrix is not None and plan.schemes[matrix.name] is not None:
        sums = ErrorSums()
        stored = official_format if plan.options.official else packed_format
        stored.write_weight(writer, matrix, quantized_pieces(plan, matrix, sums, calibrated))
        plan.reader.release(f"{plan.sources.get(matrix.name, matrix.name)}.weight")
        return {"name": unit.key, "rel_error": sums.relative_rms}
    for spec in unit.specs:
        _write_kept(plan, spec, writer)
    return {}


def _write_kept(plan: QuantizationPlan, spec: TensorSpec, writer: SafetensorsWriter) -> None:
    """Write a tensor that stays unquantized; a matrix some rows at a time."""
    parts = [slice(None)]
    if len(spec.shape) == 2:
        step = max(PIECE_WEIGHTS // max(spec.shape[1], 1), 1)
        parts = [slice(start, start + step) for start in range(0, spec.shape[0], step)]
    offset = 0
    for rows in parts:
        piece = plan.reader.rows(spec.name, rows).to(spec.dtype)
        check_finite(spec.name, piece)
        writer.write(spec.name, plan.folding.fold(spec.name, piece), offset)
        offset += piece.nbytes
        plan.reader.release(spec.name, rows)


def _report(plan: QuantizationPlan, output: Path, notes: Notes, started: float) -> QuantizationReport:
    sizes = {unit.key: unit.num_bytes for unit in plan.units}
    layers = [
        layer_report(
            plan.matrices[n["name"]],
            plan.schemes[n["name"]],
            sizes[n["name"]],
            n["rel_error"],
            plan.costs.get(n["name"]),
        )
        for n in notes
    ]
    scheme = plan.scheme
    return QuantizationReport(
        output=str(output),
        bits="mixed" if plan.costs else scheme.bits,
        group_size="mixed" if plan.costs else "channel" if scheme.group_size is None else scheme.group_size,
        method=plan.method,
        bits_per_weight=8 * plan.stored_bytes / layout.num_parameters(plan.config),
        seconds=time.monotonic() - started,
        peak_rss_bytes=peak_bytes(),
        source_bytes=plan.total_source_bytes,
        stored_bytes=plan.stored_bytes,
        layers=layers,
    )


def _write_files(
    plan: QuantizationPlan, target: OutputFolder, report: QuantizationReport, source_checksums: dict[str, str]
) -> None:
    """Write everything but the shards, the index last."""
    folder = plan.reader.folder
    config = official_config(read_config(folder))
    config.pop("auto_map", None)
    for key in ("quantization_bit", "quantization_embeddings", "quantization_config"):
        config.pop(key, None)
    if plan.options.official:
        config["quantization_bit"] = plan.scheme.bits
        if plan.options.quantize_embeddings:
            config["quantization_embeddings"] = True
    else:
        config["quantization_config"] = packed_format.quantization_config(plan.config, plan.schemes)
    for path in text_files(folder):
        if path.name not in _WRITTEN_ANEW:
            target.copy(path)
    if plan.info.has_prefix:
        prefix = {name: plan.reader[name].contiguous() for name in plan.reader if name.startswith(PREFIX_STEM)}
        target.write_tensors(SAFETENSORS_FILE, prefix)
    if plan.tokenizer_config is not None:
        target.write_json("tokenizer_config.json", plan.tokenizer_config)
    if plan.tokenizer_json is not None:
        target.write_json("tokenizer.json", json.loads(plan.tokenizer_json))
        config.setdefault("architectures", ["ChatGLMModel"])
    details = {
        "versions": {"glm-int4": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "source_sha256": source_checksums,
        "adapters": plan.adapters,
        "sha256": target.checksums,
        "fingerprint": plan.fingerprint,
    }
    target.write_json(REPORT, asdict(report) | details)
    target.write_json("config.json", config)
    index = {"metadata": {"total_size": plan.stored_bytes}, "weight_map": plan.weight_map}
    target.write_json("model.safetensors.index.json", index)
