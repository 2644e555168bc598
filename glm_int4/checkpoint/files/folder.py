"""Finding a checkpoint: a local folder or a hub id, its config and its weight files."""

import errno
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from glm_int4.downloads import ABSENT, found_instead, read_json, shown, shown_name
from glm_int4.errors import CheckpointError, ConfigError, InputError, TokenizerError
from glm_int4.system import write_fault

logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_SMALL_FILES = ["*.json", "*.model", "*.jinja", "*.txt", "tokenization_chatglm.py", "MODEL_LICENSE", "LICENSE"]
_HUB_WEIGHTS = ["*.safetensors", "*.bin"]
_INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
# Beside the files, in a folder that the hub's client downloads to, and in its cache.
_UNFINISHED_DOWNLOADS = ("*.incomplete", ".cache/huggingface/download/*.incomplete", "blobs/*.incomplete")
_SHARD_NAME = re.compile(r"(?:model|pytorch_model)-\d{5}-of-(\d{5})\.(?:safetensors|bin)")
_TEXT_SUFFIXES, _MOST_TEXT_BYTES = (".model", ".json", ".jinja", ".txt", ".md", ".py", ""), 64 << 20
_MOST_SHARDS = 10_000
_MOST_NAMED = 6
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

_GOES_ON = "let it finish, or run it again: it goes on"

# While a run writes a checkpoint, its folder bears this suffix and holds this note.
PARTIAL_SUFFIX, PROGRESS = ".partial", "progress.json"

# What find_shards returns: the weight files, and where an index says it, each tensor's file.
Shards = tuple[list[Path], dict[str, str] | None]


def resolve_folder(
    model: str | Path, what: str = "a checkpoint", files: Sequence[str] = (), **hub_options: Any
) -> Path:
    """Return the local folder of ``model``, downloading a hub id into the hub's own cache.

    Args:
        model: folder or hub id.
        what: the folder holds, for errors. files: to download; none stands for a checkpoint's.
        hub_options: of the hub client's ``snapshot_download``, such as ``revision``.
    Raises:
        InputError: neither a folder nor a hub id that can be downloaded.
    """
    path = Path(model)
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:
        raise InputError(f"expected {what} folder or a hub id, got {str(model)[:80]}: {error.strerror}") from error
    if is_folder:
        return _snapshot_in(path) or path
    if exists:
        raise InputError(f"expected {what} folder, got the file {path}; give the folder that holds it")
    if not _HUB_ID.fullmatch(str(model)):
        raise InputError(f"expected {what} folder or a hub id (owner/name), got {model}: there is no such folder")
    from huggingface_hub import constants, snapshot_download

    cache = Path(hub_options.get("cache_dir") or constants.HF_HUB_CACHE)
    # What is there already can be used from a folder that cannot be written.
    known = os.path.isdir(cache / f"models--{str(model).replace('/', '--')}")
    if not known and (fault := write_fault(cache, make=False)):
        raise _no_room(model, f"{cache}: {fault}")
    try:
        if files:
            return Path(snapshot_download(str(model), allow_patterns=list(files), **hub_options))
        folder = Path(snapshot_download(str(model), allow_patterns=_HUB_SMALL_FILES, **hub_options))
        # Some repositories hold the weights twice: take one format.
        indexed = [w for w, index in zip(_HUB_WEIGHTS, _INDEX_FILES, strict=True) if (folder / index).is_file()]
        weights = indexed[:1] or _HUB_WEIGHTS
        return Path(snapshot_download(str(model), allow_patterns=[*_HUB_SMALL_FILES, *weights], **hub_options))
    except Exception as error:  # the hub client raises errors of several libraries
        if fault := _unwritable(error):
            raise _no_room(model, fault) from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"expected {what} folder or a hub id, got {model}: there is no such folder, "
            f"and the download failed ({reason}); check the name and the network, or pass a local folder"
        ) from error


def _no_room(model: str | Path, fault: str) -> InputError:
    return InputError(
        f"expected a folder that can be written, to download {model} to, got {fault}; "
        "set HF_HOME to one, or pass a local folder"
    )


def _unwritable(error: BaseException | None) -> str | None:
    """The file that could not be written, and why, where that is behind an error; None for any other error."""
    while error is not None:
        # Sockets can fail with some of these numbers too, but name no file.
        if isinstance(error, OSError) and error.errno in _NOT_WRITABLE and error.filename is not None:
            return f"{error.filename}: {error.strerror}"
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            return f"the hub's cache: {error.strerror}"
        error = error.__cause__ or error.__context__
    return None


def _snapshot_in(folder: Path) -> Path | None:
    """The snapshot in a folder ``models--owner--name`` of the hub's cache; None for any other folder."""
    snapshots = [path for path in folder.glob("snapshots/*") if path.is_dir()]
    if not snapshots or (folder / "config.json").exists():
        return None
    reference = folder / "refs" / "main"
    try:
        named = folder / "snapshots" / reference.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError):
        named = reference
    return named if named in snapshots else max(snapshots, key=lambda path: path.stat().st_mtime)


def read_config(folder: Path) -> dict[str, Any]:
    """Return the parsed ``config.json`` of a checkpoint folder.

    Raises:
        ConfigError: it is missing or not a JSON object.
    """
    if folder.name.endswith(PARTIAL_SUFFIX) and found_instead(folder / PROGRESS) != ABSENT:
        raise ConfigError(
            f"expected a complete checkpoint, got the unfinished {folder}; run the same quantize command with --resume"
        )
    path = folder / "config.json"
    if found_instead(path) != ABSENT:
        return read_json(path, ConfigError)
    if _adapter_in(folder):
        raise ConfigError(f"expected a checkpoint with config.json in {folder}, got {_adapter_in(folder)}")
    raise ConfigError(
        f"expected config.json in {folder}, got none; is this a checkpoint folder?{_download_hint(folder)}"
    )


def read_tokenizer_config(folder: Path) -> dict[str, Any] | None:
    """Return the parsed ``tokenizer_config.json`` of a checkpoint folder, None where there is none.

    Raises:
        TokenizerError: it is not a JSON object.
    """
    path = folder / "tokenizer_config.json"
    return None if found_instead(path) == ABSENT else read_json(path, TokenizerError)


def text_files(folder: Path) -> list[Path]:
    """The files beside a checkpoint's weights: configs, tokenizers, texts; no hidden or unfinished ones, no indices."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.suffix in _TEXT_SUFFIXES
        and not path.name.startswith(".")
        and path.name not in _INDEX_FILES
        and path.is_file()
        and path.stat().st_size <= _MOST_TEXT_BYTES
    ]


def has_weights(folder: Path) -> bool:
    """Whether a folder holds weight files of a checkpoint, complete or not."""
    return any(found_instead(folder / name) != ABSENT for name in (*_SINGLE_FILES, *_INDEX_FILES)) or any(
        _SHARD_NAME.fullmatch(path.name) for path in folder.glob("*-of-*")
    )


def find_shards(folder: Path) -> Shards:
    """Return the weight files of a folder and, where an index says it, each tensor's file.

    The first complete set counts: safetensors before ``.bin`` files, what an index names before a single
    file before all the shards ``-00001-of-N`` to ``-N-of-N`` without an index.

    Raises:
        CheckpointError: no set is complete; it says what is missing of the first.
    """
    try:
        return _complete_set(folder)
    except OSError as error:
        raise CheckpointError(f"expected a readable folder {folder}, got: {error.strerror or error}") from error


def _complete_set(folder: Path) -> Shards:
    faults: list[tuple[int, str]] = []  # files that are there, and what is wrong
    for single, index in zip(_SINGLE_FILES, _INDEX_FILES, strict=True):
        try:
            for paths, weight_map, what in _sets(folder, single, index):
                fault = _fault(folder, paths, what)
                if fault is None:
                    if faults:
                        logger.warning("using %s: %s", paths[0].name, faults[0][1])
                    return paths, weight_map
                faults.append((sum(found_instead(path) is None for path in paths), fault))
        except CheckpointError as error:
            faults.append((0, str(error)))
    if faults:
        raise CheckpointError(max(faults, key=lambda fault: fault[0])[1])
    found = _adapter_in(folder) or f"none{_download_hint(folder)}"
    raise CheckpointError(f"expected {' or '.join(_SINGLE_FILES)} (or all shards) in {folder}, got {found}")


def _sets(folder: Path, single: str, index: str) -> Iterator[tuple[list[Path], dict[str, str] | None, str]]:
    """Sets of files of one format that may be the weights: paths, tensors' files, and what to call them."""
    indexed = found_instead(folder / index) != ABSENT
    if indexed:
        weight_map = _read_index(folder / index)
        names = sorted(set(weight_map.values()))
        yield [folder / name for name in names], weight_map, f"the {len(names)} files that {index} names"
    if found_instead(folder / single) != ABSENT:
        yield [folder / single], None, "the weights"
    if indexed:
        return
    stem, suffix = single.split(".")
    totals = {int(m[1]) for path in folder.glob(f"{stem}-*") if (m := _SHARD_NAME.fullmatch(path.name))}
    for total in sorted(t for t in totals if 1 <= t <= _MOST_SHARDS):
        names = [f"{stem}-{i:05d}-of-{total:05d}.{suffix}" for i in range(1, total + 1)]
        if any(found_instead(folder / name) != ABSENT for name in names):
            yield [folder / name for name in names], None, f"all of the {total} shards"


def _read_index(path: Path) -> dict[str, str]:
    weight_map = read_json(path, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(f"expected a weight_map of file names in {path}, got none; download it again")
    for name in set(weight_map.values()):
        if not re.fullmatch(r"[\w.-]{1,200}\.(safetensors|bin)", name):
            raise CheckpointError(
                f"expected names of .safetensors or .bin files in {path}, got {shown(name)}; "
                "take the index from the official repository"
            )
    return weight_map


def _fault(folder: Path, paths: list[Path], what: str) -> str | None:
    """What is missing of a set of files, or not what was to be downloaded."""
    missing = [path.name for path in paths if found_instead(path) == ABSENT]
    if missing:
        rest = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
        return (
            f"expected {what} in {folder}, got none of {', '.join(missing[:_MOST_NAMED])}{rest}; "
            f"download the missing files{_download_hint(folder)}"
        )
    faults = ((path, found_instead(path)) for path in paths)
    return next((f"expected weights in {path}, got {fault}" for path, fault in faults if fault is not None), None)


def _adapter_in(folder: Path) -> str | None:
    name = next((name for name in _ADAPTER_FILES if found_instead(folder / name) != ABSENT), None)
    return name and f"the adapter {name}; load its base model, with --adapter {folder}"


def unfinished_in(folder: Path) -> str:
    """What to say of an unfinished download in a folder, or in the hub's cache that holds it; "" for none."""
    places = (folder, _cache_of(folder))
    found = next((path for place in places for name in _UNFINISHED_DOWNLOADS for path in place.glob(name)), None)
    return f" (an unfinished download lies there, {shown_name(found.name)}: {_GOES_ON})" if found else ""


def _download_hint(folder: Path) -> str:
    """What an error about a missing file says of downloads."""
    if (_cache_of(folder) / "blobs").is_dir():
        return unfinished_in(folder) or f" (a folder of the hub's cache with an unfinished download: {_GOES_ON})"
    return unfinished_in(folder)


def _cache_of(folder: Path) -> Path:
    """The folder ``models--owner--name`` of the hub's cache that holds a snapshot; any other folder itself."""
    return folder.parent.parent if folder.parent.name == "snapshots" else folder
