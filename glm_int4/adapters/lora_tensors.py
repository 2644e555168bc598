"""A LoRA adapter's tensors, compared with what its settings and the model ask for: none is missing, none too many."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from glm_int4.adapters.adapter_file import map_adapter
from glm_int4.adapters.adapter_names import (
    BIAS,
    DOWN,
    MAGNITUDE,
    UP,
    Place,
    parse_name,
    places,
    whole_modules,
    whose_names,
)
from glm_int4.adapters.lora_settings import LoraSettings
from glm_int4.adapters.target_modules import ALL_LINEAR, matches
from glm_int4.checkpoint.checks import check_finite
from glm_int4.checkpoint.files.reader import FLOATING
from glm_int4.checkpoint.formats import layout
from glm_int4.downloads import shown_name
from glm_int4.errors import CheckpointError, ConfigError, InputError
from glm_int4.models.config import Config

_MOST_NAMED = 4

Key = tuple[str, str]  # a module's path, and what a tensor is of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What an adapter adds to rows of a matrix (N, K): ``scale * up @ down``, and perhaps the rows' new lengths.

    down: (R, K). up: (rows, R). magnitude: (rows,) of DoRA, or None.
    """

    rows: slice
    down: Tensor
    up: Tensor
    scale: float
    magnitude: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """A LoRA adapter that fits a model.

    deltas: by the name of the matrix. vectors: biases and norms that it replaces, by their official names. whole: the
    matrices of the vocabulary that it replaces.
    """

    folder: Path
    deltas: dict[str, list[Delta]] = field(default_factory=dict)
    vectors: dict[str, Tensor] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)

    @property
    def num_values(self) -> int:
        """Numbers that it keeps in memory."""
        parts = [part for deltas in self.deltas.values() for delta in deltas for part in (delta.down, delta.up)]
        return sum(tensor.numel() for tensor in (*parts, *self.vectors.values(), *self.whole.values()))


def read_lora(folder: Path, settings: LoraSettings, scale: float, config: Config) -> Lora:
    """Read an adapter's tensors and check them against the model.

    Args:
        scale: a factor of all that it adds.
    Raises:
        ConfigError, CheckpointError: what of it does not fit, by name.
        InputError: the factor is not 1, and the adapter replaces what cannot be multiplied.
    """
    path, stored = map_adapter(folder)
    found = _by_module(path, stored)
    known = places(config, [module for module, _ in found])
    _check_targets(settings, known)
    adapted = {
        module: place
        for module, place in known.items()
        if settings.targets(module) and not _is_optional_head(settings, place, module, found)
    }
    expected = _expected(settings, config, known, adapted)
    _compare(path, found, expected, config)
    for (module, part), tensor in found.items():
        check_finite(f"{part} of {module} in {path}", tensor)
    vectors, whole = _replaced(found)
    if scale != 1 and (settings.use_dora or vectors or whole):
        raise InputError(
            f"expected a scale of 1 for {folder}, which has DoRA, biases or whole modules, got {scale:g}; "
            "only products of LoRA have a scale"
        )
    lora = Lora(folder=folder, vectors=vectors, whole=whole)
    for module, place in adapted.items():
        delta = Delta(
            rows=place.rows,
            down=found[module, DOWN],
            up=found[module, UP],
            scale=scale * settings.scale(module),
            magnitude=found.get((module, MAGNITUDE)),
        )
        lora.deltas.setdefault(place.matrix, []).append(delta)
    return lora


def _by_module(path: Path, stored: dict[str, Tensor]) -> dict[Key, Tensor]:
    found: dict[Key, Tensor] = {}
    for name, tensor in stored.items():
        key = parse_name(name)
        if key is None:
            raise CheckpointError(
                f"expected tensors of a LoRA adapter in {path}, got {shown_name(name)}; "
                "is its peft_type another one, or does it adapt what only transformers can?"
            )
        if key in found:
            raise CheckpointError(
                f"expected one {key[1]} of {shown_name(key[0])} in {path}, got two; save each adapter by itself"
            )
        found[key] = tensor
    return found


def _check_targets(settings: LoraSettings, known: dict[str, Place]) -> None:
    """Raise ConfigError for targets that no linear layer of the model has."""
    wanted = settings.target_modules
    if wanted == ALL_LINEAR:
        return
    ends: Sequence[str] = [wanted] if isinstance(wanted, str) else wanted
    for end in ends:
        means = wanted if isinstance(wanted, str) else [end]
        if not any(matches(means, module) for module in known):
            kinds = sorted({module.rpartition(".")[2] for module in known})
            raise ConfigError(
                f"expected target_modules among the linear layers of this model ({', '.join(kinds)}) in "
                f"{settings.path}, got {shown_name(end)}; is it an adapter of another model?"
            )


def _is_optional_head(settings: LoraSettings, place: Place, module: str, found: dict[Key, Tensor]) -> bool:
    """Whether "all-linear", which leaves out the head where the trained model says what its head is, does so here."""
    is_head = place.matrix == "transformer.output_layer"
    return settings.target_modules == ALL_LINEAR and is_head and (module, DOWN) not in found


def _expected(
    settings: LoraSettings, config: Config, known: dict[str, Place], adapted: dict[str, Place]
) -> dict[Key, tuple[int, ...]]:
    """The shape of every tensor that must be there."""
    expected: dict[Key, tuple[int, ...]] = {}
    for module, place in adapted.items():
        rank = settings.rank(module)
        expected[module, DOWN] = (rank, place.in_features)
        expected[module, UP] = (place.out_features, rank)
        if settings.use_dora:
            expected[module, MAGNITUDE] = (place.out_features,)
    vectors = layout.vectors(config)
    if settings.bias != "none" and any(module != place.matrix for module, place in known.items()):
        raise ConfigError(
            f"expected the bias none in {settings.path}, whose layers have other names than the official ones, "
            f"got {settings.bias}; merge it into its model with peft (merge_and_unload) first"
        )
    if settings.bias == "lora_only":
        for module, place in adapted.items():
            if f"{place.matrix}.{BIAS}" in vectors:
                expected[module, BIAS] = (place.out_features,)
    elif settings.bias == "all":
        names = [name for name in vectors if name.endswith(f".{BIAS}")]
        expected |= {(name.removesuffix(f".{BIAS}"), BIAS): vectors[name] for name in names}
    return expected | _expected_whole(settings, config)


def _expected_whole(settings: LoraSettings, config: Config) -> dict[Key, tuple[int, ...]]:
    modules = whole_modules(config)
    for name in settings.modules_to_save:
        if not any(matches([name], path) for path in modules):
            kinds = sorted({path.rpartition(".")[2] for path in modules})
            raise ConfigError(
                f"expected modules_to_save among {', '.join(kinds)} in {settings.path}, got {shown_name(name)}; "
                "merge it into its model with peft (merge_and_unload) first"
            )
    return {
        (path, part): shape
        for path, shapes in modules.items()
        if settings.saves(path)
        for part, shape in shapes.items()
    }


def _compare(path: Path, found: dict[Key, Tensor], expected: dict[Key, tuple[int, ...]], config: Config) -> None:
    """Raise one CheckpointError that names missing, extra, mis-shaped and mis-typed tensors."""
    faults = []
    for what, keys in (
        ("missing", [key for key in expected if key not in found]),
        ("extra", [key for key in found if key not in expected]),
    ):
        if keys:
            faults.append(f"{what} {_listing(f'{module}.{part}' for module, part in keys)}")
    both = [key for key in expected if key in found]
    shapes = [
        f"{module}.{part} {tuple(found[module, part].shape)} instead of {expected[module, part]}"
        for module, part in both
        if tuple(found[module, part].shape) != expected[module, part]
    ]
    types = [f"{key[0]}.{key[1]} {found[key].dtype}" for key in both if found[key].dtype not in FLOATING]
    if shapes:
        faults.append(f"mis-shaped {_listing(shapes)}")
    if types:
        faults.append(f"no floats {_listing(types)}")
    if faults:
        raise CheckpointError(
            f"expected the tensors that its settings and this model ask for in {path}, got: {'; '.join(faults)}; "
            f"{whose_names([module for module, _ in found], config)}"
        )


def _listing(names: Iterable[str]) -> str:
    names = list(names)
    rest = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(map(shown_name, names[:_MOST_NAMED])) + rest


def _replaced(found: dict[Key, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Vectors, and whole matrices, that take the place of the model's own, by their official names."""
    own = {key: tensor for key, tensor in found.items() if key[1] not in (DOWN, UP, MAGNITUDE)}
    vectors = {f"{module}.{part}": tensor for (module, part), tensor in own.items() if tensor.dim() == 1}
    whole = {module: tensor for (module, _), tensor in own.items() if tensor.dim() == 2}
    return vectors, whole
