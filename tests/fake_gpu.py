"""A GPU that is not there: tensors on "meta" without values, kernels that compute nothing, memory that is counted.

What a layer of the product allocates is what it would allocate on a card. Which attention torch takes there follows
``aten/src/ATen/native/transformers/cuda/sdp_utils.cpp`` of torch 2.13.
"""

import weakref
from collections import Counter
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch.nn.attention import bias
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_iter

from glm_int4.checkpoint.build import ComputeSetup
from glm_int4.models import make_model
from glm_int4.models.config_file import parse_config
from glm_int4.models.presets import CONFIGS
from glm_int4.quantization.embedding import DenseEmbedding, QuantizedEmbedding
from glm_int4.quantization.linear import QuantizedLinear, dense_linear
from glm_int4.quantization.scheme import QuantizationScheme, QuantizedWeight

META = torch.device("meta")
SETUP = ComputeSetup(
    device=META,
    backend="triton",
    dense_dtype=torch.float16,
    stream_dtype=torch.float16,
    kv_dtype=torch.float16,
    half_tables=True,
)


class Memory(TorchDispatchMode):
    """Bytes of the tensors on "meta" that are alive, in the allocator's blocks of 512, and the most there were.

    ``launches``: how often each of torch's operations that a GPU runs was called, and each of the kernels.
    """

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.launches = Counter()
        self._known = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._can_decompose():  # else what it allocates inside would not be seen
            with self:
                return func.decompose(*args, **kwargs or {})
        name = func._schema.name.removeprefix("aten::")
        if not func.is_view and name not in ("_unsafe_view", "empty", "empty_like", "new_empty"):
            self.launches[name] += 1
        out = func(*args, **kwargs or {})
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage):
        key, size = id(storage), -(-storage.nbytes() // 512) * 512
        if key in self._known:
            return

        def forget(_):
            del self._known[key]
            self.live -= size

        self._known[key] = weakref.ref(storage, forget)
        self.live += size
        self.peak = max(self.peak, self.live)

    def reset(self):
        """Count the peak from now on."""
        self.peak = self.live


class Attention(TorchFunctionMode):
    """Torch's attention as a card of some architecture would run it; ``paths`` says which ways were taken.

    Products whose result is of a wider dtype, of which there are none on "meta", are counted among the ``launches``.
    """

    def __init__(self, architecture, launches):
        super().__init__()
        self.architecture, self.paths, self._launches = architecture, [], launches

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.mm and "out_dtype" in (kwargs or {}):
            self._launches["mm"] += 1
            return kwargs["out"]
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs or {})
        return self._attend(*args, **kwargs or {})

    def _attend(self, q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        params = SimpleNamespace(
            query=q, key=k, value=v, attn_mask=attn_mask, is_causal=is_causal, enable_gqa=enable_gqa
        )
        if isinstance(attn_mask, bias.CausalBias):  # which asks for the kernels itself
            params.attn_mask = None
            ways = {"flash": self.takes_flash, "efficient": self.takes_efficient}
            self.paths += [way for way, takes in ways.items() if takes(params)][:1]
            with self:
                return bias.CausalBias._dispatch(q, k, v, attn_mask, enable_gqa=enable_gqa)
        if self.takes_flash(params):
            self.paths.append("flash")
            return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal)[0]
        if self.takes_efficient(params):
            self.paths.append("efficient")
            mask = self._prepared(attn_mask, q, k)
            return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, mask, False, 0.0, is_causal)[0]
        self.paths.append("math")
        return torch.ops.aten._scaled_dot_product_attention_math(
            q, k, v, attn_mask, 0.0, is_causal, enable_gqa=enable_gqa
        )[0]

    def takes_flash(self, params):
        """``can_use_flash_attention``."""
        q, k, v = params.query, params.key, params.value
        return (
            params.attn_mask is None
            and self.architecture >= 80
            and q.dtype in (torch.float16, torch.bfloat16)
            and q.dtype == k.dtype == v.dtype
            and q.shape[-1] <= 256
            and (q.shape[1] == k.shape[1] or (params.enable_gqa and q.shape[1] % k.shape[1] == 0))
            and not (params.is_causal and q.shape[2] != k.shape[2])
            and q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
        )

    def takes_efficient(self, params):
        """``can_use_mem_efficient_attention``, which knows no shared keys."""
        q, k, v, mask = params.query, params.key, params.value, params.attn_mask
        dtypes = [torch.float16, torch.float32] + [torch.bfloat16] * (self.architecture >= 80)
        alignment = 8 if q.dtype != torch.float32 else 4 if self.architecture >= 80 else 1
        aligned = all(x.storage_offset() % alignment == 0 for x in (q, k, v)) or self.architecture < 80
        return (
            q.dtype in dtypes
            and q.dtype == k.dtype == v.dtype
            and q.shape[1] == k.shape[1] == v.shape[1]
            and q.shape[-1] % alignment == 0
            and aligned
            and q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
            and (mask is None or mask.stride(-1) == 1)
        )

    @staticmethod
    def _prepared(mask, q, k):
        """``convert_boolean_attn_mask`` and ``preprocess_mask``."""
        if mask is None:
            return None
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(mask.logical_not(), -torch.inf)
        columns = k.shape[2]
        if mask.shape[-1] % 8:
            mask = F.pad(mask, (0, -mask.shape[-1] % 8))[..., :columns]
        return mask.expand(q.shape[0], q.shape[1], q.shape[2], columns)


def _lower_right(num_rows, num_columns, make=bias.causal_lower_right):
    """As torch's own, whose empty tensor no mode may see."""
    with _disable_current_modes():
        return make(num_rows, num_columns)


class _NoKernel:
    """Launches that compute nothing, and are counted."""

    def __init__(self, name, launches):
        self._name, self._launches = name, launches

    def __getitem__(self, grid):
        return lambda *args, **kwargs: self._launches.update([self._name])


@contextmanager
def fake_gpu(architecture=80, multiprocessors=82):
    """A card; gives the ``Memory`` of it and its ``Attention``."""
    from triton_kernels import decode, dispatch, gpu

    properties = SimpleNamespace(
        major=architecture // 10, minor=architecture % 10, multi_processor_count=multiprocessors
    )
    memory = Memory()
    attention = Attention(architecture, memory.launches)
    kernels = {gpu: ("dequantize_kernel", "dot_kernel", "gemv_kernel", "finish_kernel", "scale_rows_kernel")}
    kernels[decode] = ("add_norm_kernel", "rotary_kernel", "attend_kernel", "merge_kernel", "gather_kernel")
    with ExitStack() as stack:
        for module, names in kernels.items():
            for name in names:
                stack.enter_context(patch.object(module, name, _NoKernel(name, memory.launches)))
        for target, name, value in (
            (torch.cuda, "get_device_properties", lambda device: properties),
            (torch.cuda, "get_device_capability", lambda device=None: divmod(architecture, 10)),
            (torch.cuda, "device", lambda device: nullcontext()),
            (torch.backends.cuda, "can_use_flash_attention", lambda params, debug=False: attention.takes_flash(params)),
            (gpu, "num_multiprocessors", lambda device: multiprocessors),
            (dispatch, "gpu", gpu),
            (dispatch, "obstacle", lambda device: None),
        ):
            stack.enter_context(patch.object(target, name, value))
        stack.enter_context(patch.object(bias, "can_use_flash_attention", attention.takes_flash))
        stack.enter_context(patch.object(bias, "can_use_efficient_attention", attention.takes_efficient))
        stack.enter_context(patch.object(bias, "causal_lower_right", _lower_right))
        stack.enter_context(memory)
        stack.enter_context(attention)
        yield memory, attention


def fake_weight(out_features, in_features, bits, group_size, symmetric, device=META):
    """A quantized matrix without values, or with any."""
    scheme = QuantizationScheme(bits=bits, group_size=group_size, symmetric=symmetric)
    groups = in_features // scheme.row_group_size(in_features)
    packed = torch.empty(out_features, in_features * bits // 8, dtype=torch.uint8, device=device)
    scales = torch.empty(out_features, groups, dtype=torch.float16, device=device)
    zeros = None if symmetric else torch.empty(out_features, groups, dtype=torch.uint8, device=device)
    return QuantizedWeight(scheme=scheme, packed=packed, scales=scales, zero_points=zeros)


# Weights as ``quantize`` writes them by default: bits -> group size, and whether they are symmetric.
_DEFAULTS = {4: (128, False), 8: (None, True)}


def fake_model(preset, num_layers=2, host_embedding=False, bits=4, dtype=torch.float16, **changes):
    """A model of a preset's shapes as ``quantize`` writes it by default, with fewer layers; inside of ``fake_gpu``.

    bits: 16 where nothing is quantized. dtype: of its stream.
    """
    config = parse_config(CONFIGS[preset] | {"num_layers": num_layers} | changes)
    if bits == 16:
        with META:
            embedding = DenseEmbedding(config.vocab_size, config.hidden_size)
            return make_model(config, dense_linear, embedding).to(META, dtype).eval()

    def make_linear(name, in_features, out_features, has_bias):
        whole = name.endswith("output_layer")
        weight = fake_weight(out_features, in_features, *((8, None, True) if whole else (bits, *_DEFAULTS[bits])))
        bias = torch.empty(out_features, device=META) if has_bias else None
        return QuantizedLinear(weight, bias, "triton")

    place = torch.device("cpu") if host_embedding else META
    weight = fake_weight(config.vocab_size, config.hidden_size, 8, None, True, place)
    embedding = QuantizedEmbedding(weight, "triton", dtype, META if host_embedding else None)
    model = make_model(config, make_linear, embedding).to(META).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm | torch.nn.RMSNorm):
            module.to(dtype)
    return model
