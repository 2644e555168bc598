"""What a decoding step on a GPU cannot be faster than: bytes, from shapes, and launches, as the code makes them.

python -m benchmarks.kernels.floors            rewrites benchmarks/results/floors.json
"""

import json
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.machine import RESULTS
from glm_int4.checkpoint.build import ComputeSetup, resident_bytes
from glm_int4.checkpoint.formats import layout
from glm_int4.generation.cuda_graphs import GraphStepper
from glm_int4.generation.decoding import Decoder
from glm_int4.generation.padded_batch import Batch
from glm_int4.measuring.random_weights import open_random
from glm_int4.models.kv_cache import kv_bytes_per_token
from glm_int4.models.presets import CONFIGS
from tests.fake_gpu import META, SETUP, Memory, fake_gpu, fake_model

CONTEXTS = {"chatglm-6b": (128, 2048), "chatglm2-6b": (128, 2048, 8192), "chatglm3-6b": (128, 2048, 8192)}
# Multiprocessors of the cards that the launches are counted for: RTX 3060, H200.
MULTIPROCESSORS = {86: 28, 90: 132}


class StepCounter:
    """Stands for CUDA graphs: a replay runs the step anew, and counts what that launches."""

    def __init__(self, memory: Memory) -> None:
        self._memory, self.launches = memory, 0

    def new_pool(self) -> None:
        """There is none."""

    def capture(self, run: Callable[[], Tensor], pool: object) -> Callable[[], Tensor]:
        """What takes the place of a graph."""

        def replay() -> Tensor:
            before = self._memory.launches.total()
            logits = run()
            self.launches = self._memory.launches.total() - before
            return logits

        return replay


def step_launches(preset: str, bits: int, architecture: int) -> tuple[int, int]:
    """Kernels in the graph of one token's step, and those that copy its inputs before.

    Counted as the code launches them on a GPU that is not there, torch's own kernels too: with one layer and with two.
    """
    layers = CONFIGS[preset]["num_layers"]
    (first, inputs), (second, _) = (_launches(preset, bits, architecture, num_layers) for num_layers in (1, 2))
    return first + (layers - 1) * (second - first), inputs


def _launches(preset: str, bits: int, architecture: int, num_layers: int) -> tuple[int, int]:
    from triton_kernels import decode

    with fake_gpu(architecture, MULTIPROCESSORS[architecture]) as (memory, _):
        model = fake_model(preset, num_layers, bits=bits)
        counter = StepCounter(memory)
        stepper = GraphStepper(model, decode, counter)  # type: ignore[arg-type]
        batch = Batch(model, [[5] * 128], META)
        cache = Decoder(model, SETUP, 512).new_cache(1, 512)
        cache.length = batch.num_tokens
        tokens, positions = batch.token_ids[:, 0], batch.decode_positions(0)
        stepper.step(tokens, positions, cache)  # makes what is kept, and compiles
        memory.launches.clear()
        stepper.step(tokens, positions, cache)
        assert stepper.fused
        return counter.launches, memory.launches.total() - counter.launches


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
            launches = {f"sm_{a}": step_launches(preset, bits, a) for a in MULTIPROCESSORS}
            rows.append(
                {
                    "model": preset,
                    "bits": bits,
                    "weight_bytes": weights,
                    "kv_bytes": kv,
                    "bytes": {str(context): weights + context * kv for context in contexts},
                    "launches": {card: in_graph for card, (in_graph, _) in launches.items()},
                    "launches_before": {card: before for card, (_, before) in launches.items()},
                }
            )
    lines = ",\n".join(map(json.dumps, rows))
    path = RESULTS / "floors.json"
    path.write_text(f'{{"command": "python -m benchmarks.kernels.floors",\n"rows": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
