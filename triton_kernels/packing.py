"""How 4-bit integers lie in memory, in files and at run time.

File layout: uint8 [N, K / 2], even k in the low nibble. Runtime layout: int16 [N, K / 4]; inside each
run of ``plane_size`` weights, word j holds the weights j, j + P/4, j + 2P/4 and j + 3P/4 in its nibbles
0 to 3, so that one nibble of neighbouring words is a contiguous stretch of K. Values are unsigned,
0 to 15; what they stand for is the scale's and the zero point's business.
"""

from math import gcd

import torch
from torch import Tensor

CHANNEL_PLANE_SIZE = 128


def pack_int4(q: Tensor) -> Tensor:
    """Pack 4-bit integers two a byte, even index in the low nibble.

    Args:
        q: (..., K) uint8, values 0 to 15, K even.
    Returns:
        (..., K // 2) uint8.
    Raises:
        ValueError: dtype, K or a value does not fit.
    """
    if q.dtype != torch.uint8 or q.shape[-1] % 2:
        raise ValueError(f"q must be uint8 with an even last dimension, got {q.dtype} {tuple(q.shape)}")
    if q.numel() and int(q.max()) > 15:
        raise ValueError(f"q must hold values from 0 to 15, got {int(q.max())}")
    return q[..., 0::2] | (q[..., 1::2] << 4)


def unpack_int4(packed: Tensor) -> Tensor:
    """Undo ``pack_int4``: (..., K // 2) uint8 to (..., K) uint8.

    Raises:
        ValueError: not uint8.
    """
    if packed.dtype != torch.uint8:
        raise ValueError(f"packed must be uint8, got {packed.dtype}")
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)


def plane_size(in_features: int, group_size: int) -> int:
    """Length of the run inside which nibbles are planar: the group, or up to 128 per channel.

    Raises:
        ValueError: ``group_size`` does not divide ``in_features``, or the run is no multiple of 4.
    """
    if group_size < 1 or in_features % group_size:
        raise ValueError(f"group_size must divide {in_features}, got {group_size}")
    size = gcd(in_features, CHANNEL_PLANE_SIZE) if group_size == in_features else group_size
    if size % 4:
        raise ValueError(f"planar packing needs runs of a multiple of 4 weights, got {size} of {in_features}")
    return size


def to_planar(packed: Tensor, group_size: int) -> Tensor:
    """Repack the file layout (N, K // 2) uint8 as the runtime layout (N, K // 4) int16.

    Raises:
        ValueError: dtype, or ``group_size`` does not divide K.
    """
    q = unpack_int4(packed)
    size = plane_size(q.shape[1], group_size)
    planes = q.unflatten(1, (-1, 4, size // 4)).to(torch.int32)
    shifts = torch.arange(0, 16, 4, dtype=torch.int32, device=q.device)
    words = (planes << shifts[:, None]).sum(dim=2, dtype=torch.int32)
    return words.to(torch.int16).flatten(1)


def from_planar(qweight: Tensor, group_size: int) -> Tensor:
    """Undo ``to_planar``: (N, K // 4) int16 to (N, K // 2) uint8.

    Raises:
        ValueError: dtype, or ``group_size`` does not divide K.
    """
    return pack_int4(unpack_planar(qweight, group_size))


def unpack_planar(qweight: Tensor, group_size: int) -> Tensor:
    """Unpack the runtime layout (N, K // 4) int16 to (N, K) uint8.

    Raises:
        ValueError: dtype, or ``group_size`` does not divide K.
    """
    if qweight.dtype != torch.int16:
        raise ValueError(f"qweight must be int16, got {qweight.dtype}")
    size = plane_size(4 * qweight.shape[1], group_size)
    words = qweight.unflatten(1, (-1, 1, size // 4)).to(torch.int32)
    shifts = torch.arange(0, 16, 4, dtype=torch.int32, device=qweight.device)
    return ((words >> shifts[:, None]) & 15).to(torch.uint8).flatten(1)
