"""llama.cpp on the same machine: Q4_0 weights of ChatGLM's matrix shapes, written as GGUF.

pip install llama-cpp-python gguf
python -m benchmarks.speed.cpu_pairs --preset chatglm2-6b --layers 4 --threads 2

The weights are random. ChatGLM2 and ChatGLM3 run as llama.cpp's own `chatglm` architecture; ChatGLM-6B, which
llama.cpp does not know, as `gptneox` of the same shapes.
"""

import importlib
import os
import time
from ctypes import c_int32
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.q4_0 import random_blocks
from glm_int4.checkpoint.formats import layout
from glm_int4.models.config import Config
from glm_int4.models.config_file import parse_config
from glm_int4.models.presets import CONFIGS

# GGUF's names of a layer's matrices.
NAMES = {"query_key_value": "attn_qkv", "dense": "attn_output", "dense_h_to_4h": "ffn_up", "dense_4h_to_h": "ffn_down"}
CONTEXT = 2560


def gguf_writer(path: Path, config: Config) -> Any:
    """A GGUF file that is begun: it says what a config says, and has no weights yet."""
    gguf = importlib.import_module("gguf")
    version_1 = config.version == "1"
    writer = gguf.GGUFWriter(str(path), "gptneox" if version_1 else "chatglm")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.ffn_size)
    writer.add_block_count(config.num_layers)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_rope_dimension_count(config.head_dim // 2)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_layer_norm_rms_eps(config.layernorm_epsilon)
    if version_1:
        writer.add_layer_norm_eps(config.layernorm_epsilon)
        writer.add_parallel_residual(False)
    return writer


def finish(writer: Any) -> None:
    """Write to the file what its writer holds."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_gguf(path: Path, preset: str, layers: int = 28) -> Path:
    """Write random Q4_0 weights of a preset's shapes; every layer holds the same ones.

    Args:
        path: the file to write.
        preset: "chatglm-6b", "chatglm2-6b" or "chatglm3-6b".
    """
    gguf = importlib.import_module("gguf")
    config = parse_config(CONFIGS[preset] | {"num_layers": layers})
    writer, q4 = gguf_writer(path, config), gguf.GGMLQuantizationType.Q4_0
    random = np.random.default_rng(0)

    def vectors(name: str, size: int, *, norm: bool) -> None:
        if norm:
            writer.add_tensor(f"{name}.weight", np.ones(size, dtype=np.float32))
        if config.version == "1" or name.endswith("attn_qkv"):
            writer.add_tensor(f"{name}.bias", np.zeros(size, dtype=np.float32))

    vocabulary = random_blocks(random, config.vocab_size, config.hidden_size)
    writer.add_tensor("token_embd.weight", vocabulary, raw_dtype=q4)
    vectors("output_norm", config.hidden_size, norm=True)
    writer.add_tensor("output.weight", vocabulary, raw_dtype=q4)
    first_layer = list(layout.linears(config))[: len(NAMES)]
    shared = {NAMES[m.kind]: random_blocks(random, m.out_features, m.in_features) for m in first_layer}
    for layer in range(layers):
        for name in ("attn_norm", "ffn_norm"):
            vectors(f"blk.{layer}.{name}", config.hidden_size, norm=True)
        for name, matrix in shared.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", matrix, raw_dtype=q4)
            vectors(f"blk.{layer}.{name}", len(matrix), norm=False)
    finish(writer)
    return Path(path)


class Llama:
    """A loaded GGUF file and a context of llama.cpp."""

    def __init__(self, path: Path, threads: int) -> None:
        self._api = llama_cpp = importlib.import_module("llama_cpp")
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            os.fsencode(str(path)), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise SystemExit(f"error: expected a GGUF file that llama.cpp takes, got {path}; write it anew")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = CONTEXT, 512, 512
        params.n_threads = params.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)

    def clear(self) -> None:
        """Forget all tokens."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)

    def read(self, tokens: list[int]) -> float:
        """Seconds that reading some tokens behind the others takes, with the logits of the last."""
        array = (c_int32 * len(tokens))(*tokens)
        started = time.perf_counter()
        for first in range(0, len(tokens), 512):
            part = (c_int32 * len(tokens[first : first + 512])).from_buffer(array, 4 * first)
            if self._api.llama_decode(self._context, self._api.llama_batch_get_one(part, len(part))):
                raise SystemExit("error: expected llama.cpp to decode, got a failure; see its log")
        self._api.llama_synchronize(self._context)
        return time.perf_counter() - started
