"""The quantized checkpoint on disk: compressed-tensors' *pack-quantized* format.

A matrix ``name`` is stored as ``name.weight_packed`` int32 (N, K * bits / 32), ``name.weight_scale``
float16 (N, K / G), ``name.weight_shape`` int64 (2) and, if asymmetric, ``name.weight_zero_point`` int32
(N * bits / 32, K / G), packed along N. Bytes are little-endian, so the packed words are also rows of
bytes with the even k in the low nibble; stored integers are q + 8 (4 bits) or q + 128 (8 bits).
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from glm_int4.checkpoint.files.reader import CheckpointReader
from glm_int4.checkpoint.files.safetensors_file import SafetensorsWriter, TensorSpec
from glm_int4.checkpoint.formats import layout, tensor_names
from glm_int4.checkpoint.formats.layout import MatrixSpec
from glm_int4.checkpoint.formats.official import half_scales
from glm_int4.downloads import shown, shown_name
from glm_int4.errors import CheckpointError, ConfigError
from glm_int4.models.config import Config
from glm_int4.quantization.scheme import GROUP_SIZES, QuantizationScheme, QuantizedWeight

logger = logging.getLogger(__name__)

QUANT_METHOD, FORMAT = "compressed-tensors", "pack-quantized"


def tensor_specs(matrix: MatrixSpec, scheme: QuantizationScheme) -> list[TensorSpec]:
    """The tensors that one quantized matrix is stored as."""
    n, k = matrix.out_features, matrix.in_features
    num_groups = k // scheme.row_group_size(k)
    specs = [
        TensorSpec(f"{matrix.name}.weight_packed", (n, k * scheme.bits // 32), torch.int32),
        TensorSpec(f"{matrix.name}.weight_scale", (n, num_groups), torch.float16),
        TensorSpec(f"{matrix.name}.weight_shape", (2,), torch.int64),
    ]
    if not scheme.symmetric:
        words = -(-n * scheme.bits // 32)
        specs.append(TensorSpec(f"{matrix.name}.weight_zero_point", (words, num_groups), torch.int32))
    return specs


def pack_zero_points(zero_points: Tensor, bits: int) -> Tensor:
    """Pack unsigned zero points (N, G) uint8 along N into int32 words (ceil(N * bits / 32), G)."""
    per_word = 32 // bits
    padding = -zero_points.shape[0] % per_word
    padded = torch.nn.functional.pad(zero_points, (0, 0, 0, padding)).long()
    shifts = torch.arange(0, 32, bits)[:, None]
    words = (padded.unflatten(0, (-1, per_word)) << shifts).sum(dim=1)
    return words.to(torch.uint32).view(torch.int32)


def unpack_zero_points(words: Tensor, bits: int, out_features: int) -> Tensor:
    """Undo ``pack_zero_points``: (N, G) uint8."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)[:, None]
    values = (words[:, None] >> shifts) & ((1 << bits) - 1)
    return values.flatten(0, 1)[:out_features].to(torch.uint8)


def quantization_config(config: Config, schemes: Mapping[str, QuantizationScheme | None]) -> dict[str, Any]:
    """The ``quantization_config`` of config.json; where linear layers have several schemes, they are named.

    Args:
        schemes: by matrix name.
    """
    names: dict[QuantizationScheme, list[str]] = {}
    for matrix in layout.linears(config):
        found = schemes[matrix.name]
        assert found is not None
        names.setdefault(found, []).append(matrix.name)
    groups = {f"linears {i}": _group(scheme, *some) for i, (scheme, some) in enumerate(names.items())}
    if len(names) == 1:
        groups = {"linears": _group(next(iter(names)), "Linear")}
    tied = layout.tied_head(config)
    ignore = [tied] if tied else []
    for matrix in layout.vocabulary(config):
        matrix_scheme = schemes[matrix.name]
        if matrix.kind != "head" and matrix_scheme is not None:
            groups["embeddings"] = _group(matrix_scheme, "Embedding")
        elif matrix.kind == "head" and matrix_scheme is not None:
            groups["head"] = _group(matrix_scheme, matrix.name)
        elif matrix.kind == "head":
            ignore.append(matrix.name)
    return {
        "quant_method": QUANT_METHOD,
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignore,
    }


def _group(scheme: QuantizationScheme, *targets: str) -> dict[str, Any]:
    weights = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "channel" if scheme.group_size is None else "group",
        "group_size": scheme.group_size,
    }
    return {"targets": list(targets), "weights": weights, "format": FORMAT}


def is_packed(raw_config: Mapping[str, Any], reader: CheckpointReader) -> bool:
    """Whether a parsed config.json describes this format; what another program left over plain weights is ignored.

    Raises:
        CheckpointError: the weights are quantized by another program.
        ConfigError: it describes another format of compressed-tensors.
    """
    quantization = raw_config.get("quantization_config")
    if not quantization:
        return False
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    if isinstance(method, str) and method != QUANT_METHOD:
        if what_to_do := tensor_names.other_quantization(reader):
            raise CheckpointError(f"expected half-precision weights in {reader.folder}, got others; {what_to_do}")
        logger.warning("ignoring what config.json says of %s: the weights are not quantized by it", shown_name(method))
        return False
    if method != QUANT_METHOD or quantization.get("format") != FORMAT:
        raise ConfigError(
            f'expected quantization_config with quant_method "{QUANT_METHOD}" and format "{FORMAT}" in config.json, '
            f"got {shown(quantization)}; quantize the official checkpoint with glm-int4 quantize"
        )
    return True


def stored_scheme(reader: CheckpointReader, matrix: MatrixSpec) -> QuantizationScheme | None:
    """The scheme that a matrix is stored with, told by its tensors' shapes; None where it is not quantized.

    Raises:
        CheckpointError: the shapes fit no scheme.
    """
    packed_name, scale_name = f"{matrix.name}.weight_packed", f"{matrix.name}.weight_scale"
    if packed_name not in reader:
        return None
    if scale_name not in reader:
        raise CheckpointError(f"expected {scale_name} beside {packed_name} in {reader.folder}, got none")
    k = matrix.in_features
    words, groups = (reader[name].shape[-1] if reader[name].dim() == 2 else 0 for name in (packed_name, scale_name))
    bits = words * 32 // k
    group_size = None if groups == 1 else k // max(groups, 1)
    if bits not in (4, 8) or words * 32 != bits * k or (group_size is not None and group_size not in GROUP_SIZES):
        raise CheckpointError(
            f"expected {packed_name} and {scale_name} to describe 4 or 8 bits for {k} inputs in {reader.folder}, "
            f"got {tuple(reader[packed_name].shape)} and {tuple(reader[scale_name].shape)}"
        )
    symmetric = f"{matrix.name}.weight_zero_point" not in reader
    return QuantizationScheme(bits=bits, group_size=group_size, symmetric=symmetric)


def read_weight(
    reader: CheckpointReader | Mapping[str, Tensor],
    matrix: MatrixSpec,
    scheme: QuantizationScheme,
    device: torch.device | None = None,
) -> QuantizedWeight:
    """Read a quantized matrix whose tensors have been checked, onto a device; with None its bytes stay mapped."""
    zero_points = None
    if not scheme.symmetric:
        words = reader[f"{matrix.name}.weight_zero_point"].to(device)
        zero_points = unpack_zero_points(words, scheme.bits, matrix.out_features)
    shape = tuple(reader[f"{matrix.name}.weight_shape"].tolist())
    if shape != (matrix.out_features, matrix.in_features):
        raise CheckpointError(
            f"expected {(matrix.out_features, matrix.in_features)} in {matrix.name}.weight_shape, got {shape}"
        )
    name = f"{matrix.name}.weight_scale"
    scales = half_scales(reader[name].to(device), name)
    if bool((scales <= 0).any()):
        raise CheckpointError(f"expected positive, finite scales in {name}, got others")
    return QuantizedWeight(
        scheme=scheme,
        packed=reader[f"{matrix.name}.weight_packed"].to(device).view(torch.uint8),
        scales=scales,
        zero_points=zero_points,
    )


def write_weight(writer: SafetensorsWriter, matrix: MatrixSpec, pieces: Iterable[QuantizedWeight]) -> None:
    """Write a quantized matrix that comes in pieces of rows."""
    scales, zeros, offset, bits = [], [], 0, 0
    for piece in pieces:
        writer.write(f"{matrix.name}.weight_packed", piece.packed, offset)
        offset += piece.packed.numel()
        bits = piece.scheme.bits
        scales.append(piece.scales)
        if piece.zero_points is not None:
            zeros.append(piece.zero_points)
    writer.write(f"{matrix.name}.weight_scale", torch.cat(scales))
    writer.write(f"{matrix.name}.weight_shape", torch.tensor([matrix.out_features, matrix.in_features]))
    if zeros:
        writer.write(f"{matrix.name}.weight_zero_point", pack_zero_points(torch.cat(zeros), bits))
