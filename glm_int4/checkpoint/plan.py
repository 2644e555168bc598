"""What a quantizing run will do, decided and checked before anything is written."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm_int4.checkpoint import layout, packed_format
from glm_int4.checkpoint.checks import warn_of_untied_head
from glm_int4.checkpoint.layout import MatrixSpec
from glm_int4.checkpoint.loading import load_checked_tokenizer, open_checkpoint
from glm_int4.checkpoint.reader import CheckpointReader
from glm_int4.checkpoint.safetensors_file import TensorSpec
from glm_int4.checkpoint.shards import Unit, plan_shards
from glm_int4.errors import CheckpointError, InputError, TokenizerError
from glm_int4.files import ABSENT, found_instead, read_json
from glm_int4.models.config import ChatGLMConfig
from glm_int4.quantization.scheme import QuantizationScheme
from glm_int4.version import __version__

METHODS = ("rtn",)

Schemes = dict[str, QuantizationScheme | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationPlan:
    """One run: its source, the scheme of every matrix, and what goes to which shard.

    matrices: in the order of the network. shards: units by file name. tokenizer_config: as it will be
    written. fingerprint: JSON value that is equal where two runs would write the same bytes.
    """

    reader: CheckpointReader
    config: ChatGLMConfig
    method: str
    scheme: QuantizationScheme
    head_scheme: QuantizationScheme | None
    matrices: dict[str, MatrixSpec]
    schemes: Schemes
    shards: dict[str, list[Unit]]
    tokenizer_config: dict[str, Any] | None
    fingerprint: dict[str, Any]

    @property
    def units(self) -> list[Unit]:
        return [unit for units in self.shards.values() for unit in units]

    @property
    def stored_bytes(self) -> int:
        return sum(unit.num_bytes for unit in self.units)

    @property
    def total_source_bytes(self) -> int:
        return sum(self.source_bytes(unit) for unit in self.units)

    @property
    def weight_map(self) -> dict[str, str]:
        """The file of every tensor."""
        return {spec.name: name for name, units in self.shards.items() for unit in units for spec in unit.specs}

    def source_bytes(self, unit: Unit) -> int:
        """Bytes to be read for a unit."""
        weight = f"{unit.key}.weight"
        names = [weight] if weight in self.reader else [spec.name for spec in unit.specs]
        return sum(self.reader[name].numel() * self.reader[name].element_size() for name in names)


def linear_scheme(bits: int, group_size: int | str | None, method: str, symmetric: bool) -> QuantizationScheme:
    """Scheme of the linear layers from a caller's options; raises InputError where they make none."""
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


def make_plan(
    folder: Path,
    scheme: QuantizationScheme,
    *,
    method: str,
    symmetric: bool,
    head_bits: int,
    model_version: str,
    max_shard_bytes: int,
) -> QuantizationPlan:
    """Open a checkpoint and plan how to quantize it.

    Raises:
        UserError: what is wrong with the checkpoint, its tokenizer or the options, in one line.
    """
    tokenizer_config = _tokenizer_config(folder)
    reader, info = open_checkpoint(folder, model_version)
    load_checked_tokenizer(folder, info.config)
    if any(info.schemes.values()):
        raise CheckpointError(f"expected a half-precision checkpoint, got the quantized one in {folder}")
    warn_of_untied_head(reader)
    head_scheme = _head_scheme(scheme, head_bits, symmetric, info.config.hidden_size)
    matrices = {m.name: m for m in (layout.embedding(info.config), *layout.linears(info.config))}
    schemes: Schemes = {name: head_scheme if name == layout.EMBEDDING else scheme for name in matrices}
    _check_group_sizes(matrices.values(), schemes)
    shards = plan_shards(_units(info.config, reader, matrices, schemes), max_shard_bytes)
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    return QuantizationPlan(
        reader=reader,
        config=info.config,
        method=method,
        scheme=scheme,
        head_scheme=head_scheme,
        matrices=matrices,
        schemes=schemes,
        shards=dict(zip(names, shards, strict=True)),
        tokenizer_config=tokenizer_config,
        fingerprint={
            "version": __version__,
            "source": [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in reader.files],
            "config": str(info.config),
            "schemes": [str(scheme), str(head_scheme), method, max_shard_bytes],
        },
    )


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


def _check_group_sizes(matrices: Iterable[MatrixSpec], schemes: Schemes) -> None:
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
    config: ChatGLMConfig, reader: CheckpointReader, matrices: dict[str, MatrixSpec], schemes: Schemes
) -> list[Unit]:
    """Everything to be stored, in the order of the network."""
    units = []
    for name, matrix in matrices.items():
        scheme = schemes[name]
        if scheme is None:
            dtype = reader[f"{name}.weight"].dtype
            specs = [TensorSpec(f"{name}.weight", (matrix.out_features, matrix.in_features), dtype)]
        else:
            specs = packed_format.tensor_specs(matrix, scheme)
        units.append(Unit(name, tuple(specs)))
    vectors = [TensorSpec(name, shape, reader[name].dtype) for name, shape in layout.vectors(config).items()]
    units.append(Unit("norms and biases", tuple(vectors)))
    return units


def _tokenizer_config(folder: Path) -> dict[str, Any] | None:
    """The tokenizer's config without the names of code to download, or None."""
    path = folder / "tokenizer_config.json"
    if found_instead(path) == ABSENT:
        return None
    config = read_json(path, TokenizerError)
    config.pop("auto_map", None)
    return config
