"""One-token steps on fused kernels beside the same steps of the modules, for kernels of any kind."""

import torch

import glm_int4
from glm_int4.generation.padded_batch import Batch
from glm_int4.models.gpu_step import DecodeStep
from glm_int4.models.kv_cache import KVCache
from tests.conftest import FIXTURES
from tests.tolerances import FLOAT16_RELATIVE_RMS, relative_rms

# Rows of ids, of different lengths: the shorter ones are padded.
ROWS = {
    "1": [[20, 31, 42, 141, 144], [17, 18, 19, 20, 21, 22, 141, 144, 33]],
    "2": [[20, 31, 42, 44], [17, 18, 19, 20, 21, 22, 43]],
}


def compare(version, ops, kv_bits=16, batch_size=2, prefix_length=0, num_steps=3, folder=None):
    """Feed tokens both ways; a fused step errs at most twice as much as plain fp16, seen from float32."""
    folder = folder or FIXTURES / f"v{version}_tiny"
    exact = glm_int4.load(folder, device="cpu", dtype=torch.float32, model_version=version)
    half = glm_int4.load(folder, device="cpu", dtype=torch.float16, kv_bits=kv_bits, model_version=version)
    rows = ROWS[min(version, "2")][:batch_size]
    plain = run(half, rows, num_steps, prefix_length, None)
    fused = run(half, rows, num_steps, prefix_length, ops)
    expected = run(exact, rows, num_steps, prefix_length, None)
    for step in range(num_steps):
        allowed = 2 * relative_rms(plain[step], expected[step]) + FLOAT16_RELATIVE_RMS
        assert relative_rms(fused[step], expected[step]) < allowed
    return fused


@torch.inference_mode()
def run(engine, rows, num_steps, prefix_length, ops):
    """Logits (B, V) of steps behind prompts, by the modules or by a DecodeStep."""
    model, config, setup = engine.model, engine.config, engine.setup
    batch = Batch(model, rows, engine.device, prefix_length)
    heads = (config.num_layers, len(rows), config.num_kv_heads, config.head_dim)
    cache = KVCache(*heads, 40, dtype=setup.kv_dtype)
    if prefix_length:
        generator = torch.Generator().manual_seed(0)
        shape = (config.num_layers, config.num_kv_heads, prefix_length, config.head_dim)
        cache.write_prefix(*(torch.randn(shape, generator=generator).to(setup.stream_dtype) for _ in range(2)))
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
