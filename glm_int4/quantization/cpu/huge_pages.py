"""Large pages for weights that every token reads from end to end."""

import ctypes
import functools
import math
import sys
from collections.abc import Callable

import torch
from torch import Tensor

_PAGE_BYTES = 2 << 20
_MADV_HUGEPAGE = 14


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """As ``torch.empty``, in large pages where Linux grants them on request.

    Reading 1 GiB in order was 7 to 9 % faster so (AMD EPYC in a virtual machine, where looking up a small
    page is dear). The last page, which the tensor fills only in part, stays small: none of it is memory for nothing.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    advise = _madvise()
    if num_bytes < _PAGE_BYTES or advise is None:
        return torch.empty(shape, dtype=dtype)
    memory = torch.empty(num_bytes + _PAGE_BYTES, dtype=torch.uint8)
    skipped = -memory.data_ptr() % _PAGE_BYTES  # never touched, so never in memory
    x = memory[skipped : skipped + num_bytes].view(dtype).view(shape)
    whole = num_bytes // _PAGE_BYTES * _PAGE_BYTES
    advise(ctypes.c_void_p(x.data_ptr()), ctypes.c_size_t(whole), _MADV_HUGEPAGE)  # a wish: refusing is no fault
    return x


@functools.cache
def _madvise() -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None
