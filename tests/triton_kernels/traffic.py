"""What a function moves through memory and holds there, counted operation by operation; on tensors without data too."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operations that give another view of the same memory, or memory that nothing was written to yet.
_FREE = ("view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "unsqueeze", "squeeze",
         "unflatten", "as_strided", "detach", "alias", "empty", "new_empty", "reshape", "split", "unbind")  # fmt: skip


class Traffic(TorchDispatchMode):
    """Counts while it is entered.

    Attributes:
        bytes: read and written by all operations. operations: that did so. peak_bytes: most that was held at once of
            what was allocated in the meantime.
    """

    def __init__(self):
        super().__init__()
        self.bytes = self.operations = self.peak_bytes = self._held = 0
        self._known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, torch.Tensor)]
        for x in given:
            self._known.add(x.untyped_storage()._cdata)
        out = func(*args, **(kwargs or {}))
        results = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        for x in results:
            self._hold(x.untyped_storage())
        if func.overloadpacket.__name__.strip("_") not in [name.strip("_") for name in _FREE]:
            outs = [x for name, x in (kwargs or {}).items() if name.startswith("out")]
            read = [x for x in given if not any(x is y for y in outs)]
            self.operations += 1
            self.bytes += sum(x.numel() * x.element_size() for x in (*read, *results))
        return out

    def _hold(self, storage):
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        size, key = storage.nbytes(), storage._cdata
        self._held += size
        self.peak_bytes = max(self.peak_bytes, self._held)

        def free():
            self._held -= size
            self._known.discard(key)

        weakref.finalize(storage, free)
