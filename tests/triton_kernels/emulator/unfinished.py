"""Asynchronous copies and products: begun, closed into groups, and waited for."""

from collections.abc import Callable

import numpy as np

from tests.triton_kernels.emulator.ptx import Operand


class Unfinished:
    """What lanes have begun and not yet waited for, in the groups that they have closed."""

    def __init__(self, num_lanes: int) -> None:
        self._closed = np.zeros(num_lanes, dtype=np.int64)
        # Of each: a lane's group, -1 where it takes no part, and what completes it for some lanes.
        self.pending: list[tuple[np.ndarray, Callable[[np.ndarray], None]]] = []

    def begin(self, lanes: np.ndarray, complete: Callable[[np.ndarray], None]) -> None:
        self.pending.append((np.where(lanes, self._closed, -1), complete))

    def close(self, lanes: np.ndarray) -> None:
        self._closed[lanes] += 1

    def wait(self, lanes: np.ndarray, youngest: Operand) -> None:
        """Complete all closed groups of these lanes but the youngest ones, in the order they were begun."""
        assert isinstance(youngest, int)
        limits = np.where(lanes, self._closed - youngest, 0)
        left = []
        for groups, complete in self.pending:
            ready = (groups >= 0) & (groups < limits)
            if ready.any():
                complete(ready)
                groups = np.where(ready, -1, groups)
            if (groups >= 0).any():
                left.append((groups, complete))
        self.pending = left
