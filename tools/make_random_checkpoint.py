"""Write a full-size ChatGLM or GLM-4 checkpoint in the official layout, with random weights.

    python tools/make_random_checkpoint.py --model chatglm-6b --output chatglm-6b-random

It answers nonsense, but sizes, times and memory are those of the real one: 7 to 10 ``.bin`` shards, 13 GB
or 19, in the official names, shapes and types. The official tokenizers are not ours to ship: a small one lies
beside the weights, and the special ids of ChatGLM-6B's config are its ids. A shard is held in memory while it
is written.
"""

import argparse
import base64
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
import torch
from rich.progress import track
from tokenizers import models, pre_tokenizers, trainers
from torch import Tensor

from glm_int4.checkpoint.formats import layout
from glm_int4.models.config import ChatGLMConfig, Config
from glm_int4.models.config_file import detect_version, parse_config
from glm_int4.models.presets import CONFIGS
from glm_int4.text import GLM4Tokenizer
from glm_int4.text.byte_pairs import name_of

MINI = Path(__file__).parent.parent / "examples" / "mini-chatglm"
NUM_SHARDS = {"1": 8, "2": 7, "3": 7, "4": 10}

Entry = tuple[str, tuple[int, ...], torch.dtype]


def tensors(config: Config, dtype: torch.dtype) -> Iterator[Entry]:
    """Names, shapes and types in the order of the official files; dtype is that of the weights."""
    version_1 = isinstance(config, ChatGLMConfig)
    vectors = layout.vectors(config)
    matrices = {m.name: (m.out_features, m.in_features) for m in layout.linears(config)}
    norm_dtype = torch.float32 if version_1 else dtype
    stem = "transformer" if version_1 else "transformer.encoder"
    embedding, *heads = layout.vocabulary(config)
    shape = (embedding.out_features, embedding.in_features)
    yield f"{embedding.name}.weight", shape, dtype
    if not version_1:
        yield "transformer.rotary_pos_emb.inv_freq", (config.head_dim // 4,), dtype
    for i in range(config.num_layers):
        prefix = f"{stem}.layers.{i}."
        if version_1:
            yield f"{prefix}attention.rotary_emb.inv_freq", (config.head_dim // 4,), dtype
        for name, size in vectors.items():
            if name.startswith(prefix):
                yield name, size, norm_dtype if "layernorm" in name else dtype
        for name, size in matrices.items():
            if name.startswith(prefix):
                yield f"{name}.weight", size, dtype
    for name, size in vectors.items():
        if name.startswith(f"{stem}.final_layernorm"):
            yield name, size, norm_dtype
    for head in (layout.tied_head(config), *(head.name for head in heads)):
        if head:
            yield f"{head}.weight", shape, dtype


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
    arguments.output.mkdir(parents=True, exist_ok=True)
    raw |= write_tokenizer(arguments.output, detect_version(raw)[0])
    config = parse_config(raw)
    generator = torch.Generator().manual_seed(arguments.seed)
    shards = split(list(tensors(config, getattr(torch, raw["torch_dtype"]))), NUM_SHARDS[config.version])
    weight_map, total_size = {}, 0
    tied, embedding = f"{layout.tied_head(config)}.weight", f"{layout.embedding(config).name}.weight"
    for name, shard in track(shards.items(), "writing shards"):
        state = {}
        for key, shape, dtype in shard:
            if key == tied:  # equal to the embedding, which lies in the first shard
                first = torch.load(arguments.output / next(iter(shards)), weights_only=True, mmap=True)
                state[key] = first[embedding]
            else:
                state[key] = random_tensor(key, shape, dtype, generator)
            total_size += state[key].numel() * dtype.itemsize
            weight_map[key] = name
        torch.save(state, arguments.output / name)
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (arguments.output / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2) + "\n")
    (arguments.output / "config.json").write_text(json.dumps(raw, indent=2) + "\n")


def write_tokenizer(folder: Path, version: str) -> dict[str, Any]:
    """Put a small tokenizer beside the weights; returns the special ids that config.json must have."""
    if version == "4":
        return write_ranks(folder / "tokenizer.model")
    if version == "1":
        shutil.copy(MINI / "ice_text.model", folder / "ice_text.model")
        mini = json.loads((MINI / "config.json").read_text(encoding="utf-8"))
        return {key: value for key, value in mini.items() if key.endswith("_token_id")}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((MINI.parent / "heldout.txt").read_text(encoding="utf-8").splitlines()),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=800,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    return {}


def write_ranks(path: Path) -> dict[str, Any]:
    """Write lines of tokens and ranks: every byte, then pairs; returns the special ids behind them."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=800, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator((MINI.parent / "heldout.txt").read_text(encoding="utf-8").splitlines(), trainer)
    bytes_of = {name_of(bytes([byte])): byte for byte in range(256)}
    names = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    tokens = [bytes(map(bytes_of.__getitem__, name)) for name in names]
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)))
    made = GLM4Tokenizer(path)
    return {"eos_token_id": list(made.stop_ids), "pad_token_id": made.pad_id}


def split(entries: list[Entry], num_shards: int) -> dict[str, list[Entry]]:
    """Spread tensors over files of about the same size, in order."""
    sizes = [math.prod(shape) * dtype.itemsize for _, shape, dtype in entries]
    shards: list[list[Entry]] = [[] for _ in range(num_shards)]
    done = 0
    for entry, size in zip(entries, sizes, strict=True):
        shards[min(num_shards * done // sum(sizes), num_shards - 1)].append(entry)
        done += size
    names = [f"pytorch_model-{i:05d}-of-{num_shards:05d}.bin" for i in range(1, num_shards + 1)]
    return dict(zip(names, shards, strict=True))


if __name__ == "__main__":
    main()
