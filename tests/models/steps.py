"""One-token steps on fused kernels beside the same steps of the modules, for kernels of any kind."""

import torch

import glm_int4
from glm_int4.generation.padded_batch import Batch
from glm_int4.models.gpu_step import DecodeStep, PromptPass
from glm_int4.models.kv_cache import KVCache
from tests.conftest import FIXTURES
from tests.tolerances import FLOAT16_RELATIVE_RMS, relative_rms

# Rows of ids, of different lengths: the shorter ones are padded.
ROWS = {
    "1": [[20, 31, 42, 141, 144], [17, 18, 19, 20, 21, 22, 141, 144, 33]],
    "2": [[20, 31, 42, 44], [17, 18, 19, 20, 21, 22, 43]],
}


def compare(
    version,
    ops,
    kv_bits=16,
    batch_size=2,
    prefix_length=0,
    num_steps=3,
    folder=None,
    adapter=None,
    dtype=torch.float16,
    change=lambda model: None,
):
    """Feed tokens both ways; a fused step errs at most twice as much as plain fp16, seen from float32.

    dtype: in place of fp16. change: of all models.
    """
    folder = folder or FIXTURES / f"v{version}_tiny"
    options = {"device": "cpu", "model_version": version, "adapter": adapter}
    exact = glm_int4.load(folder, dtype=torch.float32, **options)
    half = glm_int4.load(folder, dtype=dtype, kv_bits=kv_bits, **options)
    change(exact.model)
    change(half.model)
    rows = ROWS[min(version, "2")][:batch_size]
    plain = run(half, rows, num_steps, prefix_length, None)
    fused = run(half, rows, num_steps, prefix_length, ops)
    expected = run(exact, rows, num_steps, prefix_length, None)
    for step in range(num_steps):
        allowed = 2 * relative_rms(plain[step], expected[step]) + FLOAT16_RELATIVE_RMS
        assert relative_rms(fused[step], expected[step]) < allowed
    return fused


def prepared_cache(engine, batch_size, prefix_length):
    """A cache of 40 columns, the first of which may be a prefix's."""
    config, setup = engine.config, engine.setup
    cache = KVCache(config.num_layers, batch_size, config.num_kv_heads, config.head_dim, 40, dtype=setup.kv_dtype)
    if prefix_length:
        generator = torch.Generator().manual_seed(0)
        shape = (config.num_layers, config.num_kv_heads, prefix_length, config.head_dim)
        cache.write_prefix(*(torch.randn(shape, generator=generator).to(setup.stream_dtype) for _ in range(2)))
    return cache


@torch.inference_mode()
def run(engine, rows, num_steps, prefix_length, ops):
    """Logits (B, V) of steps behind prompts, by the modules or by a DecodeStep."""
    model, setup = engine.model, engine.setup
    batch = Batch(model, rows, engine.device, prefix_length)
    cache = prepared_cache(engine, len(rows), prefix_length)
    cache.padding = batch.padding
    model(batch.token_ids, batch.positions, batch.prefill_mask(setup.stream_dtype), cache)
    step = DecodeStep(model, cache, ops) if ops else None
    results = []
    for i in range(num_steps):
        tokens = torch.tensor([30 + 7 * i + row for row in range(len(rows))])
        positions = batch.decode_positions(i)
        if step is None:
            results.append(model.step(tokens, positions, cache))
            continue
        padding = torch.zeros(len(rows), dtype=torch.int64) if cache.padding is None else cache.padding
        slots = torch.arange(len(rows))
        columns = torch.full_like(slots, cache.length)
        options = {"prefix_length": prefix_length, "max_columns": 40}
        results.append(step(tokens, positions, slots, columns, padding, **options))
        cache.advance(1)
    return results


@torch.inference_mode()
def compare_prompts(
    version, ops, kv_bits=16, prefix_length=0, folder=None, dtype=torch.float16, change=lambda model: None
):
    """Read a prompt in two pieces (in one in version 1) both ways: last hidden states, and what the cache keeps."""
    folder = folder or FIXTURES / f"v{version}_tiny"
    half = glm_int4.load(folder, device="cpu", dtype=dtype, kv_bits=kv_bits, model_version=version)
    exact = glm_int4.load(folder, device="cpu", dtype=torch.float32, model_version=version)
    change(exact.model)
    change(half.model)
    row = ROWS[min(version, "2")][1]
    widths = [len(row)] if version == "1" else [3, len(row) - 3]
    results = []
    for engine, way in ((exact, None), (half, None), (half, PromptPass(half.model, ops))):
        cache = prepared_cache(engine, 1, prefix_length)
        batch = Batch(engine.model, row, engine.device, prefix_length)
        mask, states = batch.prefill_mask(engine.setup.stream_dtype), []
        for ids, positions in zip(batch.token_ids.split(widths, 1), batch.positions.split(widths, 2), strict=True):
            states.append((way or engine.model.last_hidden_state)(ids, positions, mask, cache))
        assert cache.length == prefix_length + len(row)
        keys = torch.stack([cache.read(i, cache.length, torch.float32)[0] for i in range(engine.config.num_layers)])
        results.append((torch.cat(states, dim=1), keys))
    for expected, plain, fused in zip(*results, strict=True):
        assert fused.shape == expected.shape
        assert relative_rms(fused, expected) < 2 * relative_rms(plain, expected) + FLOAT16_RELATIVE_RMS
