"""GPTQ over a checkpoint: matrix by matrix in the order of the network, one layer in memory.

The calibration text runs through the network as it is being quantized: a matrix sees what the matrices
before it, already quantized, make of the text.
"""

import contextlib
import time
from pathlib import Path

import torch
from torch import Tensor

from glm_int4.checkpoint.files.reader import CheckpointReader
from glm_int4.checkpoint.formats import layout
from glm_int4.checkpoint.opening import CheckpointInfo
from glm_int4.conversion.calibrated.sequences import Calibration
from glm_int4.conversion.calibrated.streamed_model import Activations, StreamedLinear, StreamedModel
from glm_int4.conversion.folding import Folding
from glm_int4.errors import CheckpointError
from glm_int4.models.config import Config
from glm_int4.quantization.rounding.gptq import Hessian, quantize_gptq
from glm_int4.quantization.rounding.rtn import dequantize
from glm_int4.quantization.scheme import QuantizationScheme, QuantizedWeight

# Size of the product whose speed stands for all. One layer of ChatGLM-6B ran at 104 GFLOP per second of a processor,
# this product at 90 and one of 1024 at 52 (benchmarks/speed/gptq_layer.py on an AMD EPYC with AVX-512): the estimate
# is 15 % too long, which pays for rounding and files.
_PROBE_SIZE = 2048


class _EnoughError(Exception):
    """Ends a forward pass once the input that it was run for has been seen."""


class CalibratedQuantizer:
    """Quantizes the linear layers of a checkpoint, which must come in the order of the network.

    Args:
        folder: where activations lie that are too many for the memory.
    """

    def __init__(
        self,
        reader: CheckpointReader,
        info: CheckpointInfo,
        calibration: Calibration,
        folding: Folding,
        folder: Path,
        device: torch.device | str = "cpu",
    ) -> None:
        self._network = StreamedModel(reader, info, folding, device)
        self._sequences = calibration.sequences
        num_tokens = sum(map(len, self._sequences))
        self._activations = Activations(folder, 4 * num_tokens * info.config.hidden_size)
        for i, ids in enumerate(self._sequences):
            self._activations[i] = self._network.embed(ids)
        self._layer = -1
        self._rest: list[str] = []  # matrices of the layer at hand that are still as they were

    def takes(self, name: str) -> bool:
        """Whether this is one of the linear layers; the vocabulary is not."""
        return any(name in names for names in self._network.layer_linears)

    def quantize(self, name: str, scheme: QuantizationScheme) -> tuple[QuantizedWeight, float, float]:
        """Quantize the next matrix; the result and its errors are as of ``quantize_gptq``."""
        linear = self._enter(name)
        hessian = self._moments_of_inputs(linear)
        weight, linear.weight = linear.weight, None
        assert weight is not None
        try:
            factor = hessian.factor()
        except ValueError as fault:
            raise CheckpointError(
                f"expected finite inputs of {name} on the calibration text, got others ({fault}); "
                "the model overflows, or its weights are damaged"
            ) from fault
        quantized, error, norm = quantize_gptq(weight, scheme, factor)
        self._leave(name, quantized)
        zeros = quantized.zero_points
        on_cpu = QuantizedWeight(
            scheme=scheme,
            packed=quantized.packed.cpu(),
            scales=quantized.scales.cpu(),
            zero_points=None if zeros is None else zeros.cpu(),
        )
        return on_cpu, error, norm

    def _moments_of_inputs(self, linear: StreamedLinear) -> Hessian:
        """Run the calibration text through the layer, as far as the inputs of one matrix."""
        assert linear.weight is not None
        hessian = Hessian(linear.weight.shape[1], linear.weight.device)

        def tap(x: Tensor) -> None:
            hessian.add(x)
            raise _EnoughError

        linear.tap = tap
        for i, ids in enumerate(self._sequences):
            with contextlib.suppress(_EnoughError):
                self._network.run_layer(self._layer, self._activations[i], ids)
        linear.tap = None
        return hessian

    def skip(self, name: str, weight: QuantizedWeight) -> None:
        """Take the next matrix as it was quantized by an earlier run."""
        self._enter(name)
        self._leave(name, weight)

    def _enter(self, name: str) -> StreamedLinear:
        if not self._rest:
            self._layer += 1
            self._network.load_layer(self._layer)
            self._rest = list(self._network.layer_linears[self._layer])
        assert name == self._rest[0], f"{name} comes before {self._rest[0]}"
        return self._network.linears[name]

    def _leave(self, name: str, weight: QuantizedWeight) -> None:
        """Go on with the quantized weights, and to the next layer after the last matrix of one."""
        self._network.linears[name].weight = dequantize(weight).to(self._network.device)
        del self._rest[0]
        if self._rest:
            return
        if self._layer + 1 < len(self._network.layer_linears):
            for i, ids in enumerate(self._sequences):
                self._activations[i] = self._network.run_layer(self._layer, self._activations[i], ids)
        self._network.drop_layer(self._layer)


def estimated_seconds(config: Config, num_tokens: int, device: torch.device | str = "cpu") -> float:
    """What quantizing will take, from the operations of its matrix products and how fast one runs here."""
    operations = 0.0
    runs = 4.0  # of a layer's first matrix: for the inputs of the other three, and for its output
    for matrix in layout.linears(config):
        n, k = matrix.out_features, matrix.in_features
        operations += runs * 2 * num_tokens * n * k  # forward passes
        operations += num_tokens * k * k + k**3 / 3 + n * k * k  # moments, their factor, feedback of errors
        runs = 4.0 if runs == 1 else runs - 1
    size = _PROBE_SIZE
    a = torch.ones(size, size, device=device)
    _ = float((a @ a)[0, 0])  # wakes the threads
    started = time.perf_counter()
    for _ in range(3):
        a = (a @ a).clamp_(max=1)
    _ = float(a[0, 0])
    return operations * (time.perf_counter() - started) / (3 * 2 * size**3)
