"""The network as a model of transformers: its loader and ``forward``; ``generate`` comes from transformers.

The engine's loader reads the weights and keeps them packed. The engine's own ways of generating
(``generation/``) are faster and are not used here.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from glm_int4.checkpoint.files.folder import resolve_folder
from glm_int4.errors import InputError
from glm_int4.generation.engine import Engine
from glm_int4.generation.loading import load
from glm_int4.hf.configuration import ChatGLMConfig
from glm_int4.hf.inputs import TransformersCache, get_positions, make_mask

logger = logging.getLogger(__name__)

# Where to find the files on the hub; a local folder needs none of them.
_HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download")
# What transformers and programs built on it pass to every model, and means nothing to this loader.
_IGNORED = {
    "_from_auto",
    "_from_pipeline",
    "adapter_kwargs",
    "attn_implementation",
    "code_revision",
    "low_cpu_mem_usage",
    "max_memory",
    "offload_buffers",
    "offload_folder",
    "proxies",
    "trust_remote_code",
    "use_safetensors",
    "weights_only",
}


class ChatGLMForCausalLM(PreTrainedModel, GenerationMixin):
    """A loaded model of any version; made by ``from_pretrained``.

    Attributes:
        engine: what it was loaded as.
        glm: the network, whose quantized matrices are buffers.
    """

    config_class = ChatGLMConfig
    main_input_name = "input_ids"
    _supports_sdpa = True
    _source: dict[str, Any]

    def __init__(self, config: ChatGLMConfig, engine: Engine | None = None) -> None:
        if engine is None:
            raise InputError("expected a checkpoint, got a configuration alone; use from_pretrained")
        super().__init__(config)
        self._use(engine)

    def _use(self, engine: Engine) -> None:
        self.engine, self.glm = engine, engine.model
        self.is_quantized = any(engine.info.schemes.values())
        self.eval()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        config: ChatGLMConfig | None = None,
        device_map: Any = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        prefix: str | Path | None = None,
        model_version: str = "auto",
        threads: int | None = None,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a checkpoint that ``glm_int4.load`` takes.

        Args:
            pretrained_model_name_or_path: folder or hub id.
            device_map: a device, by name or as ``{"": device}``; None or "auto" for CUDA where there is one.
            dtype: None, "auto" or, on CUDA, float16 for the device's fast path; otherwise what everything
                computes in on plain torch, without packed operations. Packed weights stay packed.
            prefix, model_version, threads: as in ``glm_int4.load``.
            kwargs: options of the hub client; what else transformers passes to models has no effect.
        Raises:
            InputError: an option that this loader does not know; as ``glm_int4.load``.
        """
        hub = {key: kwargs.pop(key) for key in _HUB_OPTIONS if kwargs.get(key) is not None}
        for key in [key for key, value in kwargs.items() if key in _IGNORED or not value]:
            del kwargs[key]
        generation_config = kwargs.pop("generation_config", None)
        if kwargs:
            raise InputError(f"expected options that this loader knows, got {', '.join(sorted(kwargs))}; leave them")
        folder = resolve_folder(pretrained_model_name_or_path, **hub)
        source: dict[str, Any] = {
            "model": folder,
            "dtype": dtype if dtype is not None else torch_dtype,
            "prefix": prefix,
        }
        source |= {"model_version": model_version, "threads": threads}
        engine = _load(_device_type(device_map), **source)
        model = cls(config or ChatGLMConfig.from_pretrained(folder), engine)
        model._source, model.name_or_path = source, str(pretrained_model_name_or_path)
        model.generation_config = generation_config or _generation_config(folder, engine)
        info = {key: set[str]() for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")}
        return (model, info) if output_loading_info else model

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """Run the network over T new tokens.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, past + T), 0 where a row is padded; None where none is.
            position_ids: (B, T), or (B, 2, T) in version 1; None to count them, which version 1 behind a
                cache leaves to ``prepare_inputs_for_generation``.
            past_key_values: a cache, extended in place.
            labels: (B, T) ids to predict from the position before theirs, -100 for none.
            logits_to_keep: how many positions at the end, or which ones; 0 for all.
        Returns:
            CausalLMOutputWithPast; logits are (B, T or fewer, V) float32.
        Raises:
            InputError: inputs that this model does not take.
        """
        token_ids, real = self._check_inputs(input_ids, attention_mask, output_attentions, kwargs)
        use_cache = getattr(self.config, "use_cache", True) if use_cache is None else use_cache
        if past_key_values is None and use_cache:
            past_key_values = DynamicCache(config=self.config)
        prefix, setup = self.engine.prefix, self.engine.setup
        past = prefix if past_key_values is None else TransformersCache(past_key_values, prefix, setup.prefix_dtype)
        length = past.length if isinstance(past, TransformersCache) else 0
        mask = make_mask(self.glm, token_ids, real, length, prefix.length if prefix else 0, setup.stream_dtype)
        if position_ids is None:
            position_ids = self._positions(token_ids, real, length)
        position_ids = position_ids.to(self.device)
        positions = position_ids if position_ids.dim() == 3 else position_ids[:, None]
        hidden_states: list[Tensor] | None = [] if output_hidden_states else None
        x = self.glm.last_hidden_state(token_ids, positions.expand(len(token_ids), -1, -1), mask, past, hidden_states)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.glm.head(x[:, kept])
        loss = None
        if labels is not None:
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten().to(x.device))
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=None if hidden_states is None else tuple(hidden_states),
        )
        return output.to_tuple() if return_dict is False else output

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """What ``forward`` needs for the tokens that the cache does not hold; ``input_ids`` are whole rows."""
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        num_new = input_ids.shape[1] - past if next_sequence_length is None else next_sequence_length
        positions = get_positions(self.glm, input_ids, real[:, : input_ids.shape[1]].bool())
        return {
            "input_ids": input_ids[:, -num_new:],
            "position_ids": positions[:, :, -num_new:],
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
        } | {key: kwargs[key] for key in ("logits_to_keep", "output_hidden_states", "return_dict") if key in kwargs}

    def _check_inputs(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, output_attentions: bool | None, others: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Ids and mask on the model's device, or an error."""
        if input_ids is None or others.get("inputs_embeds") is not None:
            raise InputError("expected input_ids, got inputs_embeds or nothing; this model embeds ids itself")
        if output_attentions:
            raise InputError("expected output_attentions=False, got True; attention weights are never computed")
        if attention_mask is None:
            return input_ids.to(self.device), None
        if attention_mask.dim() != 2:
            raise InputError(
                f"expected an attention_mask of (rows, tokens), got {tuple(attention_mask.shape)}; "
                "pass 1 for tokens and 0 for padding, the rest follows from the ids"
            )
        return input_ids.to(self.device), attention_mask.to(self.device).bool()

    def _positions(self, token_ids: Tensor, real: Tensor | None, length: int) -> Tensor:
        """Positions (B, P, T) of new tokens."""
        if length and not self.engine.config.is_causal:
            raise InputError("expected position_ids for tokens behind a cache, got none; pass them, or use generate")
        if real is None:
            real = torch.ones(len(token_ids), length + token_ids.shape[1], dtype=torch.bool, device=token_ids.device)
        return get_positions(self.glm, token_ids, real)[:, :, length:]

    # --- what transformers calls on every model, and means something else for packed weights ----------

    def to(self, *args: Any, **kwargs: Any) -> "ChatGLMForCausalLM":  # type: ignore[override]
        """Move to another device: the weights are loaded anew, in that device's layout. No other dtype."""
        device, dtype = torch._C._nn._parse_to(*args, **kwargs)[:2]
        if dtype is not None and dtype != self.engine.setup.dense_dtype:
            raise InputError(f"expected no dtype, got {dtype}; pass dtype to from_pretrained, weights stay packed")
        if device is not None and device.type != self.device.type:
            logger.info("loading the weights anew for %s", device)
            self._use(_load(device.type, **self._source))
        return self

    def cuda(self, *args: Any, **kwargs: Any) -> "ChatGLMForCausalLM":  # type: ignore[override]
        """As ``to("cuda")``."""
        return self.to("cuda")

    def cpu(self) -> "ChatGLMForCausalLM":
        """As ``to("cpu")``."""
        return self.to("cpu")

    def half(self, *args: Any) -> "ChatGLMForCausalLM":
        """As ``to(torch.float16)``."""
        return self.to(torch.float16)

    def float(self, *args: Any) -> "ChatGLMForCausalLM":
        """As ``to(torch.float32)``."""
        return self.to(torch.float32)

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: version 1's head is its embedding from the beginning."""

    def get_input_embeddings(self) -> torch.nn.Module:
        """The embedding matrix."""
        return next(module for name, module in self.named_modules() if name.endswith("word_embeddings"))

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refused: the folder that was read is the checkpoint.

        Raises:
            InputError: always.
        """
        raise InputError(
            "expected to read a checkpoint, got save_pretrained; copy the folder, or use glm-int4 quantize"
        )


def _load(device: str, dtype: Any, **source: Any) -> Engine:
    """Load a checkpoint for a device, with ``dtype`` as transformers means it."""
    return load(device=device, dtype=_compute_dtype(dtype, device), **source)


def _device_type(device_map: Any) -> str:
    """The device that transformers' ``device_map`` means: "auto", "cuda" or "cpu"."""
    if isinstance(device_map, dict):
        if set(device_map) != {""}:
            raise InputError(f"expected the whole model on one device, got {device_map!r:.80}; pass device_map='cuda'")
        device_map = device_map[""]
    if device_map in (None, "auto", "balanced", "balanced_low_0", "sequential"):
        return "auto"
    device = torch.device(device_map)
    if device.index:
        raise InputError(f"expected the first CUDA device, got {device}; choose another with CUDA_VISIBLE_DEVICES")
    return device.type


def _compute_dtype(dtype: torch.dtype | str | None, device: str) -> torch.dtype | None:
    """``load``'s dtype; None for the fast path."""
    if isinstance(dtype, str) and dtype != "auto":
        dtype = getattr(torch, dtype, None) or dtype
    on_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    return None if dtype == "auto" or (dtype == torch.float16 and on_cuda) else dtype  # type: ignore[return-value]


def _generation_config(folder: Path, engine: Engine) -> GenerationConfig:
    """The folder's, with the ids that end an answer of this version; greedy where it does not say."""
    found = (folder / "generation_config.json").is_file()
    config = GenerationConfig.from_pretrained(folder) if found else GenerationConfig()
    config.eos_token_id, config.pad_token_id = list(engine.stop_ids), engine.config.pad_token_id
    return config
