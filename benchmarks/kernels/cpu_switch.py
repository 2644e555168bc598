"""From how many rows on does dequantizing once beat multiplying row by row? For the switch point in float32.py.

python -m benchmarks.kernels.cpu_switch --json benchmarks/results/cpu_switch.json
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.machine import facts, parser, write
from glm_int4.quantization.cpu import float32
from glm_int4.quantization.cpu.float32 import Float32Matrix
from glm_int4.quantization.rounding.rtn import quantize_rtn
from glm_int4.quantization.scheme import QuantizationScheme

ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 128)
SHAPE = (16384, 4096)  # dense_h_to_4h of ChatGLM-6B
PAIRS = 5
WAYS = {"int4 rows": (4, 128), "int8 rows": (8, None)}


def milliseconds(function: Callable[[Tensor], object], x: Tensor) -> float:
    """Of one call."""
    started = time.perf_counter()
    function(x)
    return 1e3 * (time.perf_counter() - started)


def compare(name: str) -> list[dict[str, float]]:
    """Medians of interleaved pairs for every number of rows."""
    bits, group_size = WAYS[name]
    scheme = QuantizationScheme(bits=bits, group_size=group_size, symmetric=bits == 8)
    weight, _, _ = quantize_rtn(torch.randn(SHAPE), scheme)
    linear = Float32Matrix(weight)
    kept, results = float32.ROWS_MAX_ROWS, []
    try:
        for rows in ROWS:
            x = torch.randn(rows, SHAPE[1])
            times: dict[str, list[float]] = {"direct": [], "dequantized": []}
            for _ in range(PAIRS + 1):
                for way, limit in (("direct", rows), ("dequantized", 0)):
                    float32.ROWS_MAX_ROWS = limit
                    times[way].append(milliseconds(linear, x))
            direct, dequantized = (statistics.median(times[way][1:]) for way in ("direct", "dequantized"))
            results.append({"rows": rows, "direct_ms": direct, "dequantized_ms": dequantized})
            print(f"{name:12} {rows:4} rows: direct {direct:8.2f} ms, dequantized {dequantized:8.2f} ms")
    finally:
        float32.ROWS_MAX_ROWS = kept
    return results


def main() -> None:
    """Compare both ways for both kinds of weights."""
    arguments = parser(__doc__).parse_args()
    result = {"command": "python -m benchmarks.kernels.cpu_switch", "shape": SHAPE} | facts()
    write(result | {"ways": {name: compare(name) for name in WAYS}}, arguments.json)


if __name__ == "__main__":
    main()
