"""``.bin`` files: mapped, and opened without ever running what a pickle asks for."""

import logging
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glm_int4.downloads import shown_name
from glm_int4.errors import CheckpointError
from glm_int4.system import opened_for_torch

logger = logging.getLogger(__name__)

# Where Lightning, DeepSpeed and others keep the weights beside an optimizer.
_STATE_DICTS = ("state_dict", "module", "model", "model_state_dict")
_MAX_PICKLE_BYTES = 64 << 20  # the official shards' have 10 KB


def map_torch_file(path: Path) -> tuple[dict[str, Tensor], set[str]]:
    """Open a ``.bin`` file, mapped where its format allows.

    Returns:
        The tensors by name, and the names of those that are views of the mapping.
    Raises:
        CheckpointError: truncated, not a state dict, or a pickle that wants to run code.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols: the error below says what matters
            state, mapped = _load(path)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"expected only tensors in {path}, got a pickle that is damaged or asks to run code; "
            "nothing of it was run: do not trust this file"
        ) from error
    except PermissionError as error:
        raise CheckpointError(f"expected a readable {path}, got: {error.strerror}") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(
            f"expected a complete torch file in {path}, got one that cannot be read; "
            "it is truncated or not a checkpoint, download it again"
        ) from error
    state = _state_dict(state)
    if not isinstance(state, dict) or not all(_is_plain(k, v) for k, v in state.items()):
        raise CheckpointError(f"expected a dictionary of tensors in {path}, got something else; is this a checkpoint?")
    return {name: tensor.detach() for name, tensor in state.items()}, set(state) if mapped else set()


def _check_records(path: Path) -> None:
    """Raise CheckpointError for a zip archive whose records would take more memory than the file has bytes."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            is_pickle = record.filename.endswith(".pkl")
            if record.compress_type != zipfile.ZIP_STORED or (is_pickle and record.file_size > _MAX_PICKLE_BYTES):
                raise CheckpointError(
                    f"expected uncompressed records and a pickle of at most {_MAX_PICKLE_BYTES} bytes in {path}, "
                    f"got {shown_name(record.filename)} of {record.file_size} bytes; torch.save writes no such file"
                )


def _load(path: Path) -> tuple[Any, bool]:
    """What ``torch.load`` returns, and whether it is mapped."""
    _check_records(path)
    with opened_for_torch(path) as name:
        try:
            return torch.load(name, map_location="cpu", weights_only=True, mmap=True), True
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            return torch.load(name, map_location="cpu", weights_only=True), False  # the format of torch before 1.6


def _state_dict(stored: object) -> object:
    """The tensors of a file that a training program has written around them, or what was stored."""
    if isinstance(stored, dict) and not all(isinstance(value, Tensor) for value in stored.values()):
        for key in _STATE_DICTS:
            inner = stored.get(key)
            if isinstance(inner, dict) and inner and all(isinstance(value, Tensor) for value in inner.values()):
                logger.info("reading the tensors under %s", key)
                return inner
    return stored


def _is_plain(name: object, value: object) -> bool:
    """Whether an entry is a named, dense tensor whose elements lie one after the other in its storage."""
    return (
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout is torch.strided
        and not value.is_meta
        and (value.is_contiguous() or value.numel() * value.element_size() <= value.untyped_storage().nbytes())
    )
