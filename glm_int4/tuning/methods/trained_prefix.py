"""P-Tuning v2: a prefix is trained, and its checkpoints have the official layout."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glm_int4.checkpoint.formats.tensor_names import PREFIX_STEM
from glm_int4.checkpoint.prefix_file import OFFICIAL_FILE, SAFETENSORS_FILE, read_prefix_encoder
from glm_int4.generation.engine import Engine
from glm_int4.models.prefix_encoder import PrefixEncoder, split_prefix
from glm_int4.tuning.arguments import PREFIX_DROPOUT, PTuneSettings
from glm_int4.tuning.loss import prefix_loss
from glm_int4.tuning.methods.method import Method
from glm_int4.tuning.methods.tensor_files import save_pickle, save_safetensors


class TrainedPrefix(Method):
    """A prefix encoder on its way.

    Args:
        engine: the model, loaded without a prefix.
        model_config: its ``config.json``; a checkpoint's says that there is a prefix.
    """

    title = "P-Tuning"

    def __init__(self, engine: Engine, settings: PTuneSettings, model_config: Mapping[str, Any]) -> None:
        self._engine, self._settings, self._model_config = engine, settings, model_config
        with torch.random.fork_rng(devices=[]):  # so that a caller's random numbers stay as they were
            torch.manual_seed(settings.seed)
            encoder = PrefixEncoder(engine.config, settings.pre_seq_len, settings.prefix_projection)
        self._encoder = encoder.to(engine.device)
        self._generator = torch.Generator(engine.device).manual_seed(settings.seed)

    def parameters(self) -> list[nn.Parameter]:
        """As of ``Method``."""
        return list(self._encoder.parameters())

    def loss(self, input_ids: Tensor, labels: Tensor, batch: int | None = None) -> Tensor:
        """As of ``Method``."""
        if batch is None:
            return prefix_loss(self._engine, self._encoder, input_ids, labels)
        recompute = self._settings.gradient_checkpointing
        dropout: dict[str, Any] = {"dropout": PREFIX_DROPOUT, "generator": self._generator}
        return prefix_loss(self._engine, self._encoder, input_ids, labels, recompute=recompute, **dropout)

    @contextmanager
    def answering(self) -> Iterator[Engine]:
        """As of ``Method``."""
        engine = self._engine
        with torch.no_grad():
            prefix = split_prefix(self._encoder()).to(engine.device, engine.setup.prefix_dtype)
        yield Engine(engine.model, engine.info, engine.setup, engine.tokenizer, engine.max_length, prefix)

    def write(self, folder: Path) -> None:
        """As of ``Method``; the same parameters twice, officially and as safetensors."""
        parameters = {PREFIX_STEM + name: p.detach().float().cpu() for name, p in self._encoder.named_parameters()}
        left_out = ("quantization_config", "auto_map")
        config = {key: value for key, value in self._model_config.items() if key not in left_out}
        config |= {"pre_seq_len": self._encoder.pre_seq_len, "prefix_projection": self._encoder.prefix_projection}
        save_pickle(folder / OFFICIAL_FILE, parameters)
        save_safetensors(folder / SAFETENSORS_FILE, parameters)
        (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")

    def restore(self, folder: Path, state: Mapping[str, Any]) -> None:
        """As of ``Method``."""
        self._encoder.load_state_dict(read_prefix_encoder(folder, self._engine.config).state_dict())
        self._generator.set_state(state["generator"])

    def state(self) -> dict[str, Any]:
        """As of ``Method``."""
        return {"generator": self._generator.get_state()}
