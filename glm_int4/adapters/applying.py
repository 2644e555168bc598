"""Adapters become part of a model: beside its matrices, which stay as they are, or in place of what they replace."""

from collections.abc import Container, Iterable, Sequence

import torch
from torch import Tensor, nn

from glm_int4.adapters.lora_tensors import Delta, Lora
from glm_int4.checkpoint.build import ComputeSetup
from glm_int4.checkpoint.checks import check_finite
from glm_int4.checkpoint.formats import layout
from glm_int4.errors import InputError
from glm_int4.models import Model
from glm_int4.models.config import Config
from glm_int4.quantization.adapted import AdaptedLinear, Addition, base_of, bias_of, weight_rows
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
    for name, addition in make_additions(model, loras, setup).items():
        parts = (addition.down, addition.up, addition.ratio, addition.shift)
        model.set_submodule(name, AdaptedLinear(model.get_submodule(name), *parts))
    for name, tensor in vectors_of_norms(loras, model.config).items():
        module, part = name.rpartition(".")[::2]
        value = tensor.to(device=setup.device, dtype=setup.stream_dtype, copy=True)
        setattr(model.get_submodule(module), part, nn.Parameter(value, requires_grad=False))
    for lora in loras:
        for name, tensor in lora.whole.items():
            _replace_matrix(model, name, tensor.to(device=setup.device, dtype=setup.dense_dtype, copy=True))
    model.forget_fused()


@torch.no_grad()
def make_additions(
    model: Model, loras: Sequence[Lora], setup: ComputeSetup, names: Container[str] | None = None
) -> dict[str, Addition]:
    """What adapters together add to a model's matrices, by the matrix's name; the model stays as it is.

    Args:
        names: of the matrices that count; None for all.
    """
    dtype = torch.float32 if setup.device.type == "cpu" else setup.stream_dtype
    found = {}
    for matrix in layout.matrices(model.config).values():
        deltas = [delta for lora in loras for delta in lora.deltas.get(matrix.name, ())]
        biases = [lora.vectors[f"{matrix.name}.bias"] for lora in loras if f"{matrix.name}.bias" in lora.vectors]
        if (deltas or biases) and (names is None or matrix.name in names):
            base = base_of(model.get_submodule(matrix.name))
            addition = _addition(base, deltas, biases[0] if biases else None, matrix.out_features, matrix.in_features)
            for name, tensor in list(addition.named_buffers(recurse=False)):
                check_finite(f"{name} of the adapter of {matrix.name}, in {dtype}", tensor.to(dtype))
                setattr(addition, name, tensor.to(device=setup.device, dtype=dtype))
            found[matrix.name] = addition
    return found


def vectors_of_norms(loras: Sequence[Lora], config: Config) -> dict[str, Tensor]:
    """What adapters put in place of a model's norms, by the official name."""
    biases = {f"{name}.bias" for name in layout.matrices(config)}
    return {name: tensor for lora in loras for name, tensor in lora.vectors.items() if name not in biases}


def _addition(
    linear: nn.Module, deltas: Sequence[Delta], bias: Tensor | None, out_features: int, in_features: int
) -> Addition:
    """All that adapters add to a linear layer, in float32 on the CPU."""
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
    return Addition(torch.cat(downs), torch.cat(ups), ratio, _shift(bias_of(linear), bias, ratio))


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
        model.replace_head(dense_head(weight))


def dense_head(weight: Tensor) -> DenseLinear:
    """A head (V, hidden_size) that is a matrix of its own."""
    head = DenseLinear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    head.weight = nn.Parameter(weight, requires_grad=False)
    return head


def adapter_bytes(loras: Iterable[Lora], setup: ComputeSetup) -> int:
    """Bytes that adapters take in memory."""
    itemsize = 4 if setup.device.type == "cpu" else setup.stream_dtype.itemsize
    return itemsize * sum(lora.num_values for lora in loras)
