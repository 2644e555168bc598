"""The official quantized checkpoints (-int8, -int4, -int4-qe): symmetric, one scale for every row.

A matrix ``name`` is stored as ``name.weight`` int8, (N, K) for 8 bits or (N, K / 2) for 4, and
``name.weight_scale`` float16 (N). Four bits are two's complement, the even k in the HIGH nibble. Norms,
biases and, but for -int4-qe, the embedding and the head stay in half precision.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from glm_int4.checkpoint.files.reader import CheckpointReader
from glm_int4.checkpoint.files.safetensors_file import SafetensorsWriter, TensorSpec
from glm_int4.checkpoint.formats.layout import MatrixSpec
from glm_int4.downloads import shown
from glm_int4.errors import CheckpointError, ConfigError
from glm_int4.quantization.scheme import BITS, QuantizationScheme, QuantizedWeight


def scheme_of(bits: int) -> QuantizationScheme:
    """The one scheme of this format at 4 or 8 bits."""
    return QuantizationScheme(bits=bits, group_size=None, symmetric=True)


def tensor_specs(matrix: MatrixSpec, scheme: QuantizationScheme) -> list[TensorSpec]:
    """The tensors that one quantized matrix is stored as."""
    n, k = matrix.out_features, matrix.in_features
    return [
        TensorSpec(f"{matrix.name}.weight", (n, k * scheme.bits // 8), torch.int8),
        TensorSpec(f"{matrix.name}.weight_scale", (n,), torch.float16),
    ]


def stored_bits(raw_config: Mapping[str, Any]) -> int | None:
    """Bits of the weights by a parsed config.json; None where they are not quantized this way.

    Raises:
        ConfigError: bits that the official code does not know.
    """
    bits = raw_config.get("quantization_bit") or None
    if bits is not None and (type(bits) is not int or bits not in BITS):
        raise ConfigError(
            f"expected quantization_bit 4, 8 or none in config.json, got {shown(bits)}; "
            "take the file from the official repository"
        )
    return bits


def stored_scheme(reader: CheckpointReader, matrix: MatrixSpec, bits: int | None) -> QuantizationScheme | None:
    """The scheme that a matrix is stored with; None where it is not quantized.

    Args:
        bits: what config.json says.
    Raises:
        CheckpointError: scales without quantization_bit in the config.
    """
    if f"{matrix.name}.weight_scale" not in reader:
        return None
    if bits is None:
        width = reader[f"{matrix.name}.weight"].shape[-1] if f"{matrix.name}.weight" in reader else 0
        guess = next((b for b in BITS if matrix.in_features * b == 8 * width), 4)
        raise CheckpointError(
            f"expected quantization_bit in config.json of {reader.folder}, since its weights have scales, got none; "
            f'take config.json from the quantized repository, or add "quantization_bit": {guess}'
        )
    return scheme_of(bits)


def check_scales(reader: CheckpointReader, schemes: Mapping[str, QuantizationScheme | None], bits: int) -> None:
    """Raise CheckpointError where config.json promises quantized layers and some have no scales."""
    bare = [name for name, scheme in schemes.items() if scheme is None]
    if bare:
        raise CheckpointError(
            f"expected {bare[0]}.weight_scale in {reader.folder}, since config.json has quantization_bit {bits}, got "
            f"none ({len(bare)} layers have no scales); take weights and config from the same repository, or remove "
            "quantization_bit for half-precision weights"
        )


def read_weight(
    reader: CheckpointReader, matrix: MatrixSpec, scheme: QuantizationScheme, device: torch.device | None = None
) -> QuantizedWeight:
    """Read a quantized matrix whose tensors have been checked, in our byte order, onto a device or None: the CPU.

    Raises:
        CheckpointError: a scale is negative or not finite.
    """
    name = f"{matrix.name}.weight_scale"
    scales = half_scales(reader[name].to(device), name)
    if bool((scales < 0).any()):
        raise CheckpointError(f"expected finite scales of 0 or more in {name}, got others")
    return QuantizedWeight(
        scheme=scheme,
        packed=from_official(reader[f"{matrix.name}.weight"].to(device), scheme.bits),
        scales=scales[:, None],
        zero_points=None,
    )


def half_scales(stored: Tensor, name: str) -> Tensor:
    """A copy of scales in float16, whatever dtype ``model.float()`` and the like have left them in.

    Raises:
        CheckpointError: one is not finite, or too large or too small for float16.
    """
    scales = stored.to(torch.float16, copy=True)
    if not bool(torch.isfinite(stored).all()):
        raise CheckpointError(f"expected finite scales in {name}, got others")
    if not bool(torch.isfinite(scales).all()) or bool(((scales == 0) & (stored != 0)).any()):
        raise CheckpointError(f"expected scales that fit float16 in {name}, got {stored.dtype} beyond its range")
    return scales


def from_official(weight: Tensor, bits: int) -> Tensor:
    """Official int8 (N, K * bits / 8) as unsigned bytes, the even k in the low nibble."""
    stored = weight.contiguous().view(torch.uint8)
    if bits == 8:
        return stored ^ 0x80
    return ((stored << 4) | (stored >> 4)) ^ 0x88


def to_official(packed: Tensor, bits: int) -> Tensor:
    """Undo ``from_official``."""
    if bits == 8:
        return (packed ^ 0x80).view(torch.int8)
    swapped = packed ^ 0x88
    return ((swapped << 4) | (swapped >> 4)).view(torch.int8)


def write_weight(writer: SafetensorsWriter, matrix: MatrixSpec, pieces: Iterable[QuantizedWeight]) -> None:
    """Write a quantized matrix that comes in pieces of rows."""
    scales, offset = [], 0
    for piece in pieces:
        writer.write(f"{matrix.name}.weight", to_official(piece.packed, piece.scheme.bits), offset)
        offset += piece.packed.numel()
        scales.append(piece.scales.flatten())
    writer.write(f"{matrix.name}.weight_scale", torch.cat(scales))
