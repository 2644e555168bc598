"""Writing a checkpoint folder so that it is either complete or not there.

All files go to ``<output>.partial``; each shard is written under a temporary name, synced and renamed,
and the folder gets its final name last (``publishing.py``). What is finished is noted, so that a run can
be resumed.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from glm_int4.checkpoint.files.folder import PROGRESS
from glm_int4.checkpoint.files.safetensors_file import SafetensorsWriter, TensorSpec
from glm_int4.checkpoint.writing.publishing import (
    check_output,
    empty_folder,
    is_begun,
    is_ours,
    noted_progress,
    partial_folder,
    publish,
    put_back,
)
from glm_int4.errors import OutputError
from glm_int4.system import lock_folder, size_text

MAX_SHARD_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Unit:
    """Tensors that stay together in a shard; ``key`` is what their writer knows them by."""

    key: str
    specs: tuple[TensorSpec, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(spec.num_bytes for spec in self.specs)


def fill_shards(units: Sequence[Unit], max_bytes: int = MAX_SHARD_BYTES) -> list[list[Unit]]:
    """Fill shards in order, none larger than ``max_bytes`` unless a single unit is."""
    shards: list[list[Unit]] = []
    size = 0
    for unit in units:
        if not shards or size + unit.num_bytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(unit)
        size += unit.num_bytes
    return shards


class OutputFolder:
    """The folder being written. Use as a context: an error removes what was written.

    With ``resume``, and after Ctrl-C, the unfinished folder stays for a later ``resume``. While it is
    being written it is locked, and it does not load.

    Args:
        output: the final name, checked by ``check_output``.
        resume: go on from ``<output>.partial`` where ``fingerprint`` agrees.
        overwrite: ``output`` may exist.
        fingerprint: JSON value that identifies sources and options.
    Raises:
        OutputError: nothing can be written there, another run is writing there, or it was begun with
            another fingerprint.
    """

    def __init__(self, output: Path, *, resume: bool, overwrite: bool, fingerprint: Any) -> None:
        self.output = output
        self.partial = partial_folder(output)
        self._keep, self._overwrite = resume, overwrite
        self._lock: int | None = None
        self._new_parents: list[Path] = []
        owned = cleared = False
        try:
            self._new_parents = [p for p in (self.partial, *self.partial.parents) if not p.exists()][1:]
            self.partial.mkdir(parents=True, exist_ok=True)
            self._lock = lock_folder(self.partial)
            owned = True
            put_back(output)
            check_output(output, overwrite=overwrite)
            progress = self._read_progress(fingerprint) if resume else None
            self._clear(progress)
            cleared = True
            self._progress: dict[str, Any] = progress or {"fingerprint": fingerprint, "shards": {}}
            self.write_json(PROGRESS, self._progress)
        except (OSError, OutputError) as error:
            if cleared and not resume:
                self._discard()
            # The folder of another run stays, which may be empty still.
            self._close(remove_empty=owned or isinstance(error, OSError))
            if isinstance(error, OutputError):
                raise
            raise OutputError(
                f"expected to write {self.partial}, got: {error.strerror}; choose another output"
            ) from error

    def _clear(self, progress: dict[str, Any] | None) -> None:
        """Remove what an earlier run left, but for what ``progress`` lists."""
        if progress is None:
            if not is_begun(self.partial) and not is_ours(self.partial):
                raise OutputError(
                    f"expected {self.partial} to be free for the unfinished checkpoint, got a folder with other "
                    "files; move it away or choose another output"
                )
            empty_folder(self.partial)
            return
        for entry in self.partial.iterdir():
            if entry.name != PROGRESS and entry.name not in progress["shards"] and not entry.is_dir():
                entry.unlink()

    def _read_progress(self, fingerprint: Any) -> dict[str, Any] | None:
        """What an earlier run noted, or None where there is nothing to go on from."""
        try:
            progress = noted_progress(self.partial)
            begun, shards = progress["fingerprint"], progress["shards"]
            valid = all(
                isinstance(shard["sha256"], str) and all(isinstance(note, dict) for note in shard["notes"])
                for shard in shards.values()
            )
        except (KeyError, TypeError, AttributeError):
            return None
        if not valid:
            return None
        if begun != fingerprint:
            raise OutputError(
                f"expected {self.partial} to come from the same checkpoint and options, got others; "
                "run without --resume to start over"
            )
        return progress

    def __enter__(self) -> "OutputFolder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None or self._keep or issubclass(kind, KeyboardInterrupt):
            self._close()
        else:
            self._discard()

    def _discard(self) -> None:
        """Remove the unfinished folder and the parents that were made for it."""
        if self.partial.is_dir():
            with contextlib.suppress(OSError):
                empty_folder(self.partial)
        self._close(remove_empty=True)

    def _close(self, remove_empty: bool = False) -> None:
        for folder in (self.partial, *self._new_parents) if remove_empty else ():
            try:
                folder.rmdir()
            except FileNotFoundError:  # which was not made
                continue
            except OSError:  # somebody else's file is in it by now
                break
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def check_space(self, sizes: Mapping[str, int]) -> None:
        """Raise OutputError where the disk cannot hold shards of these sizes; those that are there count as held."""
        num_bytes = sum(size for name, size in sizes.items() if not (self.partial / name).is_file())
        free = shutil.disk_usage(self.partial).free
        if num_bytes > free:
            raise OutputError(
                f"expected {size_text(num_bytes)} free for {self.output}, got {size_text(free)}; "
                "free some space or choose another disk"
            )

    def finished(self, name: str) -> list[dict[str, Any]] | None:
        """What ``write_shard`` noted for a shard that an earlier run completed, or None.

        A shard whose bytes are not those that were written counts as unfinished.
        """
        entry = self._progress["shards"].get(name)
        if entry is None or not (self.partial / name).is_file() or sha256(self.partial / name) != entry["sha256"]:
            return None
        return entry["notes"]

    def write_shard(
        self, name: str, units: Sequence[Unit], fill: Callable[[Unit, SafetensorsWriter], dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Write one shard; ``fill`` writes a unit's tensors and returns what to note about it."""
        temporary = self.partial / (name + ".tmp")
        writer = SafetensorsWriter(temporary, [s for u in units for s in u.specs], {"format": "pt"})
        try:
            notes = [fill(unit, writer) for unit in units]
        except BaseException:
            with contextlib.suppress(OSError):  # what could not be written cannot be flushed either
                writer.close(sync=False)
            raise
        assert writer.remaining_bytes == 0, f"{writer.remaining_bytes} bytes of {name} were not written"
        writer.close(sync=True)
        temporary.replace(self.partial / name)
        self._progress["shards"][name] = {"sha256": sha256(self.partial / name), "notes": notes}
        self.write_json(PROGRESS, self._progress)
        return notes

    @property
    def checksums(self) -> dict[str, str]:
        """SHA-256 of the shards that are finished."""
        return {name: shard["sha256"] for name, shard in self._progress["shards"].items()}

    def copy(self, source: Path) -> None:
        """Copy a file under its own name."""
        temporary = self.partial / (source.name + ".tmp")
        with temporary.open("wb") as file:
            file.write(source.read_bytes())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.partial / source.name)

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a small safetensors file, complete or not at all."""
        temporary = self.partial / (name + ".tmp")
        writer = SafetensorsWriter(
            temporary, [TensorSpec(key, tuple(t.shape), t.dtype) for key, t in tensors.items()], {"format": "pt"}
        )
        try:
            for key, tensor in tensors.items():
                writer.write(key, tensor)
        finally:
            writer.close(sync=True)
        temporary.replace(self.partial / name)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file, complete or not at all."""
        temporary = self.partial / (name + ".tmp")
        # Half a surrogate pair, which JSON can hold and UTF-8 cannot, is written as JSON's escape again.
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.partial / name)

    def publish(self) -> None:
        """Give the folder its final name; see ``publishing.publish``."""
        self._keep = True  # it is complete: where something is in its way by now, --resume puts it in place
        check_output(self.output, overwrite=self._overwrite)
        publish(self.partial, self.output)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
