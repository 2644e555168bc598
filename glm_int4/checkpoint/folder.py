"""Finding a checkpoint: a local folder or a hub id, its config and its weight files."""

import json
import re
from pathlib import Path
from typing import Any

from glm_int4.errors import CheckpointError, ConfigError, InputError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_SMALL_FILES = ["*.json", "*.model", "MODEL_LICENSE"]
_HUB_WEIGHTS = ["*.safetensors", "*.bin"]
_INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")


def resolve_folder(model: str | Path) -> Path:
    """Return the local folder of ``model``, downloading a hub id into the hub's own cache.

    Raises:
        InputError: neither a folder nor a hub id that can be downloaded.
    """
    path = Path(model)
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:
        raise InputError(
            f"expected a checkpoint folder or a hub id, got {str(model)[:80]}: {error.strerror}"
        ) from error
    if is_folder:
        return path
    if exists:
        raise InputError(f"expected a checkpoint folder, got the file {path}; give the folder that holds it")
    if not _HUB_ID.fullmatch(str(model)):
        raise InputError(f"expected a checkpoint folder or a hub id (owner/name), got {model}: there is no such folder")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(str(model), allow_patterns=_HUB_SMALL_FILES))
        # Some repositories hold the weights twice: take one format.
        indexed = [w for w, index in zip(_HUB_WEIGHTS, _INDEX_FILES, strict=True) if (folder / index).is_file()]
        weights = indexed[:1] or _HUB_WEIGHTS
        return Path(snapshot_download(str(model), allow_patterns=[*_HUB_SMALL_FILES, *weights]))
    except Exception as error:  # the hub client raises errors of several libraries
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"expected a checkpoint folder or a hub id, got {model}: there is no such folder, "
            f"and the download failed ({reason}); check the name and the network, or pass a local folder"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """Return the parsed ``config.json`` of a checkpoint folder.

    Raises:
        ConfigError: it is missing or not a JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(f"expected config.json in {folder}, got none; is this a checkpoint folder?")
    return read_json(path, ConfigError)


def read_json(path: Path, error_class: type[Exception]) -> dict[str, Any]:
    """Return a JSON object from a file, or raise ``error_class`` naming the file."""
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise error_class(f"expected JSON in {path}, got something else ({error}); download it again") from error
    if not isinstance(value, dict):
        raise error_class(f"expected a JSON object in {path}, got {type(value).__name__}; download it again")
    return value


def find_shards(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    """Return the weight files of a folder and, where an index says it, each tensor's file.

    Safetensors win over ``.bin`` files. An index is needed where there is more than one shard.

    Raises:
        CheckpointError: no weights, a shard of the index is missing, or shards without their index.
    """
    for single, index in zip(_SINGLE_FILES, _INDEX_FILES, strict=True):
        if (folder / index).is_file():
            return _from_index(folder, index)
        if (folder / single).is_file():
            return [folder / single], None
        stray = sorted(folder.glob(single.replace(".", "-*-of-*.")))
        if stray:
            raise CheckpointError(
                f"expected {index} beside {stray[0].name} in {folder}, got none; "
                "the checkpoint is incomplete, download the index too"
            )
    raise CheckpointError(f"expected {' or '.join(_SINGLE_FILES)} (or shards with an index) in {folder}, got none")


def _from_index(folder: Path, index: str) -> tuple[list[Path], dict[str, str]]:
    weight_map = read_json(folder / index, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(f"expected a weight_map of file names in {folder / index}, got none; download it again")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"expected plain file names in {folder / index}, got {name!r}; the index is not safe")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"expected the {len(names)} shards that {index} names in {folder}, "
            f"got none of {', '.join(missing)}; download the missing files"
        )
    return [folder / name for name in names], weight_map
