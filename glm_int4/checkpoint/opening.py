"""Opening a checkpoint: what its files hold, checked against its config before anything is loaded."""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glm_int4.checkpoint.files.folder import read_config, read_tokenizer_config
from glm_int4.checkpoint.files.reader import FLOATING, CheckpointReader
from glm_int4.checkpoint.files.safetensors_file import TensorSpec
from glm_int4.checkpoint.files.steady import read_steadily
from glm_int4.checkpoint.formats import layout, tensor_names
from glm_int4.checkpoint.formats import official as official_format
from glm_int4.checkpoint.formats import packed as packed_format
from glm_int4.checkpoint.formats.converted_config import is_converted, official_config
from glm_int4.checkpoint.formats.converted_names import converted_parts
from glm_int4.checkpoint.formats.layout import MatrixSpec
from glm_int4.models.config import Config
from glm_int4.models.config_file import detect_version, is_base_model, parse_config
from glm_int4.quantization.scheme import QuantizationScheme, QuantizedWeight
from glm_int4.versions import contradiction, evidence

logger = logging.getLogger(__name__)

Schemes = dict[str, QuantizationScheme | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """What a checkpoint holds.

    schemes: by matrix name, None where a matrix is not quantized. stored_bytes: as stored, by the name
    of the matrix or tensor. official: quantized the official way. version_from: what decided the version;
    evidence: all that speaks for version 2, 3 or 4, pairs of version and words.
    is_base: a base model, by its name. has_prefix: a P-Tuning prefix lies among the weights.
    """

    config: Config
    schemes: Schemes
    stored_bytes: dict[str, int]
    official: bool
    version_from: str
    evidence: tuple[tuple[str, str], ...] = ()
    is_base: bool
    has_prefix: bool

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(self.stored_bytes.values())

    @property
    def linear_scheme(self) -> QuantizationScheme | None:
        """The scheme of the first linear layer, in most checkpoints of all; None where they are not quantized."""
        return self.schemes[next(layout.linears(self.config)).name]

    @property
    def linear_counts(self) -> dict[str, int]:
        """How many linear layers are stored in which way."""
        return dict(Counter(str(self.schemes[matrix.name] or "unquantized") for matrix in layout.linears(self.config)))

    @property
    def bits_per_weight(self) -> float:
        """Bits stored per parameter of the whole model, scales and zero points included."""
        return 8 * self.weight_bytes / layout.num_parameters(self.config)


def open_checkpoint(folder: Path, model_version: str = "auto") -> tuple[CheckpointReader, CheckpointInfo]:
    """Open a folder and check all of its tensors against its config.

    Raises:
        ConfigError, CheckpointError: what is wrong with it, in one line.
    """
    return read_steadily(folder, lambda: _open(folder, model_version))


def _open(folder: Path, model_version: str) -> tuple[CheckpointReader, CheckpointInfo]:
    stored_config = read_config(folder)
    raw = official_config(stored_config)
    tokenizer_config = read_tokenizer_config(folder)
    config = parse_config(raw, model_version, tokenizer_config, folder)
    reader = CheckpointReader(folder)
    if is_converted(stored_config):
        _join_parts(reader, config)
    _use_official_names(reader, config)
    matrices = layout.matrices(config)
    schemes, official = _stored_schemes(reader, raw, matrices)
    expected = layout.vectors(config)
    dtypes: dict[str, tuple[torch.dtype, ...]] = {}
    parts: dict[str, list[str]] = {name: [name] for name in expected}
    for name, matrix in matrices.items():
        scheme = schemes[name]
        if scheme is None:
            expected[f"{name}.weight"] = (matrix.out_features, matrix.in_features)
            parts[name] = [f"{name}.weight"]
            continue
        specs = tensor_specs(matrix, scheme, official=official)
        expected |= {spec.name: spec.shape for spec in specs}
        dtypes |= {spec.name: (spec.dtype,) for spec in specs if spec.dtype not in FLOATING}
        parts[name] = [spec.name for spec in specs]
    tied = layout.tied_head(config)
    prefix = [name for name in reader if name.startswith(tensor_names.PREFIX_STEM)]
    ignored = [*prefix, *((f"{tied}.weight", f"{tied}.weight_scale") if tied else ())]
    reader.check(expected, dtypes, ignored, tensor_names.advice)
    stored = {key: sum(reader.spec(name).num_bytes for name in names) for key, names in parts.items()}
    found = evidence(raw, tokenizer_config or {}, folder) if config.is_causal else []  # it tells 2, 3 and 4
    if model_version == "auto" and (unclear := contradiction(found)):
        logger.warning("%s; taking version %s: say which it is with --model-version", unclear, config.version)
    info = CheckpointInfo(
        config=config,
        schemes=schemes,
        stored_bytes=stored,
        official=official,
        version_from=detect_version(raw, tokenizer_config, folder)[1] if model_version == "auto" else "the caller",
        evidence=tuple(found),
        is_base=is_base_model(raw),
        has_prefix=bool(prefix),
    )
    return reader, info


def _join_parts(reader: CheckpointReader, config: Config) -> None:
    """Give the tensors of a converted checkpoint their official names; those that lack a part stay as they are."""
    for name, parts in converted_parts(config):
        if all(part in reader for part in parts):
            reader.join(name, parts)


def _use_official_names(reader: CheckpointReader, config: Config) -> None:
    """Take off what training programs add to the names of tensors, and say so."""
    renamed = tensor_names.official_names(list(reader), config)
    reader.rename(renamed)
    if added := tensor_names.added_parts(renamed):
        logger.warning("reading the tensors of %s without %s in their names", reader.folder, ", ".join(added))


def _stored_schemes(
    reader: CheckpointReader, raw: Mapping[str, Any], matrices: Mapping[str, MatrixSpec]
) -> tuple[Schemes, bool]:
    """The scheme of every matrix, and whether the checkpoint is quantized the official way."""
    if packed_format.is_packed(raw, reader):
        return {name: packed_format.stored_scheme(reader, matrix) for name, matrix in matrices.items()}, False
    bits = official_format.stored_bits(raw)
    schemes = {name: official_format.stored_scheme(reader, matrix, bits) for name, matrix in matrices.items()}
    if bits is not None:
        kept = () if raw.get("quantization_embeddings") else ("embedding", "embedding + head", "head")
        promised = {name: scheme for name, scheme in schemes.items() if matrices[name].kind not in kept}
        official_format.check_scales(reader, promised, bits)
    return schemes, bits is not None


def tensor_specs(matrix: MatrixSpec, scheme: QuantizationScheme, *, official: bool) -> list[TensorSpec]:
    """The tensors that a quantized matrix is stored as."""
    return (official_format if official else packed_format).tensor_specs(matrix, scheme)


def read_weight(
    reader: CheckpointReader, info: CheckpointInfo, matrix: MatrixSpec, device: torch.device | None = None
) -> QuantizedWeight:
    """Read a quantized matrix of an opened checkpoint.

    Args:
        device: where its bytes go as they are stored, to be checked and unpacked there; None leaves them mapped.
    Raises:
        CheckpointError: its scales or its shape make no sense.
    """
    scheme = info.schemes[matrix.name]
    assert scheme is not None
    return (official_format if info.official else packed_format).read_weight(reader, matrix, scheme, device)
