"""Other programs that run the same shapes in Q4_0: how one is opened, and how it is timed."""

import contextlib
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch

from benchmarks.peers import chatglm_cpp_peer, llama_peer

DISTRIBUTIONS = {"llama.cpp": "llama_cpp_python", "chatglm.cpp": "chatglm_cpp"}


class Peer(Protocol):
    """A loaded model of another program, and the tokens that it has read."""

    def clear(self) -> None:
        """Forget all tokens."""

    def read(self, tokens: list[int]) -> float:
        """Seconds that reading some tokens behind the others takes."""


def open_peer(name: str, path: Path, preset: str, layers: int) -> Peer:
    """Another program's model, warm, from a file that is written where it is missing."""
    if not path.exists():
        write = llama_peer.write_gguf if name == "llama.cpp" else chatglm_cpp_peer.write_model
        write(path, preset, layers)
    with quiet_stderr():
        peer: Peer
        if name == "llama.cpp":
            peer = llama_peer.Llama(path, torch.get_num_threads())
        else:
            peer = chatglm_cpp_peer.ChatGLMCpp(path)
        peer.clear()
        peer.read(tokens_of(16))
    return peer


def tokens_of(count: int, seed: int = 0) -> list[int]:
    """Some token ids."""
    return [10 + (7919 * (i + 131 * seed)) % 60000 for i in range(count)]


def measure_prefill(peer: Peer, tokens: int, seed: int = 0) -> float:
    """Tokens a second of a prompt."""
    peer.clear()
    return tokens / peer.read(tokens_of(tokens, seed))


def measure_decode(peer: Peer, context: int, new: int) -> float:
    """Tokens a second behind ``context`` others, from the median of single steps."""
    peer.clear()
    peer.read(tokens_of(context))
    return 1 / statistics.median(peer.read([token]) for token in tokens_of(new, 1))


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
