"""How torch's INT4 operation for the CPU lays out its packed weights, learned on this machine.

The layout differs with the CPU's capability and is not documented; files never hold it.
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from glm_int4.quantization.kernels import packing
from glm_int4.quantization.threads import numba_threads


@dataclass(frozen=True, slots=True)
class TileLayout:
    """Where torch's packed INT4 bytes keep the rows of one tile: (K, width / 2) bytes a tile.

    ``low_rows`` and ``high_rows`` tell, for each of the width / 2 bytes, the row of its nibbles.
    """

    width: int
    low_rows: np.ndarray
    high_rows: np.ndarray


def pack_aten(q: Tensor) -> Tensor:
    """Pack (N, K) uint8 values 0..15 as torch's INT4 operation wants them; N % 16 == 0."""
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(q.to(torch.int32), 1)


@functools.cache
def learn_tile_layout(width: int) -> TileLayout | None:
    """Learn the layout of a tile of ``width`` rows by packing matrices that spell out their index.

    Returns None where the packed bytes are not (K, width / 2) with rows that do not depend on k.
    """
    in_features = 32
    index = torch.arange(width * in_features).view(width, in_features)
    low = torch.zeros(in_features, width // 2, dtype=torch.int64)
    high = torch.zeros_like(low)
    for shift in (0, 4, 8):
        packed = pack_aten((index >> shift & 15).to(torch.uint8)).view(in_features, width // 2)
        low += (packed & 15).long() << shift
        high += (packed >> 4).long() << shift
    k = torch.arange(in_features)[:, None]
    if not (torch.equal(low % in_features, k.expand_as(low)) and torch.equal(high % in_features, k.expand_as(high))):
        return None
    low_rows, high_rows = low // in_features, high // in_features
    if not ((low_rows == low_rows[0]).all() and (high_rows == high_rows[0]).all()):
        return None
    return TileLayout(width, low_rows[0].numpy(), high_rows[0].numpy())


@functools.cache
def tile_width() -> int | None:
    """Rows of a full tile on this machine, or None where the layout cannot be learned."""
    if not hasattr(torch.ops.aten, "_convert_weight_to_int4pack_for_cpu"):
        return None
    for width in (64, 32):
        layout = learn_tile_layout(width)
        if layout is None:
            continue
        # A full tile repeats: twice the rows pack into two such tiles.
        q = (torch.arange(2 * width * 32) * 7 % 16).to(torch.uint8).view(2 * width, 32)
        if torch.equal(pack_aten(q).flatten(), torch.cat([pack_aten(q[:width]), pack_aten(q[width:])]).flatten()):
            return width
    return None


def repack_aten(packed: Tensor) -> Tensor:
    """Repack the file layout (N, K / 2) uint8 to what ``pack_aten`` makes, without its four bytes a weight."""
    from glm_int4.quantization import cpu_loops

    out = torch.empty_like(packed, memory_format=torch.contiguous_format)
    num_tiled, width = 0, tile_width()
    layout = learn_tile_layout(width) if width else None
    if layout is not None:
        num_tiled = packed.shape[0] // layout.width * layout.width
        tiles = out[:num_tiled].view(-1, 2 * packed.shape[1], layout.width // 2)
        with numba_threads():
            cpu_loops.pack_tiles(packed[:num_tiled].numpy(), layout.low_rows, layout.high_rows, tiles.numpy())
    if num_tiled < packed.shape[0]:
        out[num_tiled:] = pack_aten(packing.unpack_int4(packed[num_tiled:])).view(-1, packed.shape[1])
    return out
