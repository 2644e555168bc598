"""A checkpoint that is in no file: random weights in the shapes of an official model, in no time.

For measuring speed and memory, which do not depend on what the weights say. Rows of a matrix are windows of
one pool of random numbers, so that nothing is as large as the model before the model itself is built.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glm_int4.checkpoint.files.reader import CheckpointReader
from glm_int4.checkpoint.formats import layout
from glm_int4.checkpoint.formats.layout import MatrixSpec
from glm_int4.checkpoint.opening import CheckpointInfo, Schemes, tensor_specs
from glm_int4.conversion.quantization_options import QuantizationOptions
from glm_int4.errors import InputError
from glm_int4.models.config_file import parse_config

# Between the beginnings of two rows in the pool.
_ROW_STEP = 64
# Of weights, as in tools/make_random_checkpoint.py; integers have the scales that give it.
_STANDARD_DEVIATION = 0.02


class RandomReader(CheckpointReader):
    """Random tensors under the names of a checkpoint, on the device where they will be needed."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.folder, self.files = Path(name), []
        self._tensors, self._mapped, self._joined, self._parts = {}, set(), {}, set()
        self._device = device
        self._generator = torch.Generator(device).manual_seed(0)
        self._pools: dict[torch.dtype, Tensor] = {}

    def add_matrix(self, name: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
        """A matrix of normal fp16 weights, or of random bits as int32."""
        self._tensors[name] = self._windows(shape, dtype)

    def add_scales(self, name: str, shape: tuple[int, int], bits: int) -> None:
        """Scales (N, K / G) that give random integers the spread of weights."""
        value = _STANDARD_DEVIATION * math.sqrt(6) / (1 << bits)  # the difference of two uniform integers
        values = 0.5 + torch.rand(shape, generator=self._generator, device=self._device)
        self._tensors[name] = (values * value).half()

    def add(self, name: str, tensor: Tensor) -> None:
        """Any other tensor."""
        self._tensors[name] = tensor

    def _windows(self, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        size = shape[0] * _ROW_STEP + shape[1]
        pool = self._pools.get(dtype)
        if pool is None or pool.numel() < size:
            pool = torch.empty(size, dtype=dtype, device=self._device)
            if dtype == torch.int32:
                pool.random_(-(2**31), 2**31 - 1, generator=self._generator)
            else:
                pool.normal_(0, _STANDARD_DEVIATION, generator=self._generator)
            self._pools[dtype] = pool
        return pool.as_strided(shape, (_ROW_STEP, 1))


def open_random(
    name: str, raw: dict[str, Any], bits: int, device: torch.device, num_layers: int | None = None
) -> tuple[RandomReader, CheckpointInfo]:
    """What ``open_checkpoint`` would give for a model quantized with the defaults, or for one in half precision.

    A small model whose rows no group of 128 divides gets smaller groups, or one scale a row.

    Args:
        name: of the model. raw: its config.json. num_layers: fewer layers than it has.
    Raises:
        InputError: bits are none of 4, 8 and 16.
    """
    if bits not in (4, 8, 16):
        raise InputError(f"expected bits 4, 8 or 16, got {bits}")
    config = parse_config(raw | ({"num_layers": num_layers} if num_layers else {}))
    reader = RandomReader(name, device)
    matrices = layout.matrices(config)
    schemes: Schemes = dict.fromkeys(matrices)
    if bits != 16:
        options = QuantizationOptions(bits=bits, group_size=_group_size(bits, matrices.values()))
        schemes = dict.fromkeys(matrices, options.scheme)
        for matrix in layout.vocabulary(config):
            schemes[matrix.name] = options.vocabulary_scheme(config.hidden_size)
    stored = {}
    for matrix in matrices.values():
        scheme, n, k = schemes[matrix.name], matrix.out_features, matrix.in_features
        if scheme is None:
            reader.add_matrix(f"{matrix.name}.weight", (n, k), torch.float16)
            stored[matrix.name] = 2 * n * k
            continue
        specs = {
            spec.name.removeprefix(f"{matrix.name}."): spec for spec in tensor_specs(matrix, scheme, official=False)
        }
        stored[matrix.name] = sum(spec.num_bytes for spec in specs.values())
        reader.add_scales(specs["weight_scale"].name, (n, k // scheme.row_group_size(k)), scheme.bits)
        reader.add(specs["weight_shape"].name, torch.tensor([n, k]))
        for part in ("weight_packed", "weight_zero_point"):
            if part in specs:
                rows, columns = specs[part].shape
                reader.add_matrix(specs[part].name, (rows, columns), torch.int32)
    for vector, shape in layout.vectors(config).items():
        is_norm = vector.endswith("layernorm.weight")
        reader.add(vector, torch.full(shape, 1.0 if is_norm else 0.01, device=device).half())
        stored[vector] = 2 * math.prod(shape)
    info = CheckpointInfo(
        config=config,
        schemes=schemes,
        stored_bytes=stored,
        official=False,
        version_from="the preset",
        is_base=False,
        has_prefix=False,
    )
    return reader, info


def _group_size(bits: int, matrices: Iterable[MatrixSpec]) -> int | str:
    sizes = {matrix.in_features for matrix in matrices}
    fitting = (size for size in (128, 64, 32) if bits == 4 and all(k % size == 0 for k in sizes))
    return next(fitting, "channel")
