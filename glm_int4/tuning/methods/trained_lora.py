"""LoRA: thin products beside a model's matrices are trained, and a checkpoint is a folder of peft."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glm_int4.adapters.adapter_file import CONFIG_FILE, FILES
from glm_int4.adapters.adapter_names import DOWN, STEM, UP, Place, places
from glm_int4.adapters.applying import apply_loras
from glm_int4.adapters.lora_settings import LORA, LoraSettings, read_settings
from glm_int4.adapters.lora_tensors import Delta, Lora, read_lora
from glm_int4.adapters.target_modules import ALL_LINEAR, matches
from glm_int4.checkpoint.formats import layout
from glm_int4.errors import CheckpointError, InputError
from glm_int4.generation.engine import Engine
from glm_int4.models.config import Config
from glm_int4.models.past import NoCache
from glm_int4.tuning.arguments import LoraTrainingSettings
from glm_int4.tuning.loss import answer_loss
from glm_int4.tuning.methods.lora_layer import LoraLayer, RepeatableDropout
from glm_int4.tuning.methods.method import Method
from glm_int4.tuning.methods.tensor_files import save_safetensors


def target_places(config: Config, target_modules: Sequence[str]) -> dict[str, Place]:
    """The linear layers that are adapted, by their paths; "all-linear" leaves out the head, as in peft.

    Raises:
        InputError: an end of paths that no linear layer has.
    """
    known = places(config, [])
    if ALL_LINEAR in target_modules:
        if len(target_modules) > 1:
            raise InputError(f"expected {ALL_LINEAR} alone as target_modules, got {', '.join(target_modules)}")
        return {matrix.name: known[matrix.name] for matrix in layout.linears(config)}
    for name in target_modules:
        if not any(matches([name], path) for path in known):
            kinds = dict.fromkeys(path.rpartition(".")[2] for path in known)
            raise InputError(
                f"expected target_modules among {', '.join(kinds)} or {ALL_LINEAR} for this model, got {name}"
            )
    return {path: place for path, place in known.items() if matches(target_modules, path)}


class TrainedLora(Method):
    """A LoRA adapter on its way; the engine's model computes with it from now on.

    Args:
        engine: the model, loaded without an adapter.
        base_name: what the adapter says it was trained on.
    """

    title = "LoRA"

    def __init__(self, engine: Engine, settings: LoraTrainingSettings, base_name: str) -> None:
        self._engine, self._settings, self._base_name = engine, settings, base_name
        self._dropout = RepeatableDropout(settings.lora_dropout, settings.seed, engine.device)
        self._past = NoCache() if settings.gradient_checkpointing else None
        self._layers: dict[str, LoraLayer] = {}
        with torch.random.fork_rng(devices=[]):  # so that a caller's random numbers stay as they were
            torch.manual_seed(settings.seed)
            for path, place in target_places(engine.config, settings.target_modules).items():
                self._layers[path] = LoraLayer(
                    engine.model.get_submodule(path),
                    place.in_features,
                    place.out_features,
                    rank=settings.r,
                    scale=settings.lora_alpha / settings.r,
                    dropout=self._dropout,
                    number=len(self._layers),
                )
        for layer in self._layers.values():
            for parameter in (layer.down, layer.up):
                parameter.data = parameter.data.to(engine.device)
        self._put_in()

    def _put_in(self) -> None:
        for path, layer in self._layers.items():
            self._engine.model.set_submodule(path, layer)
        self._engine.model.forget_fused()

    def parameters(self) -> list[nn.Parameter]:
        """As of ``Method``."""
        return [parameter for layer in self._layers.values() for parameter in (layer.down, layer.up)]

    def loss(self, input_ids: Tensor, labels: Tensor, batch: int | None = None) -> Tensor:
        """As of ``Method``."""
        self._dropout.batch = batch
        return answer_loss(self._engine, input_ids, labels, self._past)

    @contextmanager
    def answering(self) -> Iterator[Engine]:
        """As of ``Method``; the adapter is applied as one that was loaded."""
        engine = self._engine
        for path, layer in self._layers.items():
            engine.model.set_submodule(path, layer.base)
        try:
            apply_loras(engine.model, [self._adapter()], engine.setup)
            yield Engine(engine.model, engine.info, engine.setup, engine.tokenizer, engine.max_length)
        finally:
            self._put_in()

    def _adapter(self) -> Lora:
        deltas = {
            path: [
                Delta(
                    rows=slice(0, len(layer.up)),
                    down=layer.down.detach().cpu(),
                    up=layer.up.detach().cpu(),
                    scale=layer.scale,
                    magnitude=None,
                )
            ]
            for path, layer in self._layers.items()
        }
        return Lora(folder=Path(), deltas=deltas)

    def write(self, folder: Path) -> None:
        """As of ``Method``: what peft's ``save_pretrained`` writes."""
        tensors: dict[str, Tensor] = {}
        for path, layer in self._layers.items():
            for part, parameter in ((DOWN, layer.down), (UP, layer.up)):
                tensors[f"{STEM}{path}.{part}.weight"] = parameter.detach().float().cpu()
        alpha = self._settings.lora_alpha
        config = {
            "peft_type": LORA,
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self._base_name,
            "inference_mode": True,
            "r": self._settings.r,
            "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
            "lora_dropout": self._settings.lora_dropout,
            "target_modules": self._kinds(),
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "modules_to_save": None,
        }
        save_safetensors(folder / FILES[0], tensors)
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")

    def _kinds(self) -> list[str]:
        """Ends of paths that mean the layers, and no others."""
        if ALL_LINEAR in self._settings.target_modules:
            return list(dict.fromkeys(path.rpartition(".")[2] for path in self._layers))
        return list(self._settings.target_modules)

    def restore(self, folder: Path, state: Mapping[str, Any]) -> None:
        """As of ``Method``."""
        settings = read_settings(folder)
        if not isinstance(settings, LoraSettings):
            raise CheckpointError(f"expected a LoRA adapter in {folder}, got a prefix; delete it to go on from another")
        deltas = read_lora(folder, settings, 1.0, self._engine.config).deltas
        if deltas.keys() != self._layers.keys():
            raise CheckpointError(
                f"expected an adapter of the same layers in {folder}, got others; delete it to go on from another"
            )
        with torch.no_grad():
            for path, layer in self._layers.items():
                layer.down.copy_(deltas[path][0].down)
                layer.up.copy_(deltas[path][0].up)
