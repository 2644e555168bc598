"""Mixed precision: bits and group size of every matrix, the least loss that a number of bytes can buy."""

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from glm_int4.checkpoint.files.reader import CheckpointReader
from glm_int4.checkpoint.formats import layout
from glm_int4.checkpoint.formats.layout import MatrixSpec
from glm_int4.checkpoint.opening import CheckpointInfo, Schemes, tensor_specs
from glm_int4.conversion.calibrated.streamed_model import StreamedModel
from glm_int4.conversion.folding import Folding
from glm_int4.conversion.mixed.sensitivity import Progress, measure_sensitivities
from glm_int4.conversion.quantization_options import QuantizationOptions
from glm_int4.errors import InputError
from glm_int4.quantization.scheme import GROUP_SIZES, QuantizationScheme
from glm_int4.system import size_text

# Text for the sensitivities. Every matrix has a copy of these tokens' activations.
_SEQUENCES, _TOKENS = 8, 256
_LARGE_MODEL, _LARGE_SEQUENCES, _LARGE_TOKENS = 10**9, 2, 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """schemes: the choice, by matrix. costs: the KL divergence in nats per token that each is expected to cost."""

    schemes: dict[str, QuantizationScheme]
    costs: dict[str, float]


def candidate_schemes(matrix: MatrixSpec, options: QuantizationOptions) -> list[QuantizationScheme]:
    """The schemes that a matrix may get: INT4 in groups of every size that fits, and INT8 per channel."""
    symmetric = bool(options.symmetric)
    vocabulary = matrix.kind in ("embedding", "head", "embedding + head")
    sizes: list[int | None] = [size for size in GROUP_SIZES if matrix.in_features % size == 0]
    if not vocabulary or not sizes:
        sizes.append(None)
    schemes = [QuantizationScheme(bits=4, group_size=size, symmetric=symmetric) for size in sizes]
    if matrix.in_features * 4 % 32:
        schemes = []
    return [*schemes, QuantizationScheme(bits=8, group_size=None, symmetric=True)]


def choose_mix(
    reader: CheckpointReader,
    info: CheckpointInfo,
    options: QuantizationOptions,
    folding: Folding,
    sequences: Callable[[int, int], list[list[int]]],
    folder: Path,
    progress: Progress | None = None,
) -> Mix:
    """Measure how sensitive every matrix is, and spend the target's bytes where they help most.

    Args:
        sequences: token ids to measure on, so many sequences of so many.
        folder: for activations that are too many for the memory.
    Raises:
        InputError: no mix is that small.
    """
    matrices = layout.matrices(info.config)
    candidates = {name: candidate_schemes(matrix, options) for name, matrix in matrices.items()}
    fixed: Schemes = {}
    if options.head_bits is not None:
        for matrix in layout.vocabulary(info.config):
            fixed[matrix.name] = options.vocabulary_scheme(info.config.hidden_size)
            del candidates[matrix.name]
    sizes = {name: [_num_bytes(matrices[name], scheme) for scheme in schemes] for name, schemes in candidates.items()}
    rest = sum(reader.spec(name).num_bytes for name in layout.vectors(info.config))
    for name, scheme in fixed.items():
        rest += reader.spec(f"{name}.weight").num_bytes if scheme is None else _num_bytes(matrices[name], scheme)
    num_weights = layout.num_parameters(info.config)
    budget = options.target_bytes
    if budget is None:
        assert options.target_bits is not None
        budget = int(options.target_bits * num_weights / 8)
    _check_reachable(options, budget, rest + sum(min(s) for s in sizes.values()), num_weights)
    size = (_LARGE_SEQUENCES, _LARGE_TOKENS) if num_weights >= _LARGE_MODEL else (_SEQUENCES, _TOKENS)
    network = StreamedModel(reader, info, folding, options.device)
    costs = measure_sensitivities(network, sequences(*size), candidates, folder, progress)
    choice = spend(costs, sizes, budget - rest)
    return Mix(
        schemes={name: candidates[name][i] for name, i in choice.items()},
        costs={name: costs[name][i] for name, i in choice.items()},
    )


def spend(costs: Mapping[str, Sequence[float]], sizes: Mapping[str, Sequence[int]], budget: int) -> dict[str, int]:
    """One choice for every key, of the least total cost in at most ``budget`` bytes; the smallest choices fit.

    Choices that a mix of two others would beat are left out; then the bytes go, one step after the other,
    to where they save most cost each.
    """
    hulls = {name: _hull(costs[name], sizes[name]) for name in costs}
    chosen = dict.fromkeys(hulls, 0)
    left = budget - sum(sizes[name][hull[0]] for name, hull in hulls.items())

    def step(name: str) -> tuple[float, int, str] | None:
        hull, at = hulls[name], chosen[name]
        if at + 1 == len(hull):
            return None
        added = sizes[name][hull[at + 1]] - sizes[name][hull[at]]
        return ((costs[name][hull[at + 1]] - costs[name][hull[at]]) / added, added, name)

    steps = [s for name in hulls if (s := step(name)) is not None]
    heapq.heapify(steps)
    while steps:
        _, added, name = heapq.heappop(steps)
        if added > left:
            continue  # nothing further up this matrix's ladder fits either; others may
        left -= added
        chosen[name] += 1
        if (following := step(name)) is not None:
            heapq.heappush(steps, following)
    return {name: hulls[name][at] for name, at in chosen.items()}


def _hull(costs: Sequence[float], sizes: Sequence[int]) -> list[int]:
    """The choices on the lower convex hull of cost over size, smallest first."""
    hull: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: (sizes[i], costs[i])):
        if hull and costs[i] >= costs[hull[-1]]:
            continue
        while len(hull) > 1 and (costs[hull[-1]] - costs[hull[-2]]) * (sizes[i] - sizes[hull[-2]]) > (
            costs[i] - costs[hull[-2]]
        ) * (sizes[hull[-1]] - sizes[hull[-2]]):
            hull.pop()
        hull.append(i)
    return hull


def _num_bytes(matrix: MatrixSpec, scheme: QuantizationScheme) -> int:
    return sum(spec.num_bytes for spec in tensor_specs(matrix, scheme, official=False))


def _check_reachable(options: QuantizationOptions, budget: int, least: int, num_weights: int) -> None:
    if budget >= least:
        return
    if options.target_bits is not None:
        smallest, got = f"--target-bits {least * 8 / num_weights + 5e-4:.3f}", f"{options.target_bits:g}"
    else:
        smallest, got = f"--target-size {least}", size_text(budget)
    head = "; embedding and head may take fewer without --head-bits" if options.head_bits not in (None, 4) else ""
    raise InputError(
        f"expected a target that a mix of INT4 and INT8 can reach, got {got}; the smallest is {smallest} "
        f"({size_text(least)} in all){head}"
    )
