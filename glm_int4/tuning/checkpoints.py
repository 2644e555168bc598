"""Checkpoints of a training run: written whole or not at all, in the official layout, and read to go on.

``checkpoint-N`` holds ``pytorch_model.bin`` and ``config.json`` as the official code writes them, the same
parameters as safetensors, and ``training_state.pt`` to go on from.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glm_int4.checkpoint.files.folder import PARTIAL_SUFFIX
from glm_int4.checkpoint.files.safetensors_file import SafetensorsWriter, TensorSpec
from glm_int4.checkpoint.formats.tensor_names import PREFIX_STEM
from glm_int4.checkpoint.prefix_file import OFFICIAL_FILE, SAFETENSORS_FILE, newest_checkpoint
from glm_int4.errors import CheckpointError, InputError, OutputError
from glm_int4.models.prefix_encoder import PrefixEncoder
from glm_int4.system import sync_folder
from glm_int4.tuning.arguments import PTuneSettings
from glm_int4.tuning.evaluation import PREDICTIONS, RESULTS
from glm_int4.tuning.log import writing

STATE_FILE, LOG_FILE, PLOT_FILE = "training_state.pt", "trainer_log.jsonl", "loss.png"
_OURS = (LOG_FILE, PLOT_FILE, PREDICTIONS, RESULTS)


def make_folder(output: Path) -> None:
    """Make the output folder where there is none yet."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"expected an output folder that can be made, got {output}: {error.strerror}") from error


def prepare_output(output: Path, *, resume: bool, overwrite: bool) -> None:
    """Empty the output folder of an earlier run if asked to.

    Raises:
        OutputError: it holds something, and neither ``resume`` nor ``overwrite`` is given; or it holds files
            that no run has written.
    """
    entries = list(output.iterdir())
    unfinished = [entry for entry in entries if _is_checkpoint(entry) and entry.name.endswith(PARTIAL_SUFFIX)]
    for entry in unfinished if resume or overwrite else []:
        shutil.rmtree(entry)
    if not entries or resume:
        return
    if not overwrite:
        raise OutputError(
            f"expected a new output folder, got {output}, which exists; "
            "pass --resume to go on, --overwrite or another name"
        )
    ours = [entry for entry in entries if entry.name.removesuffix(".tmp") in _OURS or _is_checkpoint(entry)]
    foreign = sorted(entry.name for entry in set(entries) - set(ours))
    if foreign:
        raise OutputError(
            f"expected a folder of an earlier run to overwrite, got {output} with {foreign[0]} in it; "
            "choose another name"
        )
    for entry in ours:
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink()


def _is_checkpoint(path: Path) -> bool:
    """Whether a run has written this folder, complete or not."""
    return path.is_dir() and re.fullmatch(r"checkpoint-\d+", path.name.removesuffix(PARTIAL_SUFFIX)) is not None


def save_checkpoint(folder: Path, encoder: PrefixEncoder, state: dict[str, Any], model_config: dict[str, Any]) -> None:
    """Write a checkpoint under another name, then rename it.

    Args:
        state: what the run needs to go on.
        model_config: ``config.json`` of the model; the checkpoint's says that there is a prefix.
    Raises:
        OutputError: it cannot be written, for example because the disk is full.
    """
    partial = folder.with_name(folder.name + PARTIAL_SUFFIX)
    parameters = {PREFIX_STEM + name: p.detach().float().cpu() for name, p in encoder.named_parameters()}
    config = {key: value for key, value in model_config.items() if key not in ("quantization_config", "auto_map")}
    config |= {"pre_seq_len": encoder.pre_seq_len, "prefix_projection": encoder.prefix_projection}
    try:
        with writing(folder):
            partial.mkdir()
            for name, value in ((OFFICIAL_FILE, parameters), (STATE_FILE, state)):
                with (partial / name).open("wb") as file:
                    torch.save(value, file)
                    file.flush()
                    os.fsync(file.fileno())
            _save_safetensors(partial / SAFETENSORS_FILE, parameters)
            (partial / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")
            sync_folder(partial)
            os.rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_folder(folder.parent)


def _save_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    specs = [TensorSpec(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()]
    writer = SafetensorsWriter(path, specs, {"format": "pt"})
    try:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    finally:
        writer.close(sync=True)


def load_state(output: Path, data_digest: str, settings: PTuneSettings) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of a run and its state; None where there is none.

    Raises:
        CheckpointError: it cannot be read.
        InputError: the run was begun with other arguments or other data.
    """
    folder = newest_checkpoint(output)
    if folder is None:
        return None
    path = folder / STATE_FILE
    try:
        with path.open("rb") as file:
            state = torch.load(file, map_location="cpu", weights_only=True)
        settings.check_resumed(state["settings"])
        same_data = state["data_digest"] == data_digest
    except InputError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(
            f"expected a state to go on from in {path}, got none that can be read ({type(error).__name__}); "
            f"delete {folder} to go on from an earlier one"
        ) from error
    if not same_data:
        raise InputError(
            f"expected the training data that {folder} was trained on, got other rows; "
            "give the same file and columns, or another output"
        )
    return folder, state
