"""What a quantizing run will do, decided and checked before anything is written."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm_int4.checkpoint import layout
from glm_int4.checkpoint.checks import warn_of_untied_head
from glm_int4.checkpoint.folder import read_tokenizer_config
from glm_int4.checkpoint.layout import MatrixSpec
from glm_int4.checkpoint.loading import load_checked_tokenizer
from glm_int4.checkpoint.opening import CheckpointInfo, Schemes, open_checkpoint, tensor_specs
from glm_int4.checkpoint.reader import CheckpointReader
from glm_int4.checkpoint.safetensors_file import TensorSpec
from glm_int4.checkpoint.shards import MAX_SHARD_BYTES, Unit, plan_shards
from glm_int4.errors import CheckpointError, InputError
from glm_int4.models.config import ChatGLMConfig, Config
from glm_int4.quantization.scheme import GROUP_SIZES, QuantizationScheme
from glm_int4.text.fast_tokenizer import fast_tokenizer_json
from glm_int4.text.loading import V2_FILE, has_tokenizer
from glm_int4.version import __version__

logger = logging.getLogger(__name__)

METHODS = ("rtn",)
FORMATS = ("compressed-tensors", "official")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationOptions:
    """What a caller asks for; see ``quantize_checkpoint``."""

    bits: int = 4
    group_size: int | str | None = None
    method: str = "rtn"
    symmetric: bool = False
    head_bits: int | None = None
    output_format: str = "compressed-tensors"
    quantize_embeddings: bool = False
    vllm: bool = False
    model_version: str = "auto"
    max_shard_bytes: int = MAX_SHARD_BYTES

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise InputError(f"expected bits to be 4 or 8, got {self.bits}")
        if self.method not in METHODS:
            raise InputError(f"expected the method {' or '.join(METHODS)}, got {self.method!r}")
        if self.head_bits not in (None, 4, 8, 16):
            raise InputError(f"expected head bits to be 4, 8 or 16, got {self.head_bits}")
        size = self.group_size
        if size not in (None, "channel") and not (isinstance(size, int) and not isinstance(size, bool)):
            raise InputError(f"expected a group size of 32, 64, 128 or channel, got {size!r}")
        if self.output_format not in FORMATS:
            raise InputError(f"expected the format {' or '.join(FORMATS)}, got {self.output_format!r}")
        if self.official:
            if size not in (None, "channel"):
                raise InputError(
                    f"expected group size channel for the official format, which has no groups, got {size}"
                )
            if self.head_bits not in (None, 16) or self.vllm:
                other = "--vllm" if self.vllm else f"--head-bits {self.head_bits}"
                raise InputError(f"expected no {other} with the official format; see --quantize-embeddings")
        elif self.quantize_embeddings:
            raise InputError("expected --format official with --quantize-embeddings, got compressed-tensors")
        if self.vllm and self.head_bits not in (None, 16):
            raise InputError(f"expected head bits 16 for vLLM, got {self.head_bits}; leave them out")

    @property
    def official(self) -> bool:
        return self.output_format == "official"

    @property
    def scheme(self) -> QuantizationScheme:
        """Scheme of the linear layers of a half-precision checkpoint."""
        per_channel = self.official or self.group_size == "channel" or (self.group_size is None and self.bits == 8)
        size = None if per_channel else 128 if self.group_size is None else int(self.group_size)
        symmetric = self.symmetric or self.bits == 8 or self.official or self.vllm
        return QuantizationScheme(bits=self.bits, group_size=size, symmetric=symmetric)

    def vocabulary_scheme(self, hidden_size: int) -> QuantizationScheme | None:
        """Scheme of the embedding and the head: INT8 per row, INT4 in groups, None for unquantized."""
        if self.official:
            return self.scheme if self.quantize_embeddings else None
        if self.vllm or self.head_bits == 16:
            return None
        if self.head_bits != 4:
            return QuantizationScheme(bits=8, group_size=None, symmetric=True)
        fitting = next((size for size in (128, 64, 32) if hidden_size % size == 0), None)
        if self.group_size is not None:
            fitting = self.scheme.group_size or fitting
        return QuantizationScheme(bits=4, group_size=fitting, symmetric=self.symmetric)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationPlan:
    """One run: its source, the scheme of every matrix, and what goes to which shard.

    method: how weights are rounded; "kept" where the source is quantized already. scheme: of the linear
    layers. matrices: in the order of the network. schemes: as they will be stored. sources: name of the
    matrix to read, where it has another one. shards: units by file name. tokenizer_config: as it will be
    written. tokenizer_json: the text of a tokenizer.json, for vLLM. fingerprint: JSON value that is equal
    where two runs would write the same bytes.
    """

    options: QuantizationOptions
    reader: CheckpointReader
    info: CheckpointInfo
    method: str
    scheme: QuantizationScheme
    matrices: dict[str, MatrixSpec]
    schemes: Schemes
    sources: dict[str, str]
    shards: dict[str, list[Unit]]
    tokenizer_config: dict[str, Any] | None
    tokenizer_json: str | None
    fingerprint: dict[str, Any]

    @property
    def config(self) -> Config:
        return self.info.config

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
        weight = f"{self.sources.get(unit.key, unit.key)}.weight"
        names = [weight] if weight in self.reader else [spec.name for spec in unit.specs]
        return sum(self.reader[name].numel() * self.reader[name].element_size() for name in names)


def make_plan(folder: Path, options: QuantizationOptions) -> QuantizationPlan:
    """Open a checkpoint and plan how to quantize it.

    Raises:
        UserError: what is wrong with the checkpoint, its tokenizer or the options, in one line.
    """
    tokenizer_config = read_tokenizer_config(folder)
    reader, info = open_checkpoint(folder, options.model_version)
    load_checked_tokenizer(folder, info.config)
    warn_of_untied_head(reader, info.config)
    tokenizer_json = _check_vllm(folder, info.config) if options.vllm else None
    source_scheme = info.linear_scheme
    if source_scheme is not None:
        _check_convertible(folder, info, source_scheme, options)
    matrices, sources = layout.matrices(info.config), {}
    head_scheme = options.vocabulary_scheme(info.config.hidden_size)
    kept = info.schemes[layout.embedding(info.config).name]
    if kept is not None and options.head_bits not in (None, kept.bits):
        raise InputError(
            f"expected --head-bits {kept.bits}, which the embedding in {folder} has, got {options.head_bits}; "
            "it is kept as it is"
        )
    if options.quantize_embeddings:
        embedding, tied = layout.embedding(info.config), layout.tied_head(info.config)
        if tied is None:
            raise InputError(
                "expected ChatGLM-6B with --quantize-embeddings, got another version, which has no such layout"
            )
        matrices[tied] = MatrixSpec(tied, "head", embedding.out_features, embedding.in_features)
        sources[tied] = embedding.name
    vocabulary = {matrix.name for matrix in layout.vocabulary(info.config)} | sources.keys()
    schemes: Schemes = {
        name: info.schemes.get(name) or (head_scheme if name in vocabulary else options.scheme) for name in matrices
    }
    _check_group_sizes(matrices.values(), schemes)
    shards = plan_shards(_units(reader, info, matrices, schemes, options), options.max_shard_bytes)
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    if tokenizer_config is not None:
        tokenizer_config.pop("auto_map", None)  # the names of code to download
    if tokenizer_json is not None:
        tokenizer_config = (tokenizer_config or {}) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    return QuantizationPlan(
        options=options,
        reader=reader,
        info=info,
        method="kept" if source_scheme else "official" if options.official else options.method,
        scheme=source_scheme or options.scheme,
        matrices=matrices,
        schemes=schemes,
        sources=sources,
        shards=dict(zip(names, shards, strict=True)),
        tokenizer_config=tokenizer_config,
        tokenizer_json=tokenizer_json,
        fingerprint={
            "version": __version__,
            "source": [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in reader.files],
            "config": str(info.config),
            "schemes": {name: str(scheme) for name, scheme in schemes.items()},
            "options": [options.output_format, options.method, options.vllm, options.max_shard_bytes],
        },
    )


def _check_vllm(folder: Path, config: Config) -> str | None:
    """Raise InputError for a model that vLLM does not run; returns its tokenizer.json, None without a tokenizer."""
    if isinstance(config, ChatGLMConfig):
        raise InputError("expected ChatGLM2-6B or ChatGLM3-6B with --vllm, got ChatGLM-6B, which vLLM does not run")
    if config.version == "2" and config.rope_ratio != 1:
        raise InputError(
            "expected a model of plain rotary positions with --vllm, got chatglm2-6b-32k, which divides positions by "
            f"{config.rope_ratio:g}; vLLM would stretch the base instead, and its answers would be nonsense"
        )
    if not has_tokenizer(folder):
        logger.warning("%s holds no tokenizer.model: no tokenizer.json is written, which vLLM needs", folder)
        return None
    return fast_tokenizer_json(folder / V2_FILE, config.version)


def _check_convertible(
    folder: Path, info: CheckpointInfo, scheme: QuantizationScheme, options: QuantizationOptions
) -> None:
    """Raise where a quantized checkpoint cannot be written in our format without rounding it again."""
    if not info.official or options.official:
        raise CheckpointError(
            f"expected a half-precision checkpoint, got the quantized one in {folder}; take the original"
        )
    if options.bits != scheme.bits:
        raise InputError(
            f"expected --bits {scheme.bits}, which the weights in {folder} have, got {options.bits}; to change them, "
            "take the half-precision checkpoint"
        )
    if options.group_size not in (None, "channel"):
        raise InputError(
            f"expected no group size for {folder}, whose weights are quantized per channel, got {options.group_size}; "
            "for groups, take the half-precision checkpoint"
        )


def _check_group_sizes(matrices: Iterable[MatrixSpec], schemes: Schemes) -> None:
    matrices = list(matrices)
    for matrix in matrices:
        scheme, k = schemes[matrix.name], matrix.in_features
        if scheme is None:
            continue
        if k % scheme.row_group_size(k):
            fitting = [str(size) for size in GROUP_SIZES if not any(m.in_features % size for m in matrices)]
            raise InputError(
                f"expected a group size that divides the {k} inputs of {matrix.name}, got {scheme.group_size}; "
                f"pass --group-size {' or '.join([*fitting, 'channel'])}"
            )
        if k * scheme.bits % 32:
            raise InputError(
                f"expected inputs that fill whole 32-bit words at {scheme.bits} bits, got {k} of {matrix.name}"
            )


def _units(
    reader: CheckpointReader,
    info: CheckpointInfo,
    matrices: dict[str, MatrixSpec],
    schemes: Schemes,
    options: QuantizationOptions,
) -> list[Unit]:
    """Everything to be stored, in the order of the network."""
    units = []
    for name, matrix in matrices.items():
        scheme = schemes[name]
        if scheme is None:
            specs = [_as_stored(reader, f"{name}.weight")]
        else:
            specs = tensor_specs(matrix, scheme, official=options.official)
        units.append(Unit(name, tuple(specs)))
    units.append(Unit("norms and biases", tuple(_as_stored(reader, name) for name in layout.vectors(info.config))))
    if options.official:  # whatever else the source holds, as it is: a tied head, inverse frequencies
        written = {spec.name for unit in units for spec in unit.specs} | {f"{name}.weight" for name in matrices}
        rest = [_as_stored(reader, name) for name in reader if name not in written]
        if rest:
            units.append(Unit("the rest", tuple(rest)))
    return units


def _as_stored(reader: CheckpointReader, name: str) -> TensorSpec:
    return TensorSpec(name, tuple(reader[name].shape), reader[name].dtype)
