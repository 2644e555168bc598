"""``glm-int4 bench --tune``: measure the kernels' launch parameters on a GPU and keep them."""

import time
from collections.abc import Callable
from pathlib import Path

import torch

from glm_int4.checkpoint.formats import layout
from glm_int4.models.config_file import parse_config
from glm_int4.models.presets import CONFIGS
from glm_int4.quantization.gpu import launch_table
from glm_int4.quantization.kernels import launch, launch_search

GROUP_SIZES = {4: 128, 8: None}


def real_shapes() -> list[tuple[int, int]]:
    """(N, K) of all linears and heads of the official models."""
    configs = [parse_config(raw) for raw in CONFIGS.values()]
    matrices = [matrix for config in configs for matrix in layout.matrices(config).values()]
    return list(dict.fromkeys((matrix.out_features, matrix.in_features) for matrix in matrices))


def search_and_keep(device: torch.device, report: Callable[[str], None], seconds: float = 480.0) -> Path:
    """Measure the rows of the launch table for a GPU, use them, and keep them for later runs.

    Args:
        seconds: after them, rows that were not measured stay as they are.
    Returns:
        The file in the user's cache.
    """
    started, rows = time.monotonic(), {}
    launch.adopt({})  # from the table, not from what was measured before
    for i, (bits, group_size) in enumerate(GROUP_SIZES.items(), start=1):
        deadline = started + i * seconds / len(GROUP_SIZES)
        rows[bits], _ = launch_search().search(
            bits, device, real_shapes(), group_size=group_size, report=report, deadline=deadline
        )
    path = launch_table.save(device, rows)
    launch_table.adopt(device)
    report(f"kept in {path}")
    return path
