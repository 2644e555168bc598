"""What a training run asks of a method, whatever it trains."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from glm_int4.generation.engine import Engine


class Method(ABC):
    """Parameters beside a model that stays as it is, their loss, and their files."""

    title: ClassVar[str]  # what it is called

    @abstractmethod
    def parameters(self) -> list[nn.Parameter]:
        """All that is trained."""

    @abstractmethod
    def loss(self, input_ids: Tensor, labels: Tensor, batch: int | None = None) -> Tensor:
        """The loss of a batch, as ``loss.prefix_loss``.

        Args:
            batch: its number in the run, which decides what is dropped; None in an evaluation, where nothing is.
        """

    @abstractmethod
    def answering(self) -> AbstractContextManager[Engine]:
        """The model as it answers with what is trained by now."""

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write a checkpoint's files, but for the run's own state."""

    @abstractmethod
    def restore(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's files and its state.

        Raises:
            CheckpointError: they are damaged, or another model's.
        """

    def state(self) -> dict[str, Any]:
        """What ``write`` leaves out and ``restore`` needs."""
        return {}
