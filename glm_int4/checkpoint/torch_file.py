"""``.bin`` files: mapped, and opened without ever running what a pickle asks for."""

import pickle
from pathlib import Path

import torch
from torch import Tensor

from glm_int4.errors import CheckpointError


def map_torch_file(path: Path) -> tuple[dict[str, Tensor], set[str]]:
    """Open a ``.bin`` file, mapped where its format allows.

    Returns:
        The tensors by name, and the names of those that are views of the mapping.
    Raises:
        CheckpointError: truncated, not a state dict, or a pickle that wants to run code.
    """
    mapped = True
    try:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            mapped = False  # the format of torch before 1.6
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"expected only tensors in {path}, got a pickle that is damaged or asks to run code; "
            "nothing of it was run: do not trust this file"
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"expected a complete torch file in {path}, got one that cannot be read; "
            "it is truncated or not a checkpoint, download it again"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"expected a dictionary of tensors in {path}, got something else; is this a checkpoint?")
    return state, set(state) if mapped else set()
