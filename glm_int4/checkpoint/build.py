"""From an opened checkpoint to a model in memory, one matrix at a time."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from glm_int4.checkpoint.checks import check_finite, warn_of_untied_head
from glm_int4.checkpoint.files.reader import CheckpointReader
from glm_int4.checkpoint.formats import layout
from glm_int4.checkpoint.opening import CheckpointInfo, read_weight
from glm_int4.models import Model, make_model
from glm_int4.quantization.backends import matrix_class
from glm_int4.quantization.embedding import DenseEmbedding, HostEmbedding, QuantizedEmbedding, TokenEmbedding
from glm_int4.quantization.gpu.matrix import HostMatrix
from glm_int4.quantization.linear import DenseLinear, QuantizedLinear
from glm_int4.system import trim_heap


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeSetup:
    """Where and in which number formats a model computes.

    backend: of quantized linears. dense_dtype: of unquantized matrices. stream_dtype: of the residual
    stream, norms and attention. kv_dtype: of the key/value cache. half_tables: rotary tables as in the
    official half-precision model. host_embedding: the embedding stays in the host's memory.
    prompt_rows: of a causal prompt that run together.
    """

    device: torch.device
    backend: str
    dense_dtype: torch.dtype
    stream_dtype: torch.dtype
    kv_dtype: torch.dtype
    half_tables: bool
    host_embedding: bool = False
    prompt_rows: int = 512

    @property
    def prefix_dtype(self) -> torch.dtype:
        """Of a prefix's keys and values outside of the cache."""
        return torch.float16 if self.kv_dtype == torch.int8 else self.kv_dtype


def build_model(reader: CheckpointReader, info: CheckpointInfo, setup: ComputeSetup) -> Model:
    """Build the model of an opened checkpoint, releasing the files' pages as it goes.

    Raises:
        CheckpointError: weights are not finite.
    """
    config = info.config
    warn_of_untied_head(reader, config)
    matrices = layout.matrices(config)
    # A GPU unpacks and repacks what is stored in a hundredth of a CPU's time; a CPU reads it where it is mapped.
    device = None if setup.device.type == "cpu" else setup.device

    def vector(name: str, dtype: torch.dtype) -> Tensor:
        check_finite(name, reader[name])
        return reader[name].to(device=setup.device, dtype=dtype, copy=True)

    def release(name: str) -> None:
        for part in (f"{name}.weight", f"{name}.weight_packed"):
            if part in reader:
                reader.release(part)

    def make_linear(name: str, in_features: int, out_features: int, has_bias: bool) -> nn.Module:
        linear: nn.Module
        if info.schemes[name] is not None:
            bias = vector(f"{name}.bias", torch.float32) if has_bias else None
            stored = read_weight(reader, info, matrices[name], device)
            linear = QuantizedLinear(stored, bias, setup.backend).to(setup.device)
        else:
            linear = DenseLinear(in_features, out_features, bias=has_bias, device="meta")
            linear.weight = nn.Parameter(vector(f"{name}.weight", setup.dense_dtype), requires_grad=False)
            if has_bias:
                linear.bias = nn.Parameter(vector(f"{name}.bias", setup.dense_dtype), requires_grad=False)
        release(name)
        return linear

    embedding = layout.embedding(config)
    embeddings: TokenEmbedding
    if info.schemes[embedding.name] is not None:
        host_for = setup.device if setup.host_embedding else None
        quantized = read_weight(reader, info, embedding, None if setup.host_embedding else device)
        embeddings = QuantizedEmbedding(quantized, setup.backend, setup.stream_dtype, host_for).to(setup.device)
    elif setup.host_embedding:
        check_finite(embedding.name, reader[f"{embedding.name}.weight"])
        embeddings = HostEmbedding(reader[f"{embedding.name}.weight"].to(setup.dense_dtype, copy=True), setup.device)
    else:
        weight = vector(f"{embedding.name}.weight", setup.dense_dtype)
        embeddings = DenseEmbedding.from_pretrained(weight, freeze=True)
    release(embedding.name)
    model = make_model(config, make_linear, embeddings, half_tables=setup.half_tables)
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            for part, _ in list(module.named_parameters()):
                tensor = vector(f"{name}.{part}", setup.stream_dtype)
                setattr(module, part, nn.Parameter(tensor, requires_grad=False))
    trim_heap()
    return model.eval()


def resident_bytes(info: CheckpointInfo, setup: ComputeSetup) -> int:
    """Bytes that the weights of a checkpoint take on the device; scratch is not counted."""
    total, vectors = 0, layout.vectors(info.config)
    for name, matrix in layout.matrices(info.config).items():
        scheme, has_bias = info.schemes[name], vectors.pop(f"{name}.bias", None) is not None
        n, k = matrix.out_features, matrix.in_features
        if setup.host_embedding and matrix.kind == "embedding":
            total += HostMatrix.resident_bytes(n, k, scheme, has_bias=False) if scheme else 0
        elif scheme is None:
            total += n * (k + has_bias) * setup.dense_dtype.itemsize
        else:
            total += matrix_class(setup.backend, n, k).resident_bytes(n, k, scheme, has_bias=has_bias)
    return total + sum(math.prod(shape) * setup.stream_dtype.itemsize for shape in vectors.values())
