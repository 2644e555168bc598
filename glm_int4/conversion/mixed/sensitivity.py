"""How much a model's predictions suffer from each matrix, measured on text.

Copies of the activations go through the network together, layer by layer; each copy has one matrix
quantized. At the end, the KL divergence of every copy's predictions from the unquantized ones is the cost
of its matrix at one scheme, and the weights' errors, weighted by their inputs, carry it over to the others.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from glm_int4.checkpoint.formats import layout
from glm_int4.checkpoint.formats.layout import MatrixSpec
from glm_int4.conversion.calibrated.streamed_model import Activations, StreamedModel
from glm_int4.quantization.rounding.rtn import dequantize, quantize_rtn
from glm_int4.quantization.scheme import QuantizationScheme

Progress = Callable[[int, int, str], None]
Candidates = Mapping[str, Sequence[QuantizationScheme]]

_PIECE_WEIGHTS = 4 << 20
# A cost that float32 cannot tell from none.
_LEAST_COST = 1e-12


def measure_sensitivities(
    network: StreamedModel,
    sequences: Sequence[Sequence[int]],
    candidates: Candidates,
    folder: Path,
    progress: Progress | None = None,
) -> dict[str, list[float]]:
    """The cost of every candidate scheme of every matrix.

    Args:
        candidates: by matrix, in any order; matrices that are absent stay as they are.
        folder: where activations lie that are too many for the memory.
        progress: called with layers done, layers in all and what is at hand.
    Returns:
        KL divergences in nats per token, as if that matrix alone were quantized.
    """
    return _Measurement(network, sequences, candidates, folder, progress).run()


class _Measurement:
    def __init__(
        self,
        network: StreamedModel,
        sequences: Sequence[Sequence[int]],
        candidates: Candidates,
        folder: Path,
        progress: Progress | None,
    ) -> None:
        self._network, self._sequences, self._candidates = network, sequences, candidates
        self._progress = progress
        config = network.config
        self._embedding = layout.embedding(config).name
        self._head = layout.vocabulary(config)[-1]
        num_tokens = sum(map(len, sequences)) * (1 + len(candidates))
        self._activations = Activations(folder, 4 * num_tokens * config.hidden_size)
        self._copies: list[str | None] = []  # the quantized matrix of every copy; None for the first, the reference
        self._errors: dict[str, list[float]] = {}

    def run(self) -> dict[str, list[float]]:
        self._add_copy(None, [self._network.embed(ids) for ids in self._sequences])
        if self._embedding in self._candidates:
            self._add_copy(self._embedding, [self._embed_quantized(ids) for ids in self._sequences])
        for index, names in enumerate(self._network.layer_linears):
            self._report(index, f"measuring layer {index}")
            self._run_layer(index, names)
        self._report(len(self._network.layer_linears), "comparing predictions")
        divergences = self._divergences()
        return {
            name: [max(divergences[name] * error / max(errors[0], 1e-30), _LEAST_COST) for error in errors[1:]]
            for name, errors in self._errors.items()
        }

    def _report(self, done: int, item: str) -> None:
        if self._progress:
            self._progress(done, len(self._network.layer_linears) + 1, item)

    def _add_copy(self, name: str | None, states: Sequence[Tensor]) -> None:
        for i, x in enumerate(states):
            self._activations[len(self._copies) * len(self._sequences) + i] = x
        self._copies.append(name)

    def _copy(self, index: int) -> list[Tensor]:
        count = len(self._sequences)
        return [self._activations[index * count + i] for i in range(count)]

    def _forward(self, layer: int, states: Sequence[Tensor]) -> list[Tensor]:
        return [self._network.run_layer(layer, x, ids) for x, ids in zip(states, self._sequences, strict=True)]

    def _probe(self, name: str) -> QuantizationScheme:
        """The scheme whose cost is measured: the first of 4 bits with the largest groups."""
        schemes = [scheme for scheme in self._candidates[name] if scheme.bits == 4] or list(self._candidates[name])
        return max(schemes, key=lambda scheme: scheme.group_size or 0)

    def _embed_quantized(self, ids: Sequence[int]) -> Tensor:
        rows = self._network.embed(ids)
        return dequantize(quantize_rtn(rows, self._probe(self._embedding))[0]).to(rows.device)

    def _run_layer(self, layer: int, names: Sequence[str]) -> None:
        network = self._network
        network.load_layer(layer)
        before, num_before = self._copy(0), len(self._copies)
        moments: dict[str, Tensor] = {}
        for name in names:
            network.linears[name].tap = _moment_tap(moments, name)
        after = self._forward(layer, before)
        for name in names:
            network.linears[name].tap = None
        for name in names:
            if name not in self._candidates:
                continue
            linear = network.linears[name]
            weight = linear.weight
            assert weight is not None
            self._errors[name] = self._weighted_errors(name, weight, moments[name])
            linear.weight = torch.cat([self._rounded(piece, self._probe(name)) for piece in _pieces(weight)])
            self._add_copy(name, self._forward(layer, before))
            linear.weight = weight
        for index in range(num_before):
            states = after if index == 0 else self._forward(layer, self._copy(index))
            for i, x in enumerate(states):
                self._activations[index * len(self._sequences) + i] = x
        network.drop_layer(layer)

    @staticmethod
    def _rounded(weight: Tensor, scheme: QuantizationScheme) -> Tensor:
        return dequantize(quantize_rtn(weight, scheme)[0]).to(weight.device)

    def _weighted_errors(self, name: str, weight: Tensor, moments: Tensor | None) -> list[float]:
        """Squared errors, weighted by the inputs' mean squares: of the probe, then of every candidate."""
        sums: dict[str, float] = {}
        schemes = [self._probe(name), *self._candidates[name]]
        for scheme in schemes:
            if str(scheme) in sums:
                continue
            total = 0.0
            for piece in _pieces(weight):
                piece = piece.to(self._network.device, torch.float32)
                squares = (self._rounded(piece, scheme) - piece).square_().sum(0)
                total += float((squares if moments is None else squares * moments).sum())
            sums[str(scheme)] = total
        return [sums[str(scheme)] for scheme in schemes]

    def _divergences(self) -> dict[str, float]:
        """KL divergence from the reference's predictions, by matrix, in nats per token."""
        network, head = self._network, self._head.name
        reader_name = f"{head}.weight"
        matrix = network.folding.fold(reader_name, network.reader.rows(reader_name))
        reference = torch.cat([network.normalize(x) for x in self._copy(0)])
        if self._embedding in self._candidates and self._embedding != head:
            rows = network.reader.rows(f"{self._embedding}.weight")
            self._errors[self._embedding] = self._weighted_errors(self._embedding, rows, None)
        if head in self._candidates:
            self._errors[head] = self._weighted_errors(head, matrix, reference.square().mean(0))
            if head != self._embedding:
                self._add_copy(head, self._copy(0))
        expected = self._log_probabilities(reference, self._head, None)
        divergences = {}
        for index, name in enumerate(self._copies):
            if name is None:
                continue
            scheme = self._probe(head) if name == head else None
            x = torch.cat([network.normalize(x) for x in self._copy(index)])
            found = self._log_probabilities(x, self._head, scheme)
            divergences[name] = float((expected.exp() * (expected - found)).sum(-1).double().mean())
        network.reader.release(reader_name)
        return divergences

    def _log_probabilities(self, x: Tensor, head: MatrixSpec, scheme: QuantizationScheme | None) -> Tensor:
        """(T, V) float32, the head quantized if there is a scheme."""
        parts = []
        name = f"{head.name}.weight"
        for piece in _pieces(self._network.reader.rows(name)):
            piece = self._network.folding.fold(name, piece.to(self._network.device, torch.float32))
            parts.append(x @ (piece if scheme is None else self._rounded(piece, scheme)).T)
        return torch.cat(parts, dim=1).log_softmax(-1)


def _moment_tap(moments: dict[str, Tensor], name: str) -> Callable[[Tensor], None]:
    def tap(x: Tensor) -> None:
        squares = x.flatten(0, -2).square().mean(0)
        moments[name] = moments[name] + squares if name in moments else squares

    return tap


def _pieces(weight: Tensor) -> list[Tensor]:
    """A matrix in pieces of rows."""
    return list(weight.split(max(_PIECE_WEIGHTS // weight.shape[1], 1)))
