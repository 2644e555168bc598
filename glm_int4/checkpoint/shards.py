"""Writing a checkpoint folder so that it is either complete or not there.

All files go to ``<output>.partial``; each shard is written under a temporary name, synced and renamed,
and the folder gets its final name last. What is finished is noted, so that a run can be resumed.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm_int4.checkpoint.safetensors_file import SafetensorsWriter, TensorSpec
from glm_int4.errors import OutputError

MAX_SHARD_BYTES = 1 << 30
_PROGRESS = "progress.json"
REPORT = "quantization_report.json"


@dataclass(frozen=True, slots=True)
class Unit:
    """Tensors that stay together in a shard; ``key`` is what their writer knows them by."""

    key: str
    specs: tuple[TensorSpec, ...]

    @property
    def num_bytes(self) -> int:
        return sum(spec.num_bytes for spec in self.specs)


def plan_shards(units: Sequence[Unit], max_bytes: int = MAX_SHARD_BYTES) -> list[list[Unit]]:
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


def check_output(output: Path, *, overwrite: bool) -> None:
    """Raise OutputError where ``output`` may not become the result."""
    try:
        taken = output.exists() and not (output.is_dir() and not any(output.iterdir()))
    except OSError as error:
        raise OutputError(f"expected an output folder that can be made, got {output}: {error.strerror}") from error
    if taken and not output.is_dir():
        raise OutputError(
            f"expected the name of a folder as output, got {output}, which is a file; choose another name"
        )
    if taken and not overwrite:
        raise OutputError(f"expected a new output folder, got {output}, which exists; pass --overwrite or another name")


class OutputFolder:
    """The folder being written. Use as a context: an error removes what was written.

    With ``resume``, and after Ctrl-C, the unfinished folder stays for a later ``resume``.

    Args:
        output: the final name, checked by ``check_output``.
        resume: go on from ``<output>.partial`` where ``fingerprint`` agrees.
        fingerprint: JSON value that identifies sources and options.
    Raises:
        OutputError: nothing can be written there, or it was begun with another fingerprint.
    """

    def __init__(self, output: Path, *, resume: bool, fingerprint: Any) -> None:
        self.output = output
        self.partial = output.with_name(output.name + ".partial")
        self._keep = resume
        progress = self._read_progress(fingerprint) if resume else None
        try:
            if progress is None and self.partial.exists():
                self._remove_unfinished()
            self._new_parents = [p for p in (self.partial, *self.partial.parents) if not p.exists()][1:]
            self.partial.mkdir(parents=True, exist_ok=True)
            self._progress: dict[str, Any] = progress or {"fingerprint": fingerprint, "shards": {}}
            self.write_json(_PROGRESS, self._progress)
        except OSError as error:
            raise OutputError(
                f"expected to write {self.partial}, got: {error.strerror}; choose another output"
            ) from error

    def _remove_unfinished(self) -> None:
        """Remove what an earlier run left; raise OutputError where the folder is somebody else's."""
        if any(self.partial.iterdir()) and not (self.partial / _PROGRESS).is_file():
            raise OutputError(
                f"expected {self.partial} to be free for the unfinished checkpoint, got a folder with other files; "
                "move it away or choose another output"
            )
        shutil.rmtree(self.partial)

    def _read_progress(self, fingerprint: Any) -> dict[str, Any] | None:
        """What an earlier run noted, or None where there is nothing to go on from."""
        try:
            progress = json.loads((self.partial / _PROGRESS).read_bytes())
            begun = progress["fingerprint"], {name: (s["sha256"], s["notes"]) for name, s in progress["shards"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        if begun[0] != json.loads(json.dumps(fingerprint)):
            raise OutputError(
                f"expected {self.partial} to come from the same checkpoint and options, got others; "
                "run without --resume to start over"
            )
        return progress

    def __enter__(self) -> "OutputFolder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None or self._keep or issubclass(kind, KeyboardInterrupt):
            return
        shutil.rmtree(self.partial, ignore_errors=True)
        for parent in self._new_parents:
            try:
                parent.rmdir()
            except OSError:  # somebody else's file is in it by now
                break

    def check_space(self, num_bytes: int) -> None:
        """Raise OutputError where the disk cannot hold ``num_bytes`` more."""
        free = shutil.disk_usage(self.partial).free
        if num_bytes > free:
            raise OutputError(
                f"expected {num_bytes / 1e9:.2f} GB free for {self.output}, got {free / 1e9:.2f} GB; "
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
            writer.close(sync=False)
            raise
        assert writer.remaining_bytes == 0, f"{writer.remaining_bytes} bytes of {name} were not written"
        writer.close(sync=True)
        temporary.replace(self.partial / name)
        self._progress["shards"][name] = {"sha256": sha256(self.partial / name), "notes": notes}
        self.write_json(_PROGRESS, self._progress)
        return notes

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file, complete or not at all."""
        temporary = self.partial / (name + ".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.partial / name)

    def publish(self) -> None:
        """Give the folder its final name.

        A folder of that name that a run like this has written goes; anything else is not ours to delete,
        and stays as ``<output>.old-*``.
        """
        (self.partial / _PROGRESS).unlink()
        if not self.output.exists():
            self.partial.replace(self.output)
            return
        old = Path(tempfile.mkdtemp(prefix=f"{self.output.name}.old-", dir=self.output.parent)) / self.output.name
        self.output.replace(old)
        self.partial.replace(self.output)
        entries = list(old.iterdir())
        if not entries or ((old / REPORT).is_file() and all(entry.is_file() for entry in entries)):
            shutil.rmtree(old.parent, ignore_errors=True)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
