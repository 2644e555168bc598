"""Write a full-size ChatGLM checkpoint in the official layout, with random weights.

    python tools/make_random_checkpoint.py --model chatglm-6b --output chatglm-6b-random

It answers nonsense, but sizes, times and memory are those of the real one: 8 ``.bin`` shards, about
13 GB, in the official names, shapes and types. A shard is held in memory while it is written.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

from glm_int4.checkpoint import layout
from glm_int4.models.config import ChatGLMConfig, parse_config

CONFIGS = {
    "chatglm-6b": {
        "_name_or_path": "chatglm-6b-random",
        "architectures": ["ChatGLMModel"],
        "bos_token_id": 130004,
        "eos_token_id": 130005,
        "gmask_token_id": 130001,
        "hidden_size": 4096,
        "inner_hidden_size": 16384,
        "layernorm_epsilon": 1e-05,
        "mask_token_id": 130000,
        "max_sequence_length": 2048,
        "model_type": "chatglm",
        "num_attention_heads": 32,
        "num_layers": 28,
        "pad_token_id": 3,
        "position_encoding_2d": True,
        "torch_dtype": "float16",
        "use_cache": True,
        "vocab_size": 130528,
    }
}
NUM_SHARDS = 8


def tensors(config: ChatGLMConfig) -> Iterator[tuple[str, tuple[int, ...], torch.dtype]]:
    """Names, shapes and types in the order of the official files."""
    vectors = layout.vectors(config)
    matrices = {m.name: (m.out_features, m.in_features) for m in layout.linears(config)}
    embedding = layout.embedding(config)
    shape = (embedding.out_features, embedding.in_features)
    yield f"{embedding.name}.weight", shape, torch.float16
    for i in range(config.num_layers):
        prefix = f"transformer.layers.{i}."
        yield f"{prefix}attention.rotary_emb.inv_freq", (config.head_dim // 4,), torch.float16
        for name, size in vectors.items():
            if name.startswith(prefix):
                yield name, size, torch.float32 if "layernorm" in name else torch.float16
        for name, size in matrices.items():
            if name.startswith(prefix):
                yield f"{name}.weight", size, torch.float16
    for part in ("weight", "bias"):
        yield f"transformer.final_layernorm.{part}", (config.hidden_size,), torch.float32
    yield layout.HEAD, shape, torch.float16


def random_tensor(name: str, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Values of a trained model's size: rows of a matrix differ in spread, norms are near one."""
    if len(shape) == 2:
        row_std = 0.02 * torch.exp(0.3 * torch.randn(shape[0], 1, generator=generator))
        out = torch.empty(shape, dtype=dtype)
        step = max((1 << 24) // shape[1], 1)
        for start in range(0, shape[0], step):
            block = torch.randn(out[start : start + step].shape, generator=generator)
            out[start : start + step] = block * row_std[start : start + step]
        return out
    if name.endswith("inv_freq"):
        return (1.0 / 10000 ** (torch.arange(shape[0]) / shape[0])).to(dtype)
    values = 0.02 * torch.randn(shape, generator=generator)
    return (values + 1 if name.endswith("layernorm.weight") else values).to(dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=CONFIGS, default="chatglm-6b")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--layers", type=int, help="fewer layers, for a smaller file")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    raw = dict(CONFIGS[arguments.model])
    if arguments.layers:
        raw["num_layers"] = arguments.layers
    entries = list(tensors(parse_config(raw)))
    total_size = sum(math.prod(shape) * dtype.itemsize for _, shape, dtype in entries)
    arguments.output.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(arguments.seed)
    shards: list[list[tuple[str, tuple[int, ...], torch.dtype]]] = [[] for _ in range(NUM_SHARDS)]
    done = 0
    for entry in entries:
        shards[min(NUM_SHARDS * done // total_size, NUM_SHARDS - 1)].append(entry)
        done += math.prod(entry[1]) * entry[2].itemsize
    weight_map, embedding = {}, None
    names = [f"pytorch_model-{i:05d}-of-{NUM_SHARDS:05d}.bin" for i in range(1, NUM_SHARDS + 1)]
    for name, shard in zip(names, track(shards, "writing shards"), strict=True):
        state = {}
        for key, shape, dtype in shard:
            if key == layout.HEAD:  # equal to the embedding, which lies in the first shard
                first = torch.load(arguments.output / names[0], weights_only=True, mmap=True)
                embedding = first[f"{layout.EMBEDDING}.weight"]
            state[key] = embedding if key == layout.HEAD else random_tensor(key, shape, dtype, generator)
            weight_map[key] = name
        torch.save(state, arguments.output / name)
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (arguments.output / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2) + "\n")
    (arguments.output / "config.json").write_text(json.dumps(raw, indent=2) + "\n")


if __name__ == "__main__":
    main()
