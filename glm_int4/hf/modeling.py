"""The network as a model of transformers: its loader and ``forward``; ``generate`` comes from transformers.

The engine's loader reads the weights and keeps them packed. The engine's own ways of generating
(``generation/``) are faster and are not used here.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from glm_int4.checkpoint.files.folder import resolve_folder
from glm_int4.errors import InputError
from glm_int4.hf.configuration import ChatGLMConfig
from glm_int4.hf.conversing import Conversing
from glm_int4.hf.inputs import TransformersCache, get_positions, make_mask, next_positions, note_positions
from glm_int4.hf.loaded_model import LoadedModel
from glm_int4.hf.sources import adapter_in, device_type, generation_config, load_engine
from glm_int4.models.past import NoCache, Prefix

# Where to find the files on the hub; a local folder needs none of them.
_HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download")
# What transformers and programs built on it pass to every model, and means nothing to this loader.
_IGNORED = {
    "_from_auto",
    "_from_pipeline",
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


class ChatGLMForCausalLM(Conversing, LoadedModel, GenerationMixin):
    """A loaded model of any version; made by ``from_pretrained``."""

    config_class = ChatGLMConfig
    main_input_name = "input_ids"
    _supports_sdpa = True

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
            dtype: None, "auto" or, on CUDA, float16 for the device's fast path; otherwise as of ``glm_int4.load``.
                Packed weights stay packed.
            prefix, model_version, threads: as in ``glm_int4.load``.
            adapter_name, adapter_kwargs: of an adapter that lies in the folder (kwargs).
            kwargs: options of the hub client; what else transformers passes to models has no effect.
        Raises:
            InputError: an option that this loader does not know; as ``glm_int4.load``.
        """
        hub = {key: kwargs.pop(key) for key in _HUB_OPTIONS if kwargs.get(key) is not None}
        adapter_kwargs = dict(kwargs.pop("adapter_kwargs", None) or {})
        adapter_name = kwargs.pop("adapter_name", "default")
        for key in [key for key, value in kwargs.items() if key in _IGNORED or not value]:
            del kwargs[key]
        generation = kwargs.pop("generation_config", None)
        if kwargs:
            raise InputError(f"expected options that this loader knows, got {', '.join(sorted(kwargs))}; leave them")
        folder = resolve_folder(pretrained_model_name_or_path, **hub)
        source: dict[str, Any] = {
            "model": folder,
            "dtype": dtype if dtype is not None else torch_dtype,
            "prefix": prefix,
        }
        source |= {"model_version": model_version, "threads": threads}
        engine = load_engine(device_type(device_map), **source)
        model = cls(config or ChatGLMConfig.from_pretrained(folder), engine)
        model._source, model.name_or_path = source, str(pretrained_model_name_or_path)
        model.generation_config = generation or generation_config(folder, engine)
        if adapter := adapter_in(pretrained_model_name_or_path, adapter_kwargs):
            model.load_adapter(str(adapter), adapter_name=adapter_name, adapter_kwargs=adapter_kwargs)
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
        if use_cache is None:
            use_cache = getattr(self.config, "use_cache", True) and not self.training
        if past_key_values is None and use_cache and not self._recomputes:
            past_key_values = DynamicCache(config=self.config)
        past = self._past(past_key_values)
        length = past.length if isinstance(past, TransformersCache) else 0
        prefix, setup = self._engine.prefix, self._engine.setup
        mask = make_mask(self.glm, token_ids, real, length, prefix.length if prefix else 0, setup.stream_dtype)
        if position_ids is None:
            position_ids = self._positions(token_ids, real, length, past_key_values)
        position_ids = position_ids.to(self.device)
        positions = position_ids if position_ids.dim() == 3 else position_ids[:, None]
        positions = positions.expand(len(token_ids), -1, -1)
        hidden_states: list[Tensor] | None = [] if output_hidden_states else None
        x = self.glm.last_hidden_state(token_ids, positions, mask, past, hidden_states)
        if past_key_values is not None and not self.glm.config.is_causal:
            note_positions(past_key_values, positions)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.get_output_embeddings()(x[:, kept]).float()
        loss = None if labels is None else _loss(logits, labels, kwargs.get("num_items_in_batch"))
        if loss is not None and self.training and torch.is_grad_enabled() and not loss.requires_grad:
            raise InputError(
                "expected something to train, got frozen weights alone; add an adapter (peft.get_peft_model), or set "
                "model.requires_grad_(True) on an unquantized model"
            )
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=None if hidden_states is None else tuple(hidden_states),
        )
        return output.to_tuple() if return_dict is False else output

    @property
    def _recomputes(self) -> bool:
        """Whether a backward pass computes a layer's activations anew."""
        return self.gradient_checkpointing and self.training

    def _past(self, cache: Cache | None) -> Prefix | NoCache | TransformersCache | None:
        """What layers find before the new tokens."""
        prefix = self._engine.prefix
        if cache is not None and self._recomputes:
            raise InputError("expected no past_key_values with gradient checkpointing, got some; pass use_cache=False")
        if self._recomputes:
            return NoCache(prefix)
        return prefix if cache is None else TransformersCache(cache, prefix, self._engine.setup.prefix_dtype)

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

    def _positions(self, token_ids: Tensor, real: Tensor | None, length: int, cache: Cache | None) -> Tensor:
        """Positions (B, P, T) of new tokens."""
        if length and not self.glm.config.is_causal:
            found = next_positions(cache, token_ids, length) if real is None or bool(real[:, -1].all()) else None
            if found is None:
                raise InputError("expected position_ids for tokens behind a cache, got none; pass them or use generate")
            return found
        if real is None:
            real = torch.ones(len(token_ids), length + token_ids.shape[1], dtype=torch.bool, device=token_ids.device)
        return get_positions(self.glm, token_ids, real)[:, :, length:]


def _loss(logits: Tensor, labels: Tensor, num_items: Any) -> Tensor:
    """Cross-entropy of logits (B, T, V) for the labels (B, T) that follow; a mean, or a sum over ``num_items``."""
    rows, targets = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten().to(logits.device)
    loss = torch.nn.functional.cross_entropy(rows, targets, reduction="mean" if num_items is None else "sum")
    return loss if num_items is None else loss / num_items
