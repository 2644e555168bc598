"""What weights, cache and scratch will take, before anything is allocated; plans that cannot work are refused."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from glm_int4.checkpoint.build import ComputeSetup, resident_bytes
from glm_int4.checkpoint.opening import CheckpointInfo
from glm_int4.errors import InputError
from glm_int4.models.config import Config
from glm_int4.models.kv_cache import kv_bytes_per_token
from glm_int4.quantization.kernels import cublas
from glm_int4.system import free_bytes, gb_text

logger = logging.getLogger(__name__)

# Rows of the feed-forward part that run together (``models/layer.py``), and on fused kernels those of a prompt in one
# piece (``models/gpu_step.py``).
_WIDE_ROWS, _FUSED_WIDE_ROWS = {"cpu": 128, "cuda": 512}, 704

# Rows of a causal prompt that run together on a GPU, where there is memory for their activations: every piece
# dequantizes every matrix.
_PIECES = (2048, 1024)

# CPU: values of the hidden size that a row of a prompt takes at once: stream, norms, queries, keys, values, sums.
_VALUES_A_ROW = 10

# CUDA: values of the hidden size that a row takes beside the widest product, as counted by
# tests/generation/test_prompt_memory.py: what a layer was given and its norm; in attention its result too; in the
# feed-forward part sum and result. Fused kernels drop what a layer was given, or what has become a sum.
_ROWS_AROUND = {"projection": 2, "attention": 3, "feed_forward": 4, "fused_feed_forward": 3, "fused_activation": 2}

# CUDA: a piece of dequantized weights, or the sums of a product that is split (``triton_kernels/gpu.py``).
_PRODUCT_BYTES = 36_000_000

# What libraries take when they start to work. CPU: heap, threads' buffers, compiled loops. CUDA: cuBLAS, graphs.
_LIBRARY_BYTES = {"cpu": 150_000_000, "cuda": 250_000_000}

_SHORTEST = 64  # tokens below which nobody can chat


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Bytes of a loaded model by what they are for.

    max_length: most tokens of a sequence. prefix_length: columns of the cache in front of them.
    free_bytes: what was free beforehand; None where the system does not say.
    """

    weight_bytes: int
    scratch_bytes: int
    kv_bytes_per_token: int
    max_length: int
    prefix_length: int = 0
    free_bytes: int | None = None

    @property
    def kv_bytes(self) -> int:
        """Bytes of a cache that holds prefix and ``max_length``."""
        return self.kv_bytes_per_token * (self.max_length + self.prefix_length)

    @property
    def total_bytes(self) -> int:
        """Bytes of weights, cache and scratch."""
        return self.weight_bytes + self.scratch_bytes + self.kv_bytes

    @property
    def fits(self) -> bool:
        """Whether that is free, as far as the system says."""
        return self.free_bytes is None or self.total_bytes <= self.free_bytes

    def __str__(self) -> str:
        parts = f"weights {gb_text(self.weight_bytes)}, cache {gb_text(self.kv_bytes)} for {self.max_length} tokens"
        free = "" if self.free_bytes is None else f"; {gb_text(self.free_bytes)} free"
        return f"{parts}, scratch {gb_text(self.scratch_bytes)}{free}"


def plan_memory(
    info: CheckpointInfo,
    plan: ComputeSetup,
    max_length: int | None = None,
    prefix_length: int = 0,
    adapter_bytes: int = 0,
) -> MemoryPlan:
    """Plan for a checkpoint that is not loaded yet.

    Args:
        max_length: None for what the model was made for and the memory holds.
        adapter_bytes: that adapters take beside the weights.
    Raises:
        InputError: it does not fit; with the numbers, and what to try.
    """
    config = info.config
    make = _planner(info, plan, prefix_length, adapter_bytes)
    wanted = make(max_length or config.max_sequence_length)
    if not wanted.fits:
        longest = _longest(make, wanted.max_length)
        if max_length is not None or longest < min(_SHORTEST, wanted.max_length):
            raise InputError(_refusal(wanted, longest, _fits_in_int8(wanted, config, plan), plan.device))
        logger.warning(
            "taking a max length of %d tokens in place of %d: there is memory for no more (%s)",
            longest, wanted.max_length, make(longest),
        )  # fmt: skip
        wanted = make(longest)
    logger.info("memory: %s", wanted)
    return wanted


def fits(
    info: CheckpointInfo,
    plan: ComputeSetup,
    max_length: int | None = None,
    prefix_length: int = 0,
    adapter_bytes: int = 0,
) -> bool:
    """Whether a checkpoint fits as long as it is wanted; arguments as of ``plan_memory``."""
    return _planner(info, plan, prefix_length, adapter_bytes)(max_length or info.config.max_sequence_length).fits


def size_pieces(
    info: CheckpointInfo,
    plan: ComputeSetup,
    max_length: int | None = None,
    prefix_length: int = 0,
    adapter_bytes: int = 0,
) -> ComputeSetup:
    """The setup with as many rows of a prompt together as there is memory for; arguments as of ``plan_memory``."""
    if plan.device.type == "cuda" and info.config.is_causal:
        larger = (replace(plan, prompt_rows=rows) for rows in _PIECES)
        return next((each for each in larger if fits(info, each, max_length, prefix_length, adapter_bytes)), plan)
    return plan


def _planner(
    info: CheckpointInfo, plan: ComputeSetup, prefix_length: int, adapter_bytes: int = 0
) -> Callable[[int], MemoryPlan]:
    """From a max length to its plan."""
    free, config = free_bytes(plan.device), info.config
    per_token = kv_bytes_per_token(config.num_layers, config.num_kv_heads, config.head_dim, plan.kv_dtype)

    def make(length: int) -> MemoryPlan:
        return MemoryPlan(
            weight_bytes=resident_bytes(info, plan) + adapter_bytes,
            scratch_bytes=scratch_bytes(config, plan, length, prefix_length),
            kv_bytes_per_token=per_token,
            max_length=length,
            prefix_length=prefix_length,
            free_bytes=free,
        )

    return make


def scratch_bytes(config: Config, plan: ComputeSetup, max_length: int, prefix_length: int = 0) -> int:
    """Bytes that activations and libraries take at most, beside weights and cache."""
    kind = plan.device.type
    rows = min(max_length, plan.prompt_rows) if config.is_causal else max_length
    if kind == "cuda":
        activations = _gpu_activation_bytes(config, plan, rows, max_length + prefix_length)
    else:
        values = rows * config.hidden_size * _VALUES_A_ROW + min(rows, _WIDE_ROWS[kind]) * config.up_features * 2
        activations = values * plan.stream_dtype.itemsize
    logits = 4 * 4 * config.vocab_size
    return activations + logits + _LIBRARY_BYTES[kind]


def _gpu_activation_bytes(config: Config, plan: ComputeSetup, rows: int, columns: int) -> int:
    """What so many rows of a prompt take at once on their way through a layer, behind a cache of so many columns."""
    around = {part: rows * config.hidden_size * count for part, count in _ROWS_AROUND.items()}
    projection, up = rows * config.qkv_features, config.up_features
    read = 2 * columns * config.num_kv_heads * config.head_dim if plan.kv_dtype != plan.stream_dtype else 0
    wide = rows if config.is_causal else min(rows, _FUSED_WIDE_ROWS)
    halves = up // 2 if config.activation == "swiglu" else 0  # written beside what they are made of
    falls_back = plan.backend in ("triton", "cublas")  # to products that dequantize, where a kernel fails
    product = max(_PRODUCT_BYTES, cublas.SCRATCH_BYTES if falls_back else 0) // plan.stream_dtype.itemsize
    values = max(
        around["projection"] + projection + product,
        around["attention"] + projection + read,
        around["feed_forward"] + min(rows, _WIDE_ROWS["cuda"]) * up + product,
        around["fused_feed_forward"] + wide * up + product,
        around["fused_activation"] + wide * (up + halves),
    )
    tables = 4 * rows * config.head_dim  # cosines and sines
    return tables + values * plan.stream_dtype.itemsize


def _longest(make: Callable[[int], MemoryPlan], limit: int) -> int:
    """The longest max length up to ``limit`` that fits; 0 where none does."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if make(middle).fits else (low, middle - 1)
    return low


def _fits_in_int8(plan: MemoryPlan, config: Config, compute: ComputeSetup) -> bool:
    """Whether an INT8 cache would make the plan fit."""
    if compute.kv_dtype == torch.int8 or plan.free_bytes is None:
        return False
    per_token = kv_bytes_per_token(config.num_layers, config.num_kv_heads, config.head_dim, torch.int8)
    saved = (plan.kv_bytes_per_token - per_token) * (plan.max_length + plan.prefix_length)
    return plan.total_bytes - saved <= plan.free_bytes


def _refusal(plan: MemoryPlan, longest: int, int8_fits: bool, device: torch.device) -> str:
    assert plan.free_bytes is not None
    advice = ["--kv-bits 8"] if int8_fits else []
    if longest >= _SHORTEST:
        advice.append(f"--max-length {longest // _SHORTEST * _SHORTEST}")
    what = f"try {' or '.join(advice)}" if advice else "close other programs, or take a model of fewer bits"
    what += "" if device.type == "cpu" else ", or pass --device cpu"
    return (
        f"expected enough memory for this model (weights {gb_text(plan.weight_bytes)}, cache of {plan.max_length} "
        f"tokens {gb_text(plan.kv_bytes)}, scratch {gb_text(plan.scratch_bytes)}): needs {gb_text(plan.total_bytes)}, "
        f"{gb_text(plan.free_bytes)} free: {what}"
    )


# Values of the vocabulary that a row of logits takes at most until its token is picked: the logits and what sampling
# makes of them, sorted ones and 64-bit integers among it.
_VOCABULARY_VALUES = 14
# Values of the hidden size, and of the widest part of the feed-forward network, that a row of a step takes.
_HIDDEN_VALUES, _WIDE_VALUES = 12, 3
# Columns of the cache in a split of attention; each leaves a head's sums and two numbers in float32.
_SPLIT_COLUMNS = 64


def slots_scratch_bytes(config: Config, setup: ComputeSetup, num_slots: int, max_length: int) -> int:
    """Bytes to keep free for prompts, and for so many rows that decode together, beside their keys and values.

    Args:
        max_length: most tokens of a row, those of a prefix included.
    """
    rows = 1 << (num_slots - 1).bit_length()  # a step on a GPU runs for a power of two
    step = 4 * rows * (config.hidden_size * _HIDDEN_VALUES + config.up_features * _WIDE_VALUES)
    if setup.device.type == "cuda":
        splits = -(-max_length // _SPLIT_COLUMNS)
        step += 4 * rows * config.num_heads * splits * (config.head_dim + 2)
        step *= 2  # once for steps that run eagerly, once for graphs, whose memory is their own
    return scratch_bytes(config, setup, max_length) + step + 4 * rows * config.vocab_size * _VOCABULARY_VALUES
