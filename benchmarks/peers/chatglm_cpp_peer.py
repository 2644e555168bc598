"""chatglm.cpp on the same machine: Q4_0 weights of ChatGLM's matrix shapes, written in its own file format.

CMAKE_POLICY_VERSION_MINIMUM=3.5 pip install chatglm-cpp      (its sources are from before CMake 4)
python -m benchmarks.speed.cpu_pairs --peer chatglm.cpp

The weights are random. It takes as many threads as there are cores, up to four, and cannot be told otherwise.
"""

import functools
import importlib
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from benchmarks.peers.q4_0 import random_blocks
from glm_int4.checkpoint.formats import layout
from glm_int4.models.config import Config
from glm_int4.models.config_file import parse_config
from glm_int4.models.presets import CONFIGS
from tools.make_random_checkpoint import write_tokenizer

F32, Q4_0 = 0, 2  # ggml's numbers of the types
ALIGNMENT = 16
CONTEXT = 2048


def write_model(path: Path, preset: str, layers: int = 28) -> Path:
    """Write random Q4_0 weights of a preset's shapes; matrices of one shape hold the same ones.

    Args:
        path: the file to write.
        preset: "chatglm-6b", "chatglm2-6b" or "chatglm3-6b".
    """
    raw = CONFIGS[preset] | {"num_layers": layers}
    with tempfile.TemporaryDirectory() as folder:
        raw |= write_tokenizer(Path(folder), "1" if preset == "chatglm-6b" else "2")
        tokenizer = next(Path(folder).glob("*.model")).read_bytes()
    config = parse_config(raw)
    with open(path, "wb") as file:
        file.write(b"ggml" + struct.pack("i", int(config.version)))
        file.write(_header(config))
        file.write(struct.pack("i", len(tokenizer)) + tokenizer)
        for name, values, shape, kind in _tensors(config):
            _write_tensor(file, name, values, shape, kind)
    return Path(path)


def _header(config: Config) -> bytes:
    """The second version of its configuration: no prefix, rotary base 10,000."""
    return struct.pack(
        "8ififiii", 2, Q4_0, config.vocab_size, config.hidden_size, config.num_heads, config.num_kv_heads,
        config.num_layers, config.ffn_size, config.layernorm_epsilon, 0, 10000.0, CONTEXT, config.eos_token_id,
        config.pad_token_id,
    )  # fmt: skip


def _tensors(config: Config) -> Iterator[tuple[str, np.ndarray, tuple[int, ...], int]]:
    random = np.random.default_rng(0)
    matrix = functools.cache(functools.partial(random_blocks, random))
    for each in layout.matrices(config).values():
        shape = (each.out_features, each.in_features)
        yield f"{each.name}.weight", matrix(*shape), shape, Q4_0
    for name, size in layout.vectors(config).items():
        yield name, np.full(size, name.endswith("layernorm.weight"), np.float32), size, F32


def _write_tensor(file: BinaryIO, name: str, values: np.ndarray, shape: tuple[int, ...], kind: int) -> None:
    encoded = name.encode()
    file.write(struct.pack("i", len(encoded)) + encoded)
    file.write(struct.pack(f"{2 + len(shape)}i", len(shape), *shape, kind))
    file.write(bytes(-file.tell() % ALIGNMENT))
    values.tofile(file)


class ChatGLMCpp:
    """A loaded file, and the tokens that it has read."""

    def __init__(self, path: Path) -> None:
        api = importlib.import_module("chatglm_cpp")._C
        self._pipeline = api.Pipeline(str(path), CONTEXT)
        self._greedy = api.GenerationConfig(max_length=CONTEXT, do_sample=False)
        self._ids: list[int] = []
        self._prompt = 0

    def clear(self) -> None:
        """Forget all tokens."""
        self._ids = []

    def read(self, tokens: list[int]) -> float:
        """Seconds that reading some tokens behind the others takes, with the choice of the next one."""
        known = len(self._ids)
        if not known:
            self._prompt = len(tokens)
        self._ids += tokens
        started = time.perf_counter()
        self._pipeline.model.generate_next_token(self._ids, None, self._greedy, known, self._prompt)
        return time.perf_counter() - started
