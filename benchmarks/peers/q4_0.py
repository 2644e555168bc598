"""Random weights in ggml's Q4_0, as llama.cpp and chatglm.cpp both store them."""

import numpy as np

BLOCK_WEIGHTS, BLOCK_BYTES = 32, 18  # a float16 scale and 16 bytes
STANDARD_DEVIATION = 0.02


def random_blocks(random: np.random.Generator, n: int, k: int) -> np.ndarray:
    """A matrix (n, k) as (n, bytes of a row), with weights about as large as real ones."""
    blocks = random.integers(0, 256, (n, k // BLOCK_WEIGHTS, BLOCK_BYTES), dtype=np.uint8)
    scale = np.float16(STANDARD_DEVIATION / 4.6)  # integers from -8 to 7 deviate by 4.6
    blocks[..., :2] = np.frombuffer(scale.tobytes(), dtype=np.uint8)
    return blocks.reshape(n, -1)
