"""What a way of rounding costs the mini model, over many orders of its columns.

pytest benchmarks/quality/bench_rounding.py [--results out.json]

One rounding of one model is one draw: its loss is 15 % larger or smaller than that of the next, more than the
methods differ. Another order of a matrix's columns puts other weights into its groups and changes nothing else, so
here every method rounds the same twelve orders, and differences are taken order by order.
"""

import statistics

import pytest
import torch

from benchmarks.quality.bench_outliers import WithOutliers, scheme
from benchmarks.quality.bench_perplexity import difference
from glm_int4.quantization.rounding import rtn
from glm_int4.quantization.rounding.hqq import quantize_hqq
from glm_int4.quantization.rounding.rtn import dequantize, quantize_rtn
from glm_int4.quantization.scheme import QuantizedWeight

ORDERS = 12
BASE = "RTN g128"


def with_least_squares(weight, scheme):
    """The same integers at the scales with the least squared error, in float32: groups are shorter then."""
    quantized = dequantize(quantize_rtn(weight, scheme)[0]).unflatten(1, (-1, scheme.group_size))
    groups = weight.unflatten(1, (-1, scheme.group_size))
    fitted = (groups * quantized).sum(-1, keepdim=True) / quantized.square().sum(-1, keepdim=True).clamp(min=1e-30)
    return (quantized * fitted).flatten(1)


def full_range(weight, scheme):
    """Without a clip search."""
    search = rtn.search_reference
    packed, scales, zeros, *_ = search(weight, scheme, scheme.group_size, (1.0,))
    return dequantize(QuantizedWeight(scheme=scheme, packed=packed, scales=scales, zero_points=zeros))


METHODS = {
    BASE: lambda w: dequantize(quantize_rtn(w, scheme(4, 128))[0]),
    "RTN g128, least squares": lambda w: with_least_squares(w, scheme(4, 128)),
    "RTN g128, no clip search": lambda w: full_range(w, scheme(4, 128)),
    "HQQ g128": lambda w: dequantize(quantize_hqq(w, scheme(4, 128))[0]),
    "RTN g32": lambda w: dequantize(quantize_rtn(w, scheme(4, 32))[0]),
}


def divergence(model, method, order):
    """KL divergence of the model with all columns in an order of their own, outlier factors left out."""
    generator = torch.Generator().manual_seed(order)
    for name, module in model.linears.items():
        columns = torch.randperm(module.weight.shape[1], generator=generator)
        module.weight.data = method(model.originals[name][:, columns])[:, columns.argsort()]
    return model.scores()[1].mean().item()


@pytest.fixture(scope="module")
def mini(one_thread):
    return WithOutliers()


@pytest.mark.parametrize("name", METHODS)
def test_orders_of_columns(name, mini, rows, benchmark):
    found: list[float] = []
    benchmark.pedantic(
        lambda: found.extend(divergence(mini, METHODS[name], order) for order in range(ORDERS)), rounds=1, iterations=1
    )
    row = {
        "name": name, "orders": ORDERS, "kl": statistics.mean(found), "kls": found,
        "kl_standard_error": statistics.stdev(found) / ORDERS**0.5,
    }  # fmt: skip
    if rows:
        row["kl_less_base"] = difference(torch.tensor(found), torch.tensor(rows[0]["kls"]))
    rows.append(row)
    benchmark.extra_info.update(row)
