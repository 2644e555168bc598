"""Rows of a matrix that stay in the host's memory, for a GPU that looks up a few of them at a time."""

import logging
from types import ModuleType

import torch
from torch import Tensor

from glm_int4.quantization.kernels import decode_kernels, reference

logger = logging.getLogger(__name__)


class HostRows:
    """A matrix (V, W) in page-locked memory.

    A kernel reads rows from there over the bus, by ids that only the GPU knows: nobody waits for them, steps run ahead
    and graphs can do it too. Without kernels the host waits for the ids, gathers the rows and copies them.

    Args:
        rows: in the host's memory. device: where looked-up rows are wanted.
    """

    def __init__(self, rows: Tensor, device: torch.device) -> None:
        self._ops: ModuleType = reference
        self.rows = rows.contiguous()
        if device.type == "cuda":
            try:
                self.rows, self._ops = self.rows.pin_memory(), decode_kernels(device)
            except Exception as error:  # memory that cannot be locked, no Triton, or a broken one
                logger.info("rows of the embedding are gathered by the CPU, because %s", error)

    def __getitem__(self, ids: Tensor) -> Tensor:
        """Rows (M, W) of ids (M,), where the ids are."""
        try:
            rows: Tensor = self._ops.gather_rows(self.rows, ids)
            return rows
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of Triton, its compiler or the driver: any type
            if self._ops is reference:
                raise
            self._ops = reference
            logger.warning("rows of the embedding are gathered by the CPU, because Triton failed: %s", error)
            return reference.gather_rows(self.rows, ids)
