"""What a decoding step on a GPU cannot be faster than: arithmetic from shapes and from the launches of the code.

python -m benchmarks.kernels.floors            rewrites benchmarks/results/floors.json
"""

import json

import torch

from benchmarks.machine import RESULTS
from glm_int4.checkpoint.build import ComputeSetup, resident_bytes
from glm_int4.checkpoint.formats import layout
from glm_int4.measuring.random_weights import open_random
from glm_int4.models.kv_cache import kv_bytes_per_token
from glm_int4.models.presets import CONFIGS
from triton_kernels import launch

CONTEXTS = {"chatglm-6b": (128, 2048), "chatglm2-6b": (128, 2048, 8192), "chatglm3-6b": (128, 2048, 8192)}
# Multiprocessors of the cards that the launches are counted for: RTX 3060, H200.
MULTIPROCESSORS = {86: 28, 90: 132}


def step_launches(preset: str, bits: int, architecture: int) -> int:
    """Kernels of one token's step: products, what finishes them, two norms, rotary, attention in two passes."""
    config = open_random(preset, CONFIGS[preset], bits, torch.device("cpu"), num_layers=1)[1].config
    row = launch.choose(bits, architecture, 1) if bits != 16 else None
    total = 1  # the first norm
    matrices = [*layout.linears(config), layout.vocabulary(config)[-1]]
    for matrix in matrices:
        layers = CONFIGS[preset]["num_layers"] if ".layers." in matrix.name else 1
        kernels = 1  # of a library, in half precision
        if row is not None:
            splits = launch.num_splits(row, matrix.in_features, matrix.out_features, MULTIPROCESSORS[architecture])
            gated = matrix.kind == "dense_h_to_4h" and config.version != "1"
            kernels = 2 if splits > 1 or gated else 1
        elif matrix.kind == "dense_h_to_4h":
            kernels = 2 if config.version == "1" else 3  # the activation behind it
        total += layers * kernels
    return total + CONFIGS[preset]["num_layers"] * 5


def read_bytes(preset: str, bits: int) -> tuple[int, int]:
    """Bytes of weights that a step reads on a GPU, and of the cache for every token of context."""
    _, info = open_random(preset, CONFIGS[preset], bits, torch.device("cpu"))
    setup = ComputeSetup(
        device=torch.device("cuda"),
        backend="triton",
        dense_dtype=torch.float16,
        stream_dtype=torch.float16,
        kv_dtype=torch.float16,
        half_tables=True,
    )
    config, total = info.config, resident_bytes(info, setup)
    if len(layout.vocabulary(config)) > 1:  # rows of the embedding are looked up, not read through
        matrix = layout.embedding(config)
        scheme = info.schemes[matrix.name]
        size = matrix.out_features * matrix.in_features
        total -= size * 2 if scheme is None else size * scheme.bits // 8 + 2 * matrix.out_features
    kv = kv_bytes_per_token(config.num_layers, config.num_kv_heads, config.head_dim, setup.kv_dtype)
    return total, kv


def main() -> None:
    """Count for all models and precisions."""
    rows = []
    for preset, contexts in CONTEXTS.items():
        for bits in (4, 8, 16):
            weights, kv = read_bytes(preset, bits)
            rows.append(
                {
                    "model": preset,
                    "bits": bits,
                    "weight_bytes": weights,
                    "kv_bytes": kv,
                    "bytes": {str(context): weights + context * kv for context in contexts},
                    "launches": {f"sm_{a}": step_launches(preset, bits, a) for a in MULTIPROCESSORS},
                }
            )
    lines = ",\n".join(map(json.dumps, rows))
    path = RESULTS / "floors.json"
    path.write_text(f'{{"command": "python -m benchmarks.kernels.floors",\n"rows": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
