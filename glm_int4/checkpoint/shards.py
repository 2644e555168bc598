"""Writing a checkpoint folder so that it is either complete or not there.

All files go to ``<output>.partial``; each shard is written under a temporary name, synced and renamed,
and the folder gets its final name last. What is finished is noted, so that a run can be resumed.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm_int4.checkpoint.safetensors_file import SafetensorsWriter, TensorSpec
from glm_int4.errors import OutputError

MAX_SHARD_BYTES = 1 << 30
_PROGRESS = "progress.json"


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


class OutputFolder:
    """The folder being written. Use as a context: an error removes what was written.

    Args:
        output: the final name.
        overwrite: replace a folder of that name, once the new one is complete.
        resume: go on from ``<output>.partial`` where ``fingerprint`` agrees.
        fingerprint: JSON value that identifies sources and options.
    Raises:
        OutputError: the name is taken, or nothing can be written there.
    """

    def __init__(self, output: Path, *, overwrite: bool, resume: bool, fingerprint: Any) -> None:
        self.output = output
        self.partial = output.with_name(output.name + ".partial")
        self._overwrite, self._keep = overwrite, resume
        if output.exists() and not overwrite and not (output.is_dir() and not any(output.iterdir())):
            raise OutputError(
                f"expected a new output folder, got {output}, which exists; pass --overwrite or another name"
            )
        self._progress: dict[str, Any] = {"fingerprint": fingerprint, "shards": {}}
        try:
            if resume and (self.partial / _PROGRESS).is_file():
                self._progress = self._read_progress(fingerprint)
            else:
                shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir(parents=True, exist_ok=True)
            self.write_json(_PROGRESS, self._progress)
        except OSError as error:
            raise OutputError(
                f"expected to write {self.partial}, got: {error.strerror}; choose another output"
            ) from error

    def _read_progress(self, fingerprint: Any) -> dict[str, Any]:
        progress: dict[str, Any] = json.loads((self.partial / _PROGRESS).read_text(encoding="utf-8"))
        if progress.get("fingerprint") != json.loads(json.dumps(fingerprint)):
            raise OutputError(
                f"expected {self.partial} to come from the same checkpoint and options, got others; "
                "run without --resume to start over"
            )
        return progress

    def __enter__(self) -> "OutputFolder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is not None and not self._keep:
            shutil.rmtree(self.partial, ignore_errors=True)

    def check_space(self, num_bytes: int) -> None:
        """Raise OutputError where the disk cannot hold ``num_bytes`` more."""
        free = shutil.disk_usage(self.partial).free
        if num_bytes > free:
            raise OutputError(
                f"expected {num_bytes / 1e9:.2f} GB free for {self.output}, got {free / 1e9:.2f} GB; "
                "free some space or choose another disk"
            )

    def finished(self, name: str) -> Any:
        """What ``write_shard`` noted for a shard that an earlier run completed, or None."""
        return self._progress["shards"].get(name) if (self.partial / name).is_file() else None

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
        self._progress["shards"][name] = notes
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
        """Give the folder its final name."""
        (self.partial / _PROGRESS).unlink()
        old = self.output.with_name(self.output.name + ".old")
        if self.output.exists():
            shutil.rmtree(old, ignore_errors=True)
            self.output.replace(old)
        self.partial.replace(self.output)
        shutil.rmtree(old, ignore_errors=True)
