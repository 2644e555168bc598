"""What a quantizing run will do, decided and checked before anything is written."""

import functools
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm_int4.adapters.reading import read_loras
from glm_int4.adapters.weight_merging import Merging, describe
from glm_int4.checkpoint.checks import warn_of_untied_head
from glm_int4.checkpoint.files.folder import read_config, read_tokenizer_config
from glm_int4.checkpoint.files.reader import CheckpointReader
from glm_int4.checkpoint.formats import layout
from glm_int4.checkpoint.formats.layout import MatrixSpec
from glm_int4.checkpoint.formats.tensor_names import PREFIX_STEM
from glm_int4.checkpoint.opening import CheckpointInfo, Schemes, open_checkpoint, tensor_specs
from glm_int4.checkpoint.tokenizer_check import load_checked_tokenizer
from glm_int4.checkpoint.writing.output_folder import Unit, fill_shards
from glm_int4.conversion.calibrated.sequences import NUM_SEQUENCES, Calibration, read_calibration, sample_sequences
from glm_int4.conversion.folding import Folding, find_folding
from glm_int4.conversion.mixed.choice import choose_mix
from glm_int4.conversion.mixed.sensitivity import Progress
from glm_int4.conversion.quantization_options import QuantizationOptions
from glm_int4.errors import CheckpointError, InputError
from glm_int4.models.config import Config, GLM4Config
from glm_int4.quantization.scheme import GROUP_SIZES, QuantizationScheme
from glm_int4.system import size_text
from glm_int4.text import Tokenizer
from glm_int4.text.added_tokens import read_added_tokens
from glm_int4.text.fast_tokenizer import fast_tokenizer_json
from glm_int4.text.tokenizer_loading import V2_FILE, has_tokenizer
from glm_int4.version import __version__

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationPlan:
    """One run: its source, the scheme of every matrix, and what goes to which shard.

    method: how weights are rounded; "kept" where the source is quantized already. scheme: of all linear layers,
    unless they are mixed. matrices: in the order of the network. schemes: of every matrix, as it will be stored.
    sources: for a matrix that is stored under another name than it is read, the name to read. folding: what
    moves from norms into matrices. costs: where bits are mixed, the KL divergence that each matrix is expected to
    cost. calibration: the text for GPTQ. shards: units by file name. tokenizer_config: as it will be written.
    tokenizer_json: the text of a tokenizer.json, for vLLM. adapters: what is merged, as a report names it.
    fingerprint: a JSON value that two runs share if they would write the same bytes.
    """

    options: QuantizationOptions
    reader: CheckpointReader
    info: CheckpointInfo
    method: str
    scheme: QuantizationScheme
    matrices: dict[str, MatrixSpec]
    schemes: Schemes
    sources: dict[str, str]
    folding: Folding
    costs: dict[str, float]
    calibration: Calibration | None
    shards: dict[str, list[Unit]]
    tokenizer_config: dict[str, Any] | None
    tokenizer_json: str | None
    adapters: list[dict[str, Any]]
    fingerprint: dict[str, Any]

    @property
    def config(self) -> Config:
        """The config of the source."""
        return self.info.config

    @property
    def units(self) -> list[Unit]:
        """Everything to be stored, shard after shard."""
        return [unit for units in self.shards.values() for unit in units]

    @property
    def stored_bytes(self) -> int:
        """Bytes of all tensors as they will be stored."""
        return sum(unit.num_bytes for unit in self.units)

    @property
    def total_source_bytes(self) -> int:
        """Bytes to be read in all."""
        return sum(self.source_bytes(unit) for unit in self.units)

    @property
    def mix_text(self) -> str:
        """What was picked, in one line: how many matrices got which scheme, and what that comes to."""
        counts = Counter(str(scheme) for scheme in self.schemes.values())
        parts = ", ".join(f"{scheme} for {count}" for scheme, count in sorted(counts.items()))
        bits = 8 * self.stored_bytes / layout.num_parameters(self.config)
        return f"{parts} of {len(self.schemes)} matrices: {bits:.3f} bits per weight, {size_text(self.stored_bytes)}"

    @property
    def weight_map(self) -> dict[str, str]:
        """The file of every tensor."""
        return {spec.name: name for name, units in self.shards.items() for unit in units for spec in unit.specs}

    def source_bytes(self, unit: Unit) -> int:
        """Bytes to be read for a unit."""
        weight = f"{self.sources.get(unit.key, unit.key)}.weight"
        names = [weight] if weight in self.reader else [spec.name for spec in unit.specs]
        return sum(self.reader.spec(name).num_bytes for name in names)


def make_plan(
    folder: Path, options: QuantizationOptions, scratch: Path, progress: Progress | None = None
) -> QuantizationPlan:
    """Open a checkpoint and plan how to quantize it. Where bits are mixed, its sensitivities are measured for that.

    Args:
        scratch: folder for activations that are too many for the memory.
    Raises:
        UserError: what is wrong with the checkpoint, its tokenizer or the options, in one line.
    """
    tokenizer_config = read_tokenizer_config(folder)
    reader, info = open_checkpoint(folder, options.model_version)
    tokenizer = load_checked_tokenizer(folder, info.config)
    warn_of_untied_head(reader, info.config)
    tokenizer_json = _check_vllm(folder, info.config) if options.vllm else None
    source_scheme = info.linear_scheme
    if source_scheme is not None:
        _check_convertible(folder, info, source_scheme, options)
    adapters = _merge(options, reader, info.config)
    calibration = _calibration(options, tokenizer, info.config)
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
    folding = Folding()
    if source_scheme is None and not options.official:
        folding = find_folding(reader, info.config, schemes)
    costs: dict[str, float] = {}
    if options.mixed:
        draw = functools.partial(sample_sequences, calibration, tokenizer, info.config)
        mix = choose_mix(reader, info, options, folding, draw, scratch, progress)
        schemes, costs = {**schemes, **mix.schemes}, mix.costs
    _check_group_sizes(matrices.values(), schemes, word_bits=8 if options.official else 32)
    shards = fill_shards(_units(reader, info, matrices, schemes, options), options.shard_bytes)
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
        folding=folding,
        costs=costs,
        calibration=calibration if options.method == "gptq" else None,
        shards=dict(zip(names, shards, strict=True)),
        tokenizer_config=tokenizer_config,
        tokenizer_json=tokenizer_json,
        adapters=adapters,
        fingerprint={
            "version": __version__,
            "source": [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in reader.files],
            "config": str(info.config),
            "schemes": {name: str(scheme) for name, scheme in schemes.items()},
            "options": [options.output_format, options.method, options.vllm, options.shard_bytes],
            "folding": str(folding),
            "calibration": calibration.fingerprint if calibration else None,
            **({"adapters": [[each["scale"], each["sha256"]] for each in adapters]} if adapters else {}),
        },
    )


def _merge(options: QuantizationOptions, reader: CheckpointReader, config: Config) -> list[dict[str, Any]]:
    """Let a reader give weights with adapters in them; returns what a report says of these."""
    if not options.adapters:
        return []
    folder = reader.folder
    names = (str(read_config(folder).get("_name_or_path") or ""), folder.resolve().name)
    loras = read_loras(options.adapters, config, names)
    for lora in loras:
        if lora.whole and config.has_tied_head:
            raise InputError(
                f"expected an adapter that leaves embedding and head of {config.model_name} tied, got {lora.folder}, "
                f"which replaces {next(iter(lora.whole))}; load it beside the quantized model"
            )
    reader.change(Merging(loras))
    return [describe(source) for source in options.adapters]


def _calibration(options: QuantizationOptions, tokenizer: Tokenizer | None, config: Config) -> Calibration | None:
    if options.calibration is None:
        return None
    if tokenizer is None:
        raise InputError(
            f"expected a tokenizer ({config.tokenizer_file}) beside the weights with --calibration, got none; "
            "copy it from the official repository"
        )
    calibration = read_calibration(options.calibration, tokenizer, config)
    if len(calibration.sequences) < NUM_SEQUENCES:
        logger.warning(
            "the calibration text fills %d of %d sequences: a longer one gives a better result",
            len(calibration.sequences),
            NUM_SEQUENCES,
        )
    return calibration


def _check_vllm(folder: Path, config: Config) -> str | None:
    """Raise InputError for a model that vLLM does not run; returns its tokenizer.json, None without a tokenizer."""
    if config.residual_is_normed:
        raise InputError("expected ChatGLM2-6B or ChatGLM3-6B with --vllm, got ChatGLM-6B, which vLLM does not run")
    if isinstance(config, GLM4Config):
        raise InputError(
            "expected ChatGLM2-6B or ChatGLM3-6B with --vllm, got GLM-4-9B, for which no tokenizer.json is written; "
            "leave --vllm out"
        )
    if config.position_divisor != 1:
        raise InputError(
            "expected a model of plain rotary positions with --vllm, got chatglm2-6b-32k, which divides positions by "
            f"{config.position_divisor:g}; vLLM would stretch the base instead, and its answers would be nonsense"
        )
    if not has_tokenizer(folder, config.version):
        logger.warning("%s holds no tokenizer.model: no tokenizer.json is written, which vLLM needs", folder)
        return None
    return fast_tokenizer_json(folder / V2_FILE, config.version, added=read_added_tokens(folder))


def _check_convertible(
    folder: Path, info: CheckpointInfo, scheme: QuantizationScheme, options: QuantizationOptions
) -> None:
    """Raise where a quantized checkpoint cannot be written in our format without rounding it again."""
    given = "a target" if options.mixed else f"--method {options.method}"
    if options.adapters:
        raise CheckpointError(
            f"expected a half-precision checkpoint to merge an adapter into, got {folder}, which is quantized already; "
            "take the original, or load this one with --adapter"
        )
    if options.mixed or options.method != "rtn":
        raise CheckpointError(
            f"expected a half-precision checkpoint with {given}, got {folder}, which is quantized already; take the "
            "original"
        )
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


def _check_group_sizes(matrices: Iterable[MatrixSpec], schemes: Schemes, *, word_bits: int) -> None:
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
        if k * scheme.bits % word_bits:
            raise InputError(
                f"expected inputs that fill whole {word_bits}-bit words at {scheme.bits} bits, got {k} of {matrix.name}"
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
            specs = [reader.spec(f"{name}.weight")]
        else:
            specs = tensor_specs(matrix, scheme, official=options.official)
        units.append(Unit(name, tuple(specs)))
    units.append(Unit("norms and biases", tuple(map(reader.spec, layout.vectors(info.config)))))
    if options.official:  # whatever else the source holds, as it is: a tied head, inverse frequencies
        written = {spec.name for unit in units for spec in unit.specs} | {f"{name}.weight" for name in matrices}
        written |= {name for name in reader if name.startswith(PREFIX_STEM)}  # gets a file of its own
        rest = [reader.spec(name) for name in reader if name not in written]
        if rest:
            units.append(Unit("the rest", tuple(rest)))
    return units
