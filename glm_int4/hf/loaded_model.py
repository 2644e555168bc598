"""A loaded network among transformers' models: its engine, its modules' names, adapters, devices and folders.

What transformers calls on every model means something else for packed weights, and is done or refused here.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.import_utils import is_peft_available

from glm_int4.errors import CheckpointError, InputError
from glm_int4.generation.engine import Engine
from glm_int4.hf import adapters
from glm_int4.hf.configuration import ChatGLMConfig
from glm_int4.hf.saving import save_model
from glm_int4.hf.sources import compute_dtype, device_type, load_engine
from glm_int4.hf.weights import keep_values, quantize_linears, tied_head
from glm_int4.models import Model

logger = logging.getLogger(__name__)


class LoadedModel(PreTrainedModel):
    """A network and the engine that it was loaded as.

    Modules and tensors have their official names: ``transformer`` and below it, in version 1 ``lm_head``. Quantized
    matrices are buffers.
    """

    supports_gradient_checkpointing = True
    _source: dict[str, Any]

    def __init__(self, config: ChatGLMConfig, engine: Engine | None = None) -> None:
        if engine is None:
            raise InputError("expected a checkpoint, got a configuration alone; use from_pretrained")
        super().__init__(config)
        self.gradient_checkpointing = self._rounded_here = False
        self.register_load_state_dict_pre_hook(adapters.check_adapter_tensors)
        self._use(engine)
        self.eval()

    def _use(self, engine: Engine) -> None:
        self._engine = engine
        self.transformer = engine.model.transformer
        if engine.config.has_tied_head:
            self.lm_head = tied_head(engine.model.embedding)
            self._keys_to_ignore_on_save = {"lm_head.weight"}  # it is the embedding
        self._num_modules = adapters.count_modules(self)
        self.is_quantized = any(engine.info.schemes.values())
        self.hf_quantizer = adapters.PackedWeights() if self.is_quantized else None

    @property
    def engine(self) -> Engine:
        """What the model was loaded as.

        Raises:
            InputError: an adapter has joined, which the engine's own ways of generating know nothing of.
        """
        self._refuse_adapter("to run in the engine", "generate and chat of this model use it")
        return self._engine

    @property
    def glm(self) -> Model:
        """The engine's network, whose ``transformer`` is this model's."""
        return self._engine.model

    # --- adapters ------------------------------------------------------------------------------------

    def load_adapter(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; every tensor of the adapter has its place, or it is refused.

        Raises:
            CheckpointError: it is another model's, or not complete.
            InputError: there is no peft.
        """
        if not is_peft_available():
            raise InputError("expected peft, which applies adapters, got none; pip install peft")
        before = set(getattr(self, "peft_config", ()))
        info = super().load_adapter(*args, **kwargs)
        try:
            adapters.check_names(sorted(info.unexpected_keys), "a place in this model")
            adapters.check_missing(info.missing_keys)
        except CheckpointError:
            self.delete_adapter(sorted(set(self.peft_config) - before))
            raise
        return info

    def _refuse_adapter(self, what: str, advice: str) -> None:
        adapters.refuse_with_adapter(self, self._num_modules, what, advice)

    # --- devices and dtypes ---------------------------------------------------------------------------

    def to(self, *args: Any, **kwargs: Any) -> "LoadedModel":  # type: ignore[override]
        """Move to another device: the weights are loaded anew, in that device's layout. No other dtype.

        What is not quantized keeps the values that it has by now.
        """
        device, dtype = torch._C._nn._parse_to(*args, **kwargs)[:2]
        if dtype is not None and dtype != self._engine.setup.dense_dtype:
            raise InputError(f"expected no dtype, got {dtype}; pass dtype to from_pretrained, weights stay packed")
        if device is not None and device.type != self.device.type:
            self._move(device)
        return self

    def _move(self, device: torch.device) -> None:
        self._refuse_adapter("to move", "load the model with device_map, then the adapter")
        if self._rounded_here:
            raise InputError("expected to move before quantize(), got it after; load with device_map, then quantize()")
        logger.info("loading the weights anew for %s", device)
        engine = load_engine(device_type(str(device)), **self._source)
        if engine is not self._engine:
            keep_values(self._engine.model, engine.model)
        self._use(engine)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Let nothing change dtypes or devices behind ``to``: of a model inside another one, for example."""
        setup = self._engine.setup
        for dtype in {setup.dense_dtype, setup.stream_dtype}:
            changed = fn(torch.empty(0, dtype=dtype, device=self.device))
            if changed.dtype != dtype or changed.device.type != self.device.type:
                raise InputError(
                    f"expected the model to stay {dtype} on {self.device.type}, got a change to {changed.dtype} on "
                    f"{changed.device.type}; pass dtype and device_map to from_pretrained"
                )
        return super()._apply(fn, recurse)

    def cuda(self, *args: Any, **kwargs: Any) -> "LoadedModel":  # type: ignore[override]
        """As ``to("cuda")``."""
        return self.to("cuda")

    def cpu(self) -> "LoadedModel":
        """As ``to("cpu")``."""
        return self.to("cpu")

    def half(self, *args: Any) -> "LoadedModel":
        """As ``to(torch.float16)``."""
        return self.to(torch.float16)

    def bfloat16(self) -> "LoadedModel":
        """As ``to(torch.bfloat16)``."""
        return self.to(torch.bfloat16)

    def float(self, *args: Any) -> "LoadedModel":
        """As ``to(torch.float32)``."""
        return self.to(torch.float32)

    def double(self) -> "LoadedModel":
        """As ``to(torch.float64)``."""
        return self.to(torch.float64)

    def type(self, dst_type: Any) -> "LoadedModel":
        """As ``to`` with a dtype."""
        return self.to(torch.empty(0).type(dst_type).dtype)

    # --- weights ------------------------------------------------------------------------------------

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: version 1's head is its embedding from the beginning."""

    def get_input_embeddings(self) -> nn.Module:
        """The embedding matrix."""
        return next(module for name, module in self.named_modules() if name.endswith("word_embeddings"))

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        head: nn.Module = self.get_submodule("transformer.output_layer" if self.glm.config.is_causal else "lm_head")
        return head

    def resize_token_embeddings(  # type: ignore[override]
        self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any
    ) -> nn.Module:
        """Refused but for the number of rows that there are.

        Raises:
            InputError: another number.
        """
        rows = self._engine.config.vocab_size
        if new_num_tokens not in (None, rows):
            raise InputError(
                f"expected the {rows} rows that the vocabulary's matrices have, got {new_num_tokens}; tokens with ids "
                f"below {rows} need no resizing, more cannot be added"
            )
        return self.get_input_embeddings()

    def quantize(self, bits: int, *args: Any, **kwargs: Any) -> "LoadedModel":
        """Round the linear layers to 4 or 8 bits, here in memory; weights that are quantized stay as they are.

        Args:
            bits: 4 (groups of 128 with zero points) or 8 (a scale a row), as ``glm-int4 quantize`` has them.
            others: the official code's, without effect.
        """
        if self.is_quantized:
            kept = self._engine.info.linear_scheme
            logger.warning("quantize(%s) changes nothing: the weights are quantized already (%s)", bits, kept)
            return self
        self._refuse_adapter("to quantize", "merge it first (merge_and_unload)")
        self._use(quantize_linears(self._engine, bits, compute_dtype(self._source["dtype"], self.device.type)))
        self._rounded_here = True
        logger.warning(
            "rounded the linear layers to %s in memory; a folder that glm-int4 quantize wrote loads so at once",
            self._engine.info.linear_scheme,
        )
        return self

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Write a folder that ``from_pretrained`` reads; of a model with adapters by ``load_adapter``, those alone.

        Args:
            save_directory: may exist; weights that lie there are replaced.
            kwargs: ``is_main_process``, ``state_dict`` and ``max_shard_size`` as in transformers.
        Raises:
            InputError: options of another kind, or weights that only exist in memory in their layout for it.
        """
        if getattr(self, "_hf_peft_config_loaded", False):
            super().save_pretrained(save_directory, *args, **kwargs)
            return
        self._refuse_adapter("to save", "save the PeftModel, which writes the adapter, or merge it first")
        if self._rounded_here:
            scheme = self._engine.info.linear_scheme
            command = f"glm-int4 quantize --model {self._source['model']} --bits {scheme.bits if scheme else 4}"
            raise InputError(f"expected weights from a folder, got what quantize() rounded in memory; run {command}")
        save_model(self, self._source, Path(save_directory), *args, **kwargs)
