"""From an opened checkpoint to a model in memory, one matrix at a time."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from glm_int4.checkpoint.checks import check_finite, warn_of_untied_head
from glm_int4.checkpoint.files.reader import CheckpointReader
from glm_int4.checkpoint.formats import layout
from glm_int4.checkpoint.opening import CheckpointInfo, read_weight
from glm_int4.errors import TokenizerError
from glm_int4.models import Model, chatglm, chatglm2
from glm_int4.models.config import ChatGLMConfig, Config
from glm_int4.quantization.embedding import DenseEmbedding, QuantizedEmbedding
from glm_int4.quantization.linear import DenseLinear, QuantizedLinear
from glm_int4.system import trim_heap
from glm_int4.text import Tokenizer, load_tokenizer
from glm_int4.text.tokenizer_loading import has_tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputePlan:
    """What the model computes with.

    backend: of quantized linears. dense_dtype: of unquantized matrices. stream_dtype: of the residual
    stream, norms and attention. kv_dtype: of the key/value cache. half_tables: rotary tables as in the
    official half-precision model.
    """

    device: torch.device
    backend: str
    dense_dtype: torch.dtype
    stream_dtype: torch.dtype
    kv_dtype: torch.dtype
    half_tables: bool

    @property
    def prefix_dtype(self) -> torch.dtype:
        """Of a prefix's keys and values outside of the cache."""
        return torch.float16 if self.kv_dtype == torch.int8 else self.kv_dtype


def build_model(reader: CheckpointReader, info: CheckpointInfo, plan: ComputePlan) -> Model:
    """Build the model of an opened checkpoint, releasing the files' pages as it goes.

    Raises:
        CheckpointError: weights are not finite.
    """
    config = info.config
    warn_of_untied_head(reader, config)
    matrices = layout.matrices(config)

    def vector(name: str, dtype: torch.dtype) -> Tensor:
        check_finite(name, reader[name])
        return reader[name].to(device=plan.device, dtype=dtype, copy=True)

    def release(name: str) -> None:
        for part in (f"{name}.weight", f"{name}.weight_packed"):
            if part in reader:
                reader.release(part)

    def make_linear(name: str, in_features: int, out_features: int, has_bias: bool) -> nn.Module:
        linear: nn.Module
        if info.schemes[name] is not None:
            bias = vector(f"{name}.bias", torch.float32) if has_bias else None
            linear = QuantizedLinear(read_weight(reader, info, matrices[name]), bias, plan.backend).to(plan.device)
        else:
            linear = DenseLinear(in_features, out_features, bias=has_bias, device="meta")
            linear.weight = nn.Parameter(vector(f"{name}.weight", plan.dense_dtype), requires_grad=False)
            if has_bias:
                linear.bias = nn.Parameter(vector(f"{name}.bias", plan.dense_dtype), requires_grad=False)
        release(name)
        return linear

    embedding = layout.embedding(config)
    embeddings: DenseEmbedding | QuantizedEmbedding
    if info.schemes[embedding.name] is None:
        weight = vector(f"{embedding.name}.weight", plan.dense_dtype)
        embeddings = DenseEmbedding.from_pretrained(weight, freeze=True)
    else:
        quantized = read_weight(reader, info, embedding)
        embeddings = QuantizedEmbedding(quantized, plan.backend, plan.stream_dtype).to(plan.device)
    release(embedding.name)
    model: Model
    if isinstance(config, ChatGLMConfig):
        model = chatglm.ChatGLMForConditionalGeneration(config, make_linear, embeddings, half_tables=plan.half_tables)
    else:
        model = chatglm2.ChatGLMForConditionalGeneration(config, make_linear, embeddings, half_tables=plan.half_tables)
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            for part, _ in list(module.named_parameters()):
                tensor = vector(f"{name}.{part}", plan.stream_dtype)
                setattr(module, part, nn.Parameter(tensor, requires_grad=False))
    trim_heap()
    return model.eval()


def load_checked_tokenizer(folder: Path, config: Config) -> Tokenizer | None:
    """The tokenizer of a checkpoint folder, or None where it holds none.

    Raises:
        TokenizerError: it cannot be read, or prompts and the model would mean different ids.
    """
    if not has_tokenizer(folder):
        return None
    tokenizer = load_tokenizer(folder, config.version)
    names = {"eos_token_id": "eos_id"}
    if isinstance(config, ChatGLMConfig):
        names |= {"gmask_token_id": "gmask_id", "mask_token_id": "mask_id", "bos_token_id": "bos_id"}
    for key, name in names.items():
        if getattr(config, key) != getattr(tokenizer, name):
            raise TokenizerError(
                f"expected {key} {getattr(config, key)} as in config.json from the tokenizer, "
                f"got {getattr(tokenizer, name)}; the tokenizer and the weights are of different revisions"
            )
    if tokenizer.vocab_size > config.vocab_size:
        raise TokenizerError(
            f"expected a tokenizer of at most {config.vocab_size} ids, as many as the model has rows, "
            f"got {tokenizer.vocab_size}; the tokenizer and the weights are of different models"
        )
    return tokenizer


def resident_bytes(info: CheckpointInfo, plan: ComputePlan) -> int:
    """Bytes that the weights of a checkpoint take in memory under a plan; scratch is not counted."""
    total, vectors = 0, layout.vectors(info.config)
    for name, matrix in layout.matrices(info.config).items():
        scheme = info.schemes[name]
        n, k = matrix.out_features, matrix.in_features
        if scheme is None:
            total += n * k * plan.dense_dtype.itemsize
            continue
        num_groups = k // scheme.row_group_size(k)
        if plan.backend == "integer":
            total += 3 * n * num_groups  # float16 scale and a zero point
            total += 0 if f"{name}.bias" in vectors else 4 * n  # a bias of zeros
        else:
            total += n * num_groups * (2 if scheme.symmetric and plan.backend in ("reference", "triton") else 3)
        total += n * k * scheme.bits // 8
    return total + sum(math.prod(shape) * plan.stream_dtype.itemsize for shape in vectors.values())
