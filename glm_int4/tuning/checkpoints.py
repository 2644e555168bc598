"""Checkpoints of a training run: written whole or not at all, and read to go on.

``checkpoint-N`` holds what the method writes (``methods/``), and ``training_state.pt`` to go on from.
"""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from glm_int4.checkpoint.files.folder import PARTIAL_SUFFIX
from glm_int4.checkpoint.prefix_file import newest_checkpoint
from glm_int4.errors import CheckpointError, InputError, OutputError
from glm_int4.system import sync_folder
from glm_int4.tuning.arguments import PTuneSettings, TrainingSettings
from glm_int4.tuning.evaluation import PREDICTIONS, RESULTS
from glm_int4.tuning.log import writing
from glm_int4.tuning.methods.method import Method
from glm_int4.tuning.methods.tensor_files import save_pickle

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


def save_checkpoint(folder: Path, trained: Method, state: dict[str, Any]) -> None:
    """Write a checkpoint under another name, then rename it.

    Args:
        state: what the run needs to go on, beside the method's own.
    Raises:
        OutputError: it cannot be written, for example because the disk is full.
    """
    partial = folder.with_name(folder.name + PARTIAL_SUFFIX)
    try:
        with writing(folder):
            partial.mkdir()
            trained.write(partial)
            save_pickle(partial / STATE_FILE, state | trained.state())
            sync_folder(partial)
            os.rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_folder(folder.parent)


def load_state(output: Path, data_digest: str, settings: TrainingSettings) -> tuple[Path, dict[str, Any]] | None:
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
        begun = state.get("method", PTuneSettings.method)  # earlier releases had no other
        if begun != settings.method:
            raise InputError(f"expected the method {begun} to resume the run as it was begun, got {settings.method}")
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
