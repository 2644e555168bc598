"""Quantizing a checkpoint offline: one block of rows at a time, in little memory.

The files that come out are described in ``packed_format.py``; how they are put in place, in
``shards.py``.
"""

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from glm_int4.checkpoint import layout, packed_format
from glm_int4.checkpoint.checks import check_finite, warn_of_untied_head
from glm_int4.checkpoint.folder import read_config, resolve_folder
from glm_int4.checkpoint.layout import MatrixSpec
from glm_int4.checkpoint.loading import load_checked_tokenizer, open_checkpoint
from glm_int4.checkpoint.reader import CheckpointReader
from glm_int4.checkpoint.report import QuantizationReport, layer_report, peak_rss_bytes
from glm_int4.checkpoint.safetensors_file import SafetensorsWriter, TensorSpec
from glm_int4.checkpoint.shards import MAX_SHARD_BYTES, REPORT, OutputFolder, Unit, check_output, plan_shards, sha256
from glm_int4.errors import CheckpointError, InputError, OutputError, TokenizerError
from glm_int4.files import ABSENT, found_instead, read_json
from glm_int4.models.config import ChatGLMConfig
from glm_int4.quantization.rounding import quantize_rtn
from glm_int4.quantization.scheme import QuantizationScheme
from glm_int4.version import __version__

METHODS = ("rtn",)
_BLOCK_WEIGHTS = 32 << 20  # of fp16: 64 MiB
_COPIED = ("ice_text.model", "tokenizer.model", "special_tokens_map.json", "generation_config.json", "MODEL_LICENSE")

Progress = Callable[[int, int, str], None]


def quantize_checkpoint(
    model: str | Path,
    output: str | Path,
    *,
    bits: int = 4,
    group_size: int | str | None = None,
    method: str = "rtn",
    symmetric: bool = False,
    head_bits: int = 8,
    model_version: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
) -> QuantizationReport:
    """Quantize a half-precision ChatGLM checkpoint.

    Args:
        model: folder or hub id of the official checkpoint.
        output: folder to create.
        bits: 4 or 8.
        group_size: 32, 64, 128 or "channel"; None takes 128 for 4 bits and "channel" for 8.
        method: "rtn": round to nearest in the range that a clip search chose.
        symmetric: no zero points. 8 bits are always symmetric.
        head_bits: of the embedding, which is also the head: 8 (per row), 4 or 16.
        resume: go on from an interrupted run with the same options.
        overwrite: replace an existing output once the new one is complete.
        progress: called with bytes done, bytes in all and the name of the matrix at hand.
    Raises:
        UserError: one line on what is wrong; nothing that loads is left behind.
    """
    started = time.monotonic()
    scheme = _linear_scheme(bits, group_size, method, symmetric)
    if head_bits not in (4, 8, 16):
        raise InputError(f"expected head bits to be 4, 8 or 16, got {head_bits}")
    output = Path(os.path.realpath(output))
    check_output(output, overwrite=overwrite)
    folder = resolve_folder(model)
    if folder.resolve().is_relative_to(output.resolve()):
        raise OutputError(f"expected an output folder apart from the checkpoint, got {output}, which holds {folder}")
    tokenizer_config = _tokenizer_config(folder)
    reader, info = open_checkpoint(folder, model_version)
    load_checked_tokenizer(folder, info.config)
    if any(info.schemes.values()):
        raise CheckpointError(f"expected a half-precision checkpoint, got the quantized one in {folder}")
    warn_of_untied_head(reader)
    head_scheme = _head_scheme(scheme, head_bits, symmetric, info.config.hidden_size)
    schemes = {m.name: scheme for m in layout.linears(info.config)} | {layout.EMBEDDING: head_scheme}
    matrices = {m.name: m for m in (layout.embedding(info.config), *layout.linears(info.config))}
    _check_group_sizes(matrices.values(), schemes)

    units = _units(info.config, reader, matrices, schemes)
    shards = plan_shards(units, max_shard_bytes)
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    fingerprint = {
        "version": __version__,
        "source": [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in reader.files],
        "schemes": [str(scheme), str(head_scheme), method, max_shard_bytes],
    }
    total = sum(_source_bytes(reader, unit) for unit in units)
    stored = sum(unit.num_bytes for unit in units)
    done = 0

    def fill(unit: Unit, writer: SafetensorsWriter) -> dict[str, Any]:
        nonlocal done
        matrix_scheme = schemes.get(unit.key)
        if progress:
            progress(done, total, unit.key)
        if matrix_scheme is None:
            for spec in unit.specs:
                tensor = reader[spec.name]
                check_finite(spec.name, tensor)
                writer.write(spec.name, tensor)
                reader.release(spec.name)
            note: dict[str, Any] = {}
        else:
            error, norm = _quantize_matrix(reader, matrices[unit.key], matrix_scheme, writer)
            note = {"name": unit.key, "rel_error": (error / norm) ** 0.5 if norm else 0.0}
        done += _source_bytes(reader, unit)
        return note

    with (
        OutputFolder(output, resume=resume, fingerprint=fingerprint) as target,
        ThreadPoolExecutor(1) as pool,
    ):
        target.check_space(stored)
        checksums = {file.name: pool.submit(sha256, file) for file in reader.files}
        notes = []
        try:
            for name, shard in zip(names, shards, strict=True):
                finished = target.finished(name)
                if finished is None:
                    finished = target.write_shard(name, shard, fill)
                else:
                    done += sum(_source_bytes(reader, unit) for unit in shard)
                notes += [note for note in finished if note]
            if progress:
                progress(total, total, "writing the index")
            layers = [layer_report(matrices[note["name"]], schemes[note["name"]], note["rel_error"]) for note in notes]
            report = QuantizationReport(
                output=str(output),
                bits=bits,
                group_size="channel" if scheme.group_size is None else scheme.group_size,
                method=method,
                bits_per_weight=8 * stored / layout.num_parameters(info.config),
                seconds=time.monotonic() - started,
                peak_rss_bytes=peak_rss_bytes(),
                source_bytes=total,
                stored_bytes=stored,
                layers=layers,
            )
            sources = {name: checksum.result() for name, checksum in checksums.items()}
            _write_files(target, folder, tokenizer_config, scheme, head_scheme, report, sources)
            weight_map = {
                s.name: name for name, shard in zip(names, shards, strict=True) for u in shard for s in u.specs
            }
            index = {"metadata": {"total_size": stored}, "weight_map": weight_map}
            target.write_json("model.safetensors.index.json", index)
            target.publish()
        except OSError as error:
            raise OutputError(
                f"expected to write {stored / 1e9:.2f} GB to {output}, got: {error.strerror or error} "
                f"({error.filename or 'output'}); free some space or choose another disk"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
    return report


def _linear_scheme(bits: int, group_size: int | str | None, method: str, symmetric: bool) -> QuantizationScheme:
    if bits not in (4, 8):
        raise InputError(f"expected bits to be 4 or 8, got {bits}")
    if method not in METHODS:
        raise InputError(f"expected the method {' or '.join(METHODS)}, got {method!r}")
    if group_size is None:
        group_size = 128 if bits == 4 else "channel"
    if group_size != "channel" and not (isinstance(group_size, int) and not isinstance(group_size, bool)):
        raise InputError(f"expected a group size of 32, 64, 128 or channel, got {group_size!r}")
    size = None if group_size == "channel" else int(group_size)
    return QuantizationScheme(bits=bits, group_size=size, symmetric=symmetric or bits == 8)


def _head_scheme(
    scheme: QuantizationScheme, head_bits: int, symmetric: bool, hidden_size: int
) -> QuantizationScheme | None:
    """Scheme of the embedding and head: INT8 per row, INT4 in groups, None for unquantized."""
    if head_bits == 16:
        return None
    if head_bits == 8:
        return QuantizationScheme(bits=8, group_size=None, symmetric=True)
    group_size = scheme.group_size or next((size for size in (128, 64, 32) if hidden_size % size == 0), None)
    return QuantizationScheme(bits=4, group_size=group_size, symmetric=symmetric)


def _check_group_sizes(matrices: Iterable[MatrixSpec], schemes: dict[str, QuantizationScheme | None]) -> None:
    for matrix in matrices:
        scheme, k = schemes[matrix.name], matrix.in_features
        if scheme is None:
            continue
        if k % scheme.row_group_size(k):
            raise InputError(
                f"expected a group size that divides the {k} inputs of {matrix.name}, got {scheme.group_size}; "
                "pass --group-size 32, 64 or channel"
            )
        if k * scheme.bits % 32:
            raise InputError(
                f"expected inputs that fill whole 32-bit words at {scheme.bits} bits, got {k} of {matrix.name}"
            )


def _units(
    config: ChatGLMConfig,
    reader: CheckpointReader,
    matrices: dict[str, MatrixSpec],
    schemes: dict[str, QuantizationScheme | None],
) -> list[Unit]:
    """Everything to be stored, in the order of the network."""
    units = []
    for name, matrix in matrices.items():
        scheme = schemes[name]
        if scheme is None:
            specs = [
                TensorSpec(f"{name}.weight", (matrix.out_features, matrix.in_features), reader[f"{name}.weight"].dtype)
            ]
        else:
            specs = packed_format.tensor_specs(matrix, scheme)
        units.append(Unit(name, tuple(specs)))
    vectors = [TensorSpec(name, shape, reader[name].dtype) for name, shape in layout.vectors(config).items()]
    units.append(Unit("norms and biases", tuple(vectors)))
    return units


def _source_bytes(reader: CheckpointReader, unit: Unit) -> int:
    names = [f"{unit.key}.weight"] if f"{unit.key}.weight" in reader else [spec.name for spec in unit.specs]
    return sum(reader[name].numel() * reader[name].element_size() for name in names)


def _quantize_matrix(
    reader: CheckpointReader, matrix: MatrixSpec, scheme: QuantizationScheme, writer: SafetensorsWriter
) -> tuple[float, float]:
    """Quantize and write one matrix; returns the sums of squared errors and squared weights."""
    weight = reader[f"{matrix.name}.weight"]
    step = max(_BLOCK_WEIGHTS // matrix.in_features, 1)
    row_bytes = matrix.in_features * scheme.bits // 8
    scales, zeros = [], []
    error = norm = 0.0
    for start in range(0, matrix.out_features, step):
        block = weight[start : start + step]
        check_finite(f"{matrix.name}.weight", block)
        quantized, block_error, block_norm = quantize_rtn(block, scheme)
        if not bool(torch.isfinite(quantized.scales).all()):
            raise CheckpointError(f"expected weights whose scales fit float16, got larger ones in {matrix.name}.weight")
        writer.write(f"{matrix.name}.weight_packed", quantized.packed, start * row_bytes)
        scales.append(quantized.scales)
        if quantized.zero_points is not None:
            zeros.append(quantized.zero_points)
        error, norm = error + block_error, norm + block_norm
    writer.write(f"{matrix.name}.weight_scale", torch.cat(scales))
    writer.write(f"{matrix.name}.weight_shape", torch.tensor([matrix.out_features, matrix.in_features]))
    if zeros:
        packed = packed_format.pack_zero_points(torch.cat(zeros), scheme.bits)
        writer.write(f"{matrix.name}.weight_zero_point", packed)
    reader.release(f"{matrix.name}.weight")
    return error, norm


def _write_files(
    target: OutputFolder,
    folder: Path,
    tokenizer_config: dict[str, Any] | None,
    scheme: QuantizationScheme,
    head_scheme: QuantizationScheme | None,
    report: QuantizationReport,
    sources: dict[str, str],
) -> None:
    config = read_config(folder)
    config.pop("auto_map", None)
    config["quantization_config"] = packed_format.quantization_config(scheme, head_scheme, ignore=["lm_head"])
    for name in _COPIED:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target.partial / name)
    if tokenizer_config is not None:
        target.write_json("tokenizer_config.json", tokenizer_config)
    versions = {"glm-int4": __version__, "torch": torch.__version__, "python": platform.python_version()}
    target.write_json(REPORT, asdict(report) | {"versions": versions, "source_sha256": sources})
    target.write_json("config.json", config)


def _tokenizer_config(folder: Path) -> dict[str, Any] | None:
    """The tokenizer's config without the names of code to download, or None."""
    path = folder / "tokenizer_config.json"
    if found_instead(path) == ABSENT:
        return None
    config = read_json(path, TokenizerError)
    config.pop("auto_map", None)
    return config
