"""Large pages for weights that every token reads from end to end."""

import ctypes
import functools
import sys
from collections.abc import Callable

import torch
from torch import Tensor

_PAGE_BYTES = 2 << 20
_MADV_HUGEPAGE = 14


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """As ``torch.empty``, in large pages where Linux grants them on request.

    Reading 1 GiB in order was 7 to 9 % faster so (AMD EPYC in a virtual machine, where looking up a small
    page is dear). Pages that the tensor fills only in part stay small: none of it is memory for nothing.
    """
    x = torch.empty(shape, dtype=dtype)
    first = -(-x.data_ptr() // _PAGE_BYTES) * _PAGE_BYTES
    last = (x.data_ptr() + x.nbytes) // _PAGE_BYTES * _PAGE_BYTES
    advise = _madvise()
    if advise is not None and last > first:
        advise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _MADV_HUGEPAGE)  # a wish: refusing is no fault
    return x


@functools.cache
def _madvise() -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None
