"""How 4-bit integers lie in memory, in files and at run time.

File layout: uint8 [N, K / 2], even k in the low nibble. Runtime layout: int16 [N, K / 4]; inside each
run of P = 128 weights, word j holds the weights j, j + P/4, j + 2P/4 and j + 3P/4 in its nibbles 0 to 3,
so that one nibble of neighbouring words is a contiguous stretch of K. The run does not depend on the
group: 32 weights of a plane never cross a group of 32, 64 or 128, and a tensor core's product takes at
least 16 of them. Values are unsigned, 0 to 15; what they stand for is the scale's and the zero point's
business.
"""

from math import gcd

import torch
from torch import Tensor

RUN = 128
_PIECE_WEIGHTS = 1 << 24


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
    _check_packed(packed)
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)


def _check_packed(packed: Tensor) -> None:
    if packed.dtype != torch.uint8:
        raise ValueError(f"packed must be uint8, got {packed.dtype}")


def run_size(in_features: int) -> int:
    """Length of the run inside which nibbles are planar: 128, or what divides both 128 and K.

    Raises:
        ValueError: the run is no multiple of 4.
    """
    size = gcd(in_features, RUN)
    if size % 4:
        raise ValueError(f"planar packing needs a multiple of 4 weights in a row, got {in_features}")
    return size


def to_planar(packed: Tensor) -> Tensor:
    """Repack the file layout (N, K // 2) uint8 as the runtime layout (N, K // 4) int16.

    Works through pieces of rows, so that memory beside input and output stays bounded.

    Raises:
        ValueError: dtype, or K is no multiple of 4.
    """
    _check_packed(packed)
    num_rows, in_features = packed.shape[0], 2 * packed.shape[1]
    size = run_size(in_features)
    out = torch.empty(num_rows, in_features // 4, dtype=torch.int16, device=packed.device)
    step = max(_PIECE_WEIGHTS // max(in_features, 1), 1)
    for start in range(0, num_rows, step):
        q = unpack_int4(packed[start : start + step]).to(torch.int16)
        first, second, third, fourth = q.unflatten(1, (-1, 4, size // 4)).unbind(2)
        words = first | (second << 4) | (third << 8) | (fourth << 12)
        out[start : start + step] = words.flatten(1)
    return out


def from_planar(qweight: Tensor) -> Tensor:
    """Undo ``to_planar``: (N, K // 4) int16 to (N, K // 2) uint8.

    Raises:
        ValueError: dtype.
    """
    return pack_int4(unpack_planar(qweight))


def unpack_planar(qweight: Tensor) -> Tensor:
    """Unpack the runtime layout (N, K // 4) int16 to (N, K) uint8.

    Raises:
        ValueError: dtype.
    """
    if qweight.dtype != torch.int16:
        raise ValueError(f"qweight must be int16, got {qweight.dtype}")
    words = qweight.unflatten(1, (-1, 1, run_size(4 * qweight.shape[1]) // 4))
    shifts = torch.arange(0, 16, 4, dtype=torch.int16, device=qweight.device)
    return ((words >> shifts[:, None]) & 15).to(torch.uint8).flatten(1)
