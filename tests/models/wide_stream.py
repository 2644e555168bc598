"""Models whose residual stream and feed-forward part pass the largest float16, as those of GLM-4-9B do."""

import torch

from glm_int4.generation.padded_batch import Batch

FLOAT16_MAX = torch.finfo(torch.float16).max
# Powers of two: of everything that is added to the stream, of rows looked up, and of half of what an activation gates.
_STREAM, _ROWS, _GATED = 2.0**12, 2.0**12, 2.0**8


def widen(model, stream=_STREAM, rows=_ROWS, gated=_GATED):
    """Let a model compute what it did, but for a stream that is so many times as large, as norms allow for."""
    if model.config.residual_is_normed:
        _widen_norms(model, stream)
        return
    _scale(model.embedding, rows)
    for layer in model.layers:
        parts = layer.parts
        _scale(parts.attention.dense, stream)
        up = parts.mlp.dense_h_to_4h
        _scale(up, gated, slice(up.out_features // 2, None))
        _scale(parts.mlp.dense_4h_to_h, stream / gated)


def _widen_norms(model, factor):
    """What is normed, and added to what comes of it, is as much larger; what multiplies it, as much smaller."""
    for layer in model.layers:
        parts = layer.parts
        for norm in parts.norms:
            norm.weight.data *= factor
            norm.bias.data *= factor
        for linear, bias in ((parts.attention.query_key_value, False), (parts.mlp.dense_h_to_4h, False)):
            _scale(linear, 1 / factor, bias=bias)
        for linear in (parts.attention.dense, parts.mlp.dense_4h_to_h):
            _scale(linear, factor)


def _scale(module, factor, rows=slice(None), *, bias=True):
    """Multiply rows of an unquantized or quantized matrix, and of its bias."""
    matrix = getattr(module, "matrix", module)
    if hasattr(matrix, "scales"):
        matrix.scales[:, rows] *= factor
    else:
        matrix.weight.data[rows] *= factor
    if bias and getattr(matrix, "bias", None) is not None:
        matrix.bias.data[rows] *= factor


@torch.inference_mode()
def largest_activation(engine, token_ids):
    """The largest number between the layers of a model in float32."""
    batch, states = Batch(engine.model, [token_ids], engine.device), []
    mask = batch.prefill_mask(torch.float32)
    engine.model.last_hidden_state(batch.token_ids, batch.positions, mask, hidden_states=states)
    return max(float(x.abs().max()) for x in states)
