"""The file of an adapter's tensors, mapped; opening it runs no code."""

from pathlib import Path

from torch import Tensor

from glm_int4.checkpoint.files.safetensors_file import map_safetensors
from glm_int4.checkpoint.files.torch_file import map_torch_file
from glm_int4.downloads import ABSENT, found_instead
from glm_int4.errors import CheckpointError

CONFIG_FILE = "adapter_config.json"
FILES = ("adapter_model.safetensors", "adapter_model.bin")


def map_adapter(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """An adapter's file and its tensors by name; safetensors come before ``.bin``.

    Raises:
        CheckpointError: there is no file, or it is damaged, or asks to run code.
    """
    for name in FILES:
        path = folder / name
        fault = found_instead(path)
        if fault == ABSENT:
            continue
        if fault is not None:
            raise CheckpointError(f"expected an adapter in {path}, got {fault}")
        return path, (map_safetensors(path) if path.suffix == ".safetensors" else map_torch_file(path))[0]
    raise CheckpointError(f"expected {' or '.join(FILES)} in {folder}, got none; download the whole adapter")
