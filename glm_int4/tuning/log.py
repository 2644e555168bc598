"""The log of a training run: a line of JSON for every few steps, and a picture of the loss."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glm_int4.errors import OutputError
from glm_int4.tuning.answer_scores import INSTALL

logger = logging.getLogger(__name__)


class TrainingLog:
    """``trainer_log.jsonl``, cut back to what a resumed run has behind it."""

    def __init__(self, path: Path, last_step: int) -> None:
        self._path = path
        self.entries = [entry for entry in _read(path) if entry["step"] <= last_step]
        write_text(path, "".join(json.dumps(entry) + "\n" for entry in self.entries))

    def add(self, entry: dict[str, Any]) -> None:
        """Append an entry, in memory and in the file."""
        self.entries.append(entry)
        with writing(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file of a run, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    with _replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Another name to write a file under; it gets its own when it is whole, and else nothing is left."""
    partial = path.with_name(path.name + ".tmp")
    with writing(path):
        try:
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a file that cannot be written into an OutputError that names it and says what to do."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch raises the latter where a write fails
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        reason = (cause.strerror if isinstance(cause, OSError) else None) or str(error).splitlines()[0]
        raise OutputError(
            f"expected {path} to be written, got: {reason}; the checkpoints that are there are whole: "
            "make room and run the same command with --resume"
        ) from error


def _read(path: Path) -> list[dict[str, Any]]:
    """The whole entries of a log; a kill can leave half of one at the end."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            entries.append(entry)
    return entries


def has_matplotlib() -> bool:
    """Whether the loss can be drawn; where it cannot, one line of the log says why and what to do."""
    its_log = logging.getLogger("matplotlib")
    level = its_log.level
    its_log.setLevel(logging.ERROR)  # where it finds no folder, ours is the one line
    try:
        import matplotlib.figure  # noqa: F401  # with its fonts, which need a folder too
    except ImportError:
        logger.warning("no loss.png: matplotlib is not installed (%s)", INSTALL)
        return False
    except OSError as error:
        cause = error.__cause__ or error
        reason = getattr(cause, "strerror", None) or str(cause)
        logger.warning("no loss.png: matplotlib has no folder to write to (%s); set MPLCONFIGDIR to one", reason)
        return False
    finally:
        its_log.setLevel(level)
    return True


def draw_loss(entries: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw the loss over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([entry["step"] for entry in entries], [entry["loss"] for entry in entries])
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=title)
    axes.grid(alpha=0.3)
    with _replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=120)
