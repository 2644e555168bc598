"""Adapters become part of a model: beside its matrices, which stay as they are, or in place of what they replace."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from glm_int4.adapters.lora_tensors import Delta, Lora
from glm_int4.checkpoint.build import ComputeSetup
from glm_int4.checkpoint.checks import check_finite
from glm_int4.checkpoint.formats import layout
from glm_int4.errors import InputError
from glm_int4.models import Model
from glm_int4.quantization.adapted import AdaptedLinear, bias_of, weight_rows
from glm_int4.quantization.embedding import DenseEmbedding
from glm_int4.quantization.linear import DenseLinear

_PIECE_ROWS = 256  # of weights that are dequantized at a time


def check_together(loras: Sequence[Lora]) -> None:
    """Raise InputError where two adapters replace the same."""
    replaced: dict[str, Lora] = {}
    adapted = {name: lora for lora in loras for name in lora.deltas}
    for lora in loras:
        for name in (*lora.vectors, *lora.whole):
            if name in replaced:
                raise InputError(
                    f"expected adapters that replace different parts, got {replaced[name].folder} and {lora.folder}, "
                    f"which both replace {name}; leave one out"
                )
            if name in lora.whole and name in adapted:
                raise InputError(
                    f"expected adapters that change different parts, got {lora.folder}, which replaces {name}, and "
                    f"{adapted[name].folder}, which adds to it; leave one out"
                )
            replaced[name] = lora


@torch.no_grad()
def apply_loras(model: Model, loras: Sequence[Lora], setup: ComputeSetup) -> None:
    """Put adapters beside a model's matrices; all of them act at once, their products added up."""
    dtype = torch.float32 if setup.device.type == "cpu" else setup.stream_dtype
    vectors = {name: tensor for lora in loras for name, tensor in lora.vectors.items()}
    for matrix in layout.matrices(model.config).values():
        deltas = [delta for lora in loras for delta in lora.deltas.get(matrix.name, ())]
        bias = vectors.pop(f"{matrix.name}.bias", None)
        if deltas or bias is not None:
            linear = _adapted(model.get_submodule(matrix.name), deltas, bias, matrix.out_features, matrix.in_features)
            for name, tensor in linear.named_buffers(recurse=False):
                check_finite(f"{name} of the adapter of {matrix.name}, in {dtype}", tensor.to(dtype))
            for name, tensor in list(linear.named_buffers(recurse=False)):
                setattr(linear, name, tensor.to(device=setup.device, dtype=dtype))
            model.set_submodule(matrix.name, linear)
    for name, tensor in vectors.items():  # of norms
        module, part = name.rpartition(".")[::2]
        value = tensor.to(device=setup.device, dtype=setup.stream_dtype, copy=True)
        setattr(model.get_submodule(module), part, nn.Parameter(value, requires_grad=False))
    for lora in loras:
        for name, tensor in lora.whole.items():
            _replace_matrix(model, name, tensor.to(device=setup.device, dtype=setup.dense_dtype, copy=True))
    model.forget_fused()


def _adapted(
    linear: nn.Module, deltas: Sequence[Delta], bias: Tensor | None, out_features: int, in_features: int
) -> AdaptedLinear:
    """A linear layer with all that adapters add to it, in float32 on the CPU."""
    ratio = torch.ones(out_features) if any(delta.magnitude is not None for delta in deltas) else None
    downs, ups = [torch.empty(0, in_features)], [torch.empty(0, out_features)]
    for delta in deltas:
        down, up = delta.down.float(), delta.up.float() * delta.scale
        if delta.magnitude is not None:
            assert ratio is not None
            own = delta.magnitude.float() / _row_norms(linear, delta.rows, up, down)
            ratio[delta.rows] += own - 1
            up = own[:, None] * up
        wide = torch.zeros(len(down), out_features)
        wide[:, delta.rows] = up.T
        downs.append(down)
        ups.append(wide)
    return AdaptedLinear(linear, torch.cat(downs), torch.cat(ups), ratio, _shift(bias_of(linear), bias, ratio))


def _shift(old: Tensor | None, new: Tensor | None, ratio: Tensor | None) -> Tensor | None:
    """What is added behind the product with the ratio, so that the bias has no ratio and is the new one, if any."""
    if new is None and (old is None or ratio is None):
        return None
    before = torch.zeros(()) if old is None else old.detach().float().cpu()
    return (before if new is None else new.float()) - before * (1.0 if ratio is None else ratio)


def _row_norms(linear: nn.Module, rows: slice, up: Tensor, down: Tensor) -> Tensor:
    """Lengths of a matrix's rows with a product added, dequantized a piece at a time."""
    norms = torch.empty(len(up))
    for start in range(0, len(up), _PIECE_ROWS):
        part = slice(start, min(start + _PIECE_ROWS, len(up)))
        weights = weight_rows(linear, slice(rows.start + part.start, rows.start + part.stop)).cpu()
        norms[part] = (weights + up[part] @ down).norm(dim=1)
    return norms


def _replace_matrix(model: Model, name: str, weight: Tensor) -> None:
    """Put a matrix of the vocabulary in place of the model's own."""
    if name == layout.embedding(model.config).name:
        model.replace_embedding(DenseEmbedding.from_pretrained(weight, freeze=True))
    elif name == layout.tied_head(model.config):
        model.replace_head(DenseEmbedding.from_pretrained(weight, freeze=True))
    else:
        head = DenseLinear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        head.weight = nn.Parameter(weight, requires_grad=False)
        model.replace_head(head)


def adapter_bytes(loras: Iterable[Lora], setup: ComputeSetup) -> int:
    """Bytes that adapters take in memory."""
    itemsize = 4 if setup.device.type == "cpu" else setup.stream_dtype.itemsize
    return itemsize * sum(lora.num_values for lora in loras)
