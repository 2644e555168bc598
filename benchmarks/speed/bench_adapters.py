"""What does a LoRA beside packed weights cost? Pairs with and without it, on a CPU.

pytest benchmarks/speed/bench_adapters.py --results benchmarks/results/adapters.json

Four layers of ChatGLM2-6B's shapes with its head, INT4, random weights, and a LoRA of rank 8 on query_key_value as the
official demo trains it. Both models run in turn, seven times; one row for each kind of work: medians, and the median
of the seven ratios. It takes two minutes; nothing else may run.
"""

import json
import os
import statistics
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.speed.bench_busy import decode, prompt
from glm_int4.adapters.adapter_source import AdapterSource
from glm_int4.adapters.applying import apply_loras
from glm_int4.adapters.reading import read_adapters
from glm_int4.checkpoint.formats import layout
from glm_int4.generation.engine import Engine
from glm_int4.measuring.speed import random_engine
from glm_int4.models.presets import CONFIGS

ROUNDS, LAYERS, RANK, NEW_TOKENS = 7, 4, 8, 16
KINDS = {"decode": decode, "prompt": prompt}


def write_lora(folder: Path, glm: Engine) -> None:
    """A LoRA as peft writes it, with random values."""
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 32, "target_modules": ["query_key_value"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    generator, tensors = torch.Generator().manual_seed(0), {}
    for matrix in layout.matrices(glm.config).values():
        if matrix.name.endswith(".query_key_value"):
            name = f"base_model.model.{matrix.name}"
            tensors[f"{name}.lora_A.weight"] = 0.01 * torch.randn(RANK, matrix.in_features, generator=generator)
            tensors[f"{name}.lora_B.weight"] = 0.01 * torch.randn(matrix.out_features, RANK, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors")


@lru_cache(maxsize=1)
def engines(folder: Path) -> tuple[Engine, Engine]:
    """The same weights alone and with the LoRA."""
    config = CONFIGS["chatglm2-6b"]
    base, adapted = (random_engine("chatglm2-6b", config, 4, torch.device("cpu"), num_layers=LAYERS) for _ in range(2))
    write_lora(folder, adapted)
    found = read_adapters([AdapterSource(folder, scale=1)], adapted.config, adapted.setup)
    apply_loras(adapted.model, found.loras, adapted.setup)
    return base, adapted


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_cost(
    benchmark: Any, tmp_path_factory: pytest.TempPathFactory, kind: str, threads: int, rows: list[dict[str, Any]]
) -> None:
    base, adapted = engines(tmp_path_factory.getbasetemp())
    torch.set_num_threads(threads)
    alone: list[float] = []
    beside: list[float] = []

    def measure_alone() -> None:
        alone.append(KINDS[kind](base, NEW_TOKENS))

    benchmark.pedantic(
        lambda: beside.append(KINDS[kind](adapted, NEW_TOKENS)), setup=measure_alone, rounds=ROUNDS, warmup_rounds=1
    )
    ratios = [new / old for new, old in zip(beside[1:], alone[1:], strict=True)]
    row = {
        "kind": kind,
        "threads": threads,
        "alone": statistics.median(alone[1:]),
        "with_lora": statistics.median(beside[1:]),
        "ratio": statistics.median(ratios),
        "load_average": os.getloadavg()[0],
    }
    benchmark.extra_info |= row
    rows.append(row)
