"""Weights as large models have them: outlier channels in the mini model, and layers of 6B widths.

pytest benchmarks/quality/bench_outliers.py [--results out.json]

Models of 6 to 7 billion parameters hold a few input channels, the same in all layers, that are 20 to 60 times
as large as the others (Dettmers et al., LLM.int8(), 2022: 6 or 7 of 4096). Here one of the mini model's 256
inputs of every linear layer behind a norm is made 40 times as large, and that column of the weights 40 times
as small: in float32 the function is the same. In ChatGLM-6B the norm's output is the residual as well, so the
factor sits at the linear layer, not in the norm.

Layers of 6B widths get weights from Student's t with 5 degrees of freedom, inputs that are correlated, of
unequal size and with outlier channels, and are compared on inputs that the calibration has not seen.
"""

import functools
import time

import pytest
import torch

import glm_int4
from benchmarks.machine import EXAMPLES, MINI
from benchmarks.quality.bench_perplexity import difference, error
from benchmarks.report.tables import OFFICIAL
from glm_int4.generation.scoring import score_tokens
from glm_int4.quantization.linear import DenseLinear
from glm_int4.quantization.rounding.gptq import Hessian, quantize_gptq
from glm_int4.quantization.rounding.hqq import quantize_hqq
from glm_int4.quantization.rounding.rtn import dequantize, quantize_official, quantize_rtn
from glm_int4.quantization.scheme import QuantizationScheme

CHANNEL, FACTOR = 100, 40.0
TOKENS, CALIBRATION_TOKENS = 6000, 8192


def scheme(bits, group_size, symmetric=False):
    """In few words."""
    return QuantizationScheme(bits=bits, group_size=group_size, symmetric=symmetric)


# name: (scheme, how to round a weight given its inputs' moments)
METHODS = {
    OFFICIAL: (scheme(4, None, True), lambda w, s, h: quantize_official(w, s)),
    "INT8": (scheme(8, None, True), lambda w, s, h: quantize_rtn(w, s)),
    "RTN g128": (scheme(4, 128), lambda w, s, h: quantize_rtn(w, s)),
    "RTN g32": (scheme(4, 32), lambda w, s, h: quantize_rtn(w, s)),
    "HQQ g128": (scheme(4, 128), lambda w, s, h: quantize_hqq(w, s)),
    "GPTQ g128": (scheme(4, 128), lambda w, s, h: quantize_gptq(w, s, h().factor())),
}


class WithOutliers:
    """The mini model in float32, its linear layers behind norms fed with an outlier channel."""

    def __init__(self):
        self.engine = glm_int4.load(MINI, device="cpu", dtype=torch.float32)
        self.reference = glm_int4.load(MINI, device="cpu", dtype=torch.float32)
        encode = self.engine.tokenizer.encode
        self.ids = encode((EXAMPLES / "heldout.txt").read_text(encoding="utf-8"))[:TOKENS]
        self.calibration = encode((EXAMPLES / "train_sample.txt").read_text(encoding="utf-8"))[:CALIBRATION_TOKENS]
        modules = self.engine.model.named_modules()
        self.linears = {name: module for name, module in modules if isinstance(module, DenseLinear)}
        self.originals = {name: module.weight.detach().clone() for name, module in self.linears.items()}
        self.factors = {}
        for name, weight in self.originals.items():
            factors = self.factors[name] = torch.ones(weight.shape[1])
            if name.endswith(("query_key_value", "dense_h_to_4h")):
                factors[CHANNEL] = FACTOR

    def moments(self, name):
        """Of a layer's inputs, outliers included, in the model as it has been quantized so far."""
        hessian = Hessian(len(self.factors[name]))
        hook = self.linears[name].register_forward_pre_hook(lambda _, x: hessian.add(x[0] * self.factors[name]))
        prefix = self.engine.text_prefix
        for start in range(0, len(self.calibration), 510):
            self.engine.hidden_states([*prefix, *self.calibration[start : start + 510]])
        hook.remove()
        return hessian

    def quantize(self, scheme, rounding):
        """Quantize all layers in order; returns the squared error of their weights by the squared weights."""
        for name, module in self.linears.items():
            module.weight.data = self.originals[name]
        for name, module in self.linears.items():
            factors = self.factors[name]
            weight = self.originals[name] / factors
            quantized, *_ = rounding(weight, scheme, functools.partial(self.moments, name))
            module.weight.data = dequantize(quantized) * factors

    def scores(self):
        parts = list(score_tokens(self.engine, self.ids, window=510, stride=510, reference=self.reference))
        return tuple(torch.cat([getattr(part, key) for part in parts]) for key in ("losses", "divergences"))


@pytest.fixture(scope="module")
def mini(one_thread):
    model = WithOutliers()
    parts = list(score_tokens(model.reference, model.ids, window=510, stride=510))
    return model, torch.cat([part.losses for part in parts]), {}


@pytest.mark.parametrize("name", METHODS)
def test_outliers_in_the_mini_model(name, mini, rows, benchmark):
    model, plain_losses, others = mini
    started = time.process_time()
    benchmark.pedantic(model.quantize, METHODS[name], rounds=1, iterations=1)
    seconds = time.process_time() - started
    losses, divergences = others[name] = model.scores()
    row = {
        "case": "mini model with outliers", "name": name, "tokens": len(losses), "cpu_seconds": seconds,
        "perplexity": losses.mean().exp().item(), "loss_increase": difference(losses, plain_losses),
        "kl": divergences.mean().item(), "kl_standard_error": error(divergences),
        "share_of_official": (divergences.mean() / others[OFFICIAL][1].mean()).item(),
        "kl_less_official": difference(divergences, others[OFFICIAL][1]),
    }  # fmt: skip
    rows.append(row)
    benchmark.extra_info.update(row)


@functools.cache
def layer(in_features, out_features=512):
    """Weights, calibration moments (as sums) and unseen inputs."""
    generator = torch.Generator().manual_seed(in_features)
    randn = functools.partial(torch.randn, generator=generator)
    weight = 0.02 * randn(out_features, in_features) / randn(5, out_features, in_features).square().mean(0).sqrt()
    rank = in_features // 8  # shared directions: half of the inputs' energy
    directions = randn(rank, in_features) / rank**0.5
    sizes = (0.5 * randn(in_features)).exp()
    outliers = torch.randperm(in_features, generator=generator)[: max(in_features * 7 // 4096, 1)]
    weight[:, outliers] /= FACTOR
    sizes[outliers] *= FACTOR

    def inputs(count):
        return (randn(count, rank) @ directions + randn(count, in_features)) * sizes

    hessian = Hessian(in_features)
    for _ in range(max(2 * in_features, 8192) // 1024):
        hessian.add(inputs(1024))
    return weight, hessian.sums, inputs(512)


@pytest.mark.parametrize("in_features", [4096, 13696])
@pytest.mark.parametrize("name", METHODS)
def test_layers_of_6b_widths(name, in_features, rows, benchmark):
    weight, sums, inputs = layer(in_features)

    def moments():
        hessian = Hessian(1)
        hessian.sums = sums.clone()
        return hessian

    scheme, rounding = METHODS[name]
    quantized, *_ = benchmark.pedantic(rounding, (weight, scheme, moments), rounds=1, iterations=1)
    expected = inputs @ weight.T
    errors = ((dequantize(quantized) - weight) @ inputs.T).square().sum() / expected.square().sum()
    case = f"layer of {in_features} inputs"
    official = next((row["output_error"] for row in rows if (row["case"], row["name"]) == (case, OFFICIAL)), None)
    row = {"case": case, "name": name, "output_error": errors.item()}
    row["share_of_official"] = row["output_error"] / (official or row["output_error"])
    rows.append(row)
    benchmark.extra_info.update(row)
