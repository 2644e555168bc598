"""Compiles a small loop, or loads it, once another process says so; a program of test_cold_starts.py."""

import sys

import numpy as np

from glm_int4.quantization.cpu import compiled


def add_all(values):
    """The sum of numbers."""
    result = 0.0
    for value in values:
        result += value
    return result


if __name__ == "__main__":
    loop = compiled.loop()(add_all)
    print("ready", flush=True)
    sys.stdin.readline()
    print(loop(np.arange(5.0)), "loaded" if sum(loop.stats.cache_hits.values()) else "compiled", flush=True)
