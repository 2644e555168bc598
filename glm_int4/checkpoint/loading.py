"""From a checkpoint folder to a model in memory, one matrix at a time."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from glm_int4.checkpoint import layout, packed_format
from glm_int4.checkpoint.checks import check_finite, warn_of_untied_head
from glm_int4.checkpoint.folder import read_config
from glm_int4.checkpoint.reader import CheckpointReader
from glm_int4.errors import TokenizerError
from glm_int4.files import shown
from glm_int4.models.chatglm import ChatGLMForConditionalGeneration
from glm_int4.models.config import ChatGLMConfig, parse_config
from glm_int4.quantization.embedding import DenseEmbedding, QuantizedEmbedding
from glm_int4.quantization.linear import DenseLinear, QuantizedLinear
from glm_int4.quantization.scheme import QuantizationScheme
from glm_int4.text import ChatGLMTokenizer, load_tokenizer
from glm_int4.text.loading import has_tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputePlan:
    """What the model computes with.

    backend: of quantized linears. dense_dtype: of unquantized matrices. stream_dtype: of the residual
    stream, norms and attention. half_tables: rotary tables as in the official half-precision model.
    """

    device: torch.device
    backend: str
    dense_dtype: torch.dtype
    stream_dtype: torch.dtype
    half_tables: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """What a checkpoint holds: schemes by matrix name, and bytes as stored."""

    config: ChatGLMConfig
    schemes: dict[str, QuantizationScheme | None]
    stored_bytes: dict[str, int]

    @property
    def weight_bytes(self) -> int:
        return sum(self.stored_bytes.values())

    @property
    def linear_scheme(self) -> QuantizationScheme | None:
        """The scheme of the linear layers; None where they are not quantized."""
        return next(scheme for name, scheme in self.schemes.items() if name != layout.EMBEDDING)

    @property
    def bits_per_weight(self) -> float:
        """Bits stored per parameter of the whole model, scales and zero points included."""
        return 8 * self.weight_bytes / layout.num_parameters(self.config)


def open_checkpoint(folder: Path, model_version: str = "auto") -> tuple[CheckpointReader, CheckpointInfo]:
    """Open a folder and check all of its tensors against its config.

    Raises:
        ConfigError, CheckpointError: what is wrong with it, in one line.
    """
    raw = read_config(folder)
    config = parse_config(raw, model_version)
    if raw.get("pre_seq_len"):
        logger.warning(
            "ignoring pre_seq_len %s in config.json: prefixes are not supported yet", shown(raw["pre_seq_len"])
        )
    quantized = packed_format.is_packed(raw)
    reader = CheckpointReader(folder)
    expected = layout.vectors(config)
    dtypes: dict[str, tuple[torch.dtype, ...]] = {}
    schemes: dict[str, QuantizationScheme | None] = {}
    parts: dict[str, list[str]] = {}
    for matrix in (layout.embedding(config), *layout.linears(config)):
        scheme = packed_format.stored_scheme(reader, matrix) if quantized else None
        schemes[matrix.name] = scheme
        if scheme is None:
            expected[f"{matrix.name}.weight"] = (matrix.out_features, matrix.in_features)
            parts[matrix.name] = [f"{matrix.name}.weight"]
            continue
        specs = packed_format.tensor_specs(matrix, scheme)
        expected |= {spec.name: spec.shape for spec in specs}
        dtypes |= {spec.name: (spec.dtype,) for spec in specs}
        parts[matrix.name] = [spec.name for spec in specs]
    reader.check(expected, dtypes, ignored=(layout.HEAD,))
    of_matrices = {name for names in parts.values() for name in names}
    parts |= {name: [name] for name in expected if name not in of_matrices}
    stored = {
        key: sum(reader[name].numel() * reader[name].element_size() for name in names) for key, names in parts.items()
    }
    return reader, CheckpointInfo(config=config, schemes=schemes, stored_bytes=stored)


def build_model(reader: CheckpointReader, info: CheckpointInfo, plan: ComputePlan) -> ChatGLMForConditionalGeneration:
    """Build the model of an opened checkpoint, releasing the files' pages as it goes.

    Raises:
        CheckpointError: weights are not finite.
    """
    config = info.config
    warn_of_untied_head(reader)
    matrices = {m.name: m for m in (layout.embedding(config), *layout.linears(config))}

    def vector(name: str, dtype: torch.dtype) -> Tensor:
        check_finite(name, reader[name])
        return reader[name].to(device=plan.device, dtype=dtype, copy=True)

    def make_linear(name: str, in_features: int, out_features: int, has_bias: bool) -> nn.Module:
        scheme = info.schemes[name]
        if scheme is not None:
            bias = vector(f"{name}.bias", torch.float32) if has_bias else None
            weight = packed_format.read_weight(reader, matrices[name], scheme)
            linear: nn.Module = QuantizedLinear(weight, bias, plan.backend)
            linear = linear.to(plan.device)
        else:
            linear = DenseLinear(in_features, out_features, bias=has_bias, device="meta")
            linear.weight = nn.Parameter(vector(f"{name}.weight", plan.dense_dtype), requires_grad=False)
            if has_bias:
                linear.bias = nn.Parameter(vector(f"{name}.bias", plan.dense_dtype), requires_grad=False)
        for part in (f"{name}.weight", f"{name}.weight_packed"):
            if part in reader:
                reader.release(part)
        return linear

    scheme = info.schemes[layout.EMBEDDING]
    embeddings: DenseEmbedding | QuantizedEmbedding
    if scheme is None:
        weight = vector(f"{layout.EMBEDDING}.weight", plan.dense_dtype)
        embeddings = DenseEmbedding.from_pretrained(weight, freeze=True)
    else:
        quantized = packed_format.read_weight(reader, matrices[layout.EMBEDDING], scheme)
        embeddings = QuantizedEmbedding(quantized, plan.backend, plan.stream_dtype).to(plan.device)
    for part in (f"{layout.EMBEDDING}.weight", f"{layout.EMBEDDING}.weight_packed"):
        if part in reader:
            reader.release(part)
    model = ChatGLMForConditionalGeneration(config, make_linear, embeddings, half_tables=plan.half_tables)
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            for part in ("weight", "bias"):
                tensor = vector(f"{name}.{part}", plan.stream_dtype)
                setattr(module, part, nn.Parameter(tensor, requires_grad=False))
    return model.eval()


def load_checked_tokenizer(folder: Path, config: ChatGLMConfig) -> ChatGLMTokenizer | None:
    """The tokenizer of a checkpoint folder, or None where it holds none.

    Raises:
        TokenizerError: it cannot be read, or prompts and the model would mean different ids.
    """
    if not has_tokenizer(folder):
        return None
    tokenizer = load_tokenizer(folder, config.version)
    names = {
        "gmask_token_id": "gmask_id",
        "mask_token_id": "mask_id",
        "bos_token_id": "bos_id",
        "eos_token_id": "eos_id",
    }
    for key, name in names.items():
        if getattr(config, key) != getattr(tokenizer, name):
            raise TokenizerError(
                f"expected {key} {getattr(config, key)} as in config.json from the tokenizer, "
                f"got {getattr(tokenizer, name)}; ice_text.model and the weights are of different revisions"
            )
    return tokenizer


def resident_bytes(info: CheckpointInfo, plan: ComputePlan) -> int:
    """Bytes that the weights of a checkpoint take in memory under a plan; scratch is not counted."""
    total = 0
    for matrix in (layout.embedding(info.config), *layout.linears(info.config)):
        scheme = info.schemes[matrix.name]
        n, k = matrix.out_features, matrix.in_features
        if scheme is None:
            total += n * k * plan.dense_dtype.itemsize
            continue
        num_groups = k // scheme.row_group_size(k)
        if plan.backend == "packed" and matrix.name != layout.EMBEDDING and scheme.bits == 4:
            num_groups = k // (scheme.group_size or next((size for size in (128, 64, 32) if k % size == 0), k))
            total += n * num_groups * 4  # bfloat16 scale and offset
        else:
            total += n * num_groups * (2 if scheme.symmetric and plan.backend == "reference" else 3)
        total += n * k * scheme.bits // 8
    return total + sum(math.prod(shape) * plan.stream_dtype.itemsize for shape in layout.vectors(info.config).values())
