"""llama.cpp on the same machine: Q4_0 weights of ChatGLM's matrix shapes, prefill and decode.

pip install llama-cpp-python gguf
python -m benchmarks.peers.llama_peer --preset chatglm2-6b --layers 4 --threads 2 --json

The weights are random, written as GGUF with the `gguf` package. ChatGLM2 and ChatGLM3 run as llama.cpp's own
`chatglm` architecture; ChatGLM-6B, which llama.cpp does not know, as `gptneox` of the same shapes.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from ctypes import c_int32
from pathlib import Path
from typing import Any

PRESETS = {"chatglm-6b": "gptneox", "chatglm2-6b": "chatglm", "chatglm3-6b": "chatglm"}
HIDDEN, HEADS, HEAD_DIM = 4096, 32, 128
VOCAB = {"gptneox": 130528, "chatglm": 65024}
FFN = {"gptneox": 16384, "chatglm": 13696}
KV_HEADS = {"gptneox": 32, "chatglm": 2}
CONTEXT = 2560
BLOCK_WEIGHTS, BLOCK_BYTES = 32, 18  # Q4_0: a float16 scale and 16 bytes


def matrices(arch: str) -> dict[str, tuple[int, int]]:
    """Names and (N, K) of a layer's matrices."""
    ffn, qkv = FFN[arch], (HEADS + 2 * KV_HEADS[arch]) * HEAD_DIM
    return {
        "attn_qkv": (qkv, HIDDEN),
        "attn_output": (HIDDEN, HIDDEN),
        "ffn_up": (ffn if arch == "gptneox" else 2 * ffn, HIDDEN),
        "ffn_down": (HIDDEN, ffn),
    }


def write_gguf(path: str | Path, preset: str, layers: int = 28) -> Path:
    """Write random Q4_0 weights of a preset's shapes; every layer holds the same ones.

    Args:
        path: the file to write.
        preset: "chatglm-6b", "chatglm2-6b" or "chatglm3-6b".
    """
    import gguf
    import numpy as np

    arch = PRESETS[preset]
    writer = gguf.GGUFWriter(str(path), arch)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN[arch])
    writer.add_block_count(layers)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS[arch])
    writer.add_rope_dimension_count(HEAD_DIM // 2)
    writer.add_vocab_size(VOCAB[arch])
    writer.add_tokenizer_model("no_vocab")
    writer.add_layer_norm_rms_eps(1e-5)
    if arch == "gptneox":
        writer.add_layer_norm_eps(1e-5)
        writer.add_parallel_residual(False)
    random = np.random.default_rng(0)

    def matrix(n: int, k: int) -> np.ndarray:
        blocks = random.integers(0, 256, (n, k // BLOCK_WEIGHTS, BLOCK_BYTES), dtype=np.uint8)
        blocks[..., :2] = np.frombuffer(np.float16(0.02 / 4.6).tobytes(), dtype=np.uint8)
        return blocks.reshape(n, -1)

    def vectors(name: str, size: int, *, norm: bool) -> None:
        if norm:
            writer.add_tensor(f"{name}.weight", np.ones(size, dtype=np.float32))
        if arch == "gptneox" or name.endswith("attn_qkv"):
            writer.add_tensor(f"{name}.bias", np.zeros(size, dtype=np.float32))

    q4 = gguf.GGMLQuantizationType.Q4_0
    vocabulary = matrix(VOCAB[arch], HIDDEN)
    writer.add_tensor("token_embd.weight", vocabulary, raw_dtype=q4)
    vectors("output_norm", HIDDEN, norm=True)
    writer.add_tensor("output.weight", vocabulary, raw_dtype=q4)
    shared = {name: matrix(*shape) for name, shape in matrices(arch).items()}
    for layer in range(layers):
        for name in ("attn_norm", "ffn_norm"):
            vectors(f"blk.{layer}.{name}", HIDDEN, norm=True)
        for name, (n, _) in matrices(arch).items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", shared[name], raw_dtype=q4)
            vectors(f"blk.{layer}.{name}", n, norm=False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


class Llama:
    """A loaded GGUF file and a context of llama.cpp."""

    def __init__(self, path: str | Path, threads: int) -> None:
        import llama_cpp

        self._api = llama_cpp
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


def tokens_of(count: int, seed: int = 0) -> list[int]:
    """Some token ids."""
    return [10 + (7919 * (i + 131 * seed)) % 60000 for i in range(count)]


def measure_prefill(llama: Llama, tokens: int, runs: int = 3) -> float:
    """Tokens a second of a prompt, the median of some runs."""
    times = []
    for seed in range(runs):
        llama.clear()
        times.append(llama.read(tokens_of(tokens, seed)))
    return tokens / statistics.median(times)


def measure_decode(llama: Any, context: int, new: int = 32) -> float:
    """Tokens a second behind ``context`` others, from the median of single steps."""
    llama.clear()
    llama.read(tokens_of(context))
    return 1 / statistics.median(llama.read([token]) for token in tokens_of(new, 1))


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Send llama.cpp's log, which it writes past Python, nowhere."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def measure(path: str | Path, threads: int, prompts: list[int], contexts: list[int]) -> dict[str, object]:
    """Prefill and decode rates of a GGUF file."""
    with quiet_stderr():
        started = time.perf_counter()
        llama = Llama(path, threads)
        load_s = time.perf_counter() - started
        llama.read(tokens_of(16))
        prefill = [{"tokens": n, "tokens_per_s": measure_prefill(llama, n)} for n in prompts]
        decode = [{"context": n, "tokens_per_s": measure_decode(llama, n)} for n in contexts]
    return {"load_s": load_s, "prefill": prefill, "decode": decode}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="chatglm2-6b")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--gguf", type=Path, help="the file, which is written where it is missing and then kept")
    parser.add_argument("--prompt", type=int, nargs="*", default=[128, 512], help="lengths of prompts")
    parser.add_argument("--context", type=int, nargs="*", default=[128], help="tokens in front of the decoded ones")
    parser.add_argument("--json", action="store_true", help="(the output is JSON anyway)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.gguf or Path(folder) / "random.gguf"
        if not path.exists():
            write_gguf(path, arguments.preset, arguments.layers)
        result = measure(path, arguments.threads, arguments.prompt, arguments.context)
    import llama_cpp

    keys = {"engine": "llama.cpp", "llama_cpp_python": llama_cpp.__version__, "type": "Q4_0"}
    settings = {"preset": arguments.preset, "layers": arguments.layers, "threads": arguments.threads}
    print(json.dumps(keys | settings | result, indent=2))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
