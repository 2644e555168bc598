"""A loaded network's weights as transformers' users handle them: tied, kept through a move, rounded in memory."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from glm_int4.checkpoint.formats import layout
from glm_int4.checkpoint.opening import tensor_specs
from glm_int4.errors import TokenizerError
from glm_int4.generation.engine import Engine
from glm_int4.generation.loading import choose_setup
from glm_int4.quantization.embedding import HostEmbedding, QuantizedEmbedding, TokenEmbedding
from glm_int4.quantization.linear import DenseLinear, QuantizedLinear
from glm_int4.quantization.rounding.rtn import quantize_rtn
from glm_int4.quantization.scheme import QuantizationScheme


class _QuantizedHead(nn.Module):
    """The head of a quantized embedding, without tensors of its own."""

    def __init__(self, embedding: QuantizedEmbedding) -> None:
        super().__init__()
        self._embedding = (embedding,)  # not a module of this one: its tensors have their names already

    def forward(self, x: Tensor) -> Tensor:
        """(..., hidden_size) to (..., V) float32."""
        return self._embedding[0].project(x)


def tied_head(embedding: TokenEmbedding) -> nn.Module:
    """Version 1's head as a module of its own, on the embedding's matrix."""
    assert not isinstance(embedding, HostEmbedding), "version 1 multiplies with its embedding"
    if isinstance(embedding, QuantizedEmbedding):
        return _QuantizedHead(embedding)
    head = DenseLinear(embedding.embedding_dim, embedding.num_embeddings, bias=False, device="meta")
    head.weight = embedding.weight
    return head


@torch.no_grad()
def keep_values(old: nn.Module, new: nn.Module) -> None:
    """Give the unquantized tensors of a network the values that they have in another one of the same checkpoint."""
    values = dict(old.named_parameters())
    for name, parameter in new.named_parameters():
        if name in values:
            parameter.copy_(values[name])
            parameter.requires_grad_(values[name].requires_grad)


def _scheme(bits: int, in_features: int) -> QuantizationScheme:
    """What ``glm-int4 quantize`` takes by default; a scale a row where groups do not fit."""
    grouped = bits != 8 and in_features % 128 == 0
    return QuantizationScheme(bits=bits, group_size=128 if grouped else None, symmetric=bits == 8)


@torch.no_grad()
def quantize_linears(engine: Engine, bits: int, dtype: torch.dtype | None) -> Engine:
    """Round the linear layers of an unquantized engine in place, one at a time; embedding and head stay.

    Args:
        dtype: as of ``load``, which decides what multiplies.
    Returns:
        An engine on the same network.
    Raises:
        InputError: ``bits`` are neither 4 nor 8.
    """
    linears = list(layout.linears(engine.config))
    schemes = {matrix.name: _scheme(bits, matrix.in_features) for matrix in linears}
    stored = dict(engine.info.stored_bytes)
    for matrix in linears:
        specs = tensor_specs(matrix, schemes[matrix.name], official=False)
        stored[matrix.name] = sum(spec.num_bytes for spec in specs)
    info = replace(engine.info, schemes={**engine.info.schemes, **schemes}, stored_bytes=stored)
    setup = replace(choose_setup(info, engine.device, dtype), dense_dtype=engine.setup.dense_dtype)
    for name, scheme in schemes.items():
        parent, _, child = name.rpartition(".")
        holder = engine.model.get_submodule(parent)
        dense = getattr(holder, child)
        weight = quantize_rtn(dense.weight, scheme)[0]
        setattr(holder, child, QuantizedLinear(weight, dense.bias, setup.backend).to(setup.device))
    try:
        tokenizer = engine.tokenizer
    except TokenizerError:
        tokenizer = None
    return Engine(engine.model, info, setup, tokenizer, engine.max_length, engine.prefix)
