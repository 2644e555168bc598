"""All tensors of a checkpoint by name, whatever files they lie in."""

import ctypes
import mmap
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from glm_int4.checkpoint.files.folder import find_shards
from glm_int4.checkpoint.files.safetensors_file import TensorSpec, map_safetensors
from glm_int4.checkpoint.files.torch_file import map_torch_file
from glm_int4.downloads import shown_name
from glm_int4.errors import CheckpointError

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MOST_NAMED = 6
_A_FLOAT = f"{torch.float16} or another float"
_MISMATCH = "do the config and the weights belong together?"
_PLACEHOLDERS = "DeepSpeed's ZeRO-3 saved placeholders of size 0: collect the weights with its zero_to_fp32.py first"


Change = Callable[[str, slice | Tensor, Tensor], Tensor]


class CheckpointReader:
    """The tensors of a checkpoint folder, mapped: they take memory only while they are used.

    Raises:
        CheckpointError: as ``find_shards``, ``map_safetensors`` and ``map_torch_file``; or a tensor
            is not in the shard that the index names.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files, weight_map = find_shards(folder)
        self._tensors: dict[str, Tensor] = {}
        self._mapped: set[str] = set()
        self._joined: dict[str, list[str]] = {}
        self._parts: set[str] = set()
        self._change: Change | None = None
        for path in self.files:
            tensors, mapped = map_safetensors(path) if path.suffix == ".safetensors" else map_torch_file(path)
            if weight_map is not None:
                absent = [n for n, file in weight_map.items() if file == path.name and n not in tensors]
                if absent:
                    raise CheckpointError(
                        f"expected {_listing(absent)} in {path}, as the index says, got none; download the file again"
                    )
                # Where two files hold a tensor, the index decides.
                tensors = {n: t for n, t in tensors.items() if weight_map.get(n, path.name) == path.name}
            self._tensors.update(tensors)
            self._mapped |= mapped & tensors.keys()

    def __contains__(self, name: str) -> bool:
        return name in self._joined or (name in self._tensors and name not in self._parts)

    def __iter__(self) -> Iterator[str]:
        yield from self._joined
        yield from (name for name in self._tensors if name not in self._parts)

    def __getitem__(self, name: str) -> Tensor:
        return self._stored(name, slice(None))

    def spec(self, name: str) -> TensorSpec:
        """Shape and dtype of a tensor, which is not read for it."""
        first, *others = (self._tensors[part] for part in self._joined.get(name, [name]))
        shape = tuple(first.shape)
        if others:
            shape = (shape[0] + sum(tensor.shape[0] for tensor in others), *shape[1:])
        return TensorSpec(name, shape, first.dtype)

    def rows(self, name: str, rows: slice | Tensor = slice(None)) -> Tensor:
        """Some rows of a tensor, by a slice or their numbers, changed as ``change`` says."""
        found = self._stored(name, rows)
        return found if self._change is None else self._change(name, rows, found)

    def _stored(self, name: str, rows: slice | Tensor) -> Tensor:
        """Rows as they lie in the files; copied only where several parts hold them."""
        parts = [self._tensors[part] for part in self._joined.get(name, [name])]
        if len(parts) == 1:
            return parts[0][rows] if parts[0].dim() else parts[0]
        if isinstance(rows, Tensor):
            return torch.cat(parts)[rows]
        pieces, first = [], 0
        start, stop, _ = rows.indices(sum(map(len, parts)))
        for part in parts:
            pieces.append(part[max(start - first, 0) : max(stop - first, 0)])
            first += len(part)
        return torch.cat(pieces)

    def change(self, how: Change) -> None:
        """Let ``rows`` give what a function makes of a tensor's name, the rows, and these as they are stored."""
        self._change = how

    def rename(self, names: Mapping[str, str]) -> None:
        """Call tensors otherwise than they are stored: stored name to new name."""
        self._tensors = {names.get(name, name): tensor for name, tensor in self._tensors.items()}
        self._mapped = {names.get(name, name) for name in self._mapped}

    def join(self, name: str, parts: Sequence[str]) -> None:
        """Make one tensor of the rows of several, in order; theirs are no tensors of the checkpoint any more.

        Raises:
            CheckpointError: their columns or their dtypes differ.
        """
        tensors = [self._tensors[part] for part in parts]
        if (
            not all(tensor.dim() for tensor in tensors)
            or len({(tensor.dtype, tensor.shape[1:]) for tensor in tensors}) > 1
        ):
            raise CheckpointError(
                f"expected rows of the same length and dtype in {_listing(list(parts))}, got others; {_MISMATCH}"
            )
        self._joined[name] = list(parts)
        self._parts.update(parts)

    def release(self, name: str, rows: slice = slice(None)) -> None:
        """Give back the memory of a mapped tensor's pages, or those of some rows; they are read again when needed."""
        parts = self._joined.get(name, ())
        for part in parts:  # of several the whole, which is read again for rows that follow
            self.release(part, rows if len(parts) == 1 else slice(None))
        if name in self._mapped and sys.platform.startswith("linux") and self._tensors[name].is_contiguous():
            _release_pages(self._tensors[name][rows])

    def check(
        self,
        expected: Mapping[str, tuple[int, ...]],
        dtypes: Mapping[str, tuple[torch.dtype, ...]],
        ignored: Collection[str] = (),
        advice: Callable[[Iterable[str]], str | None] = lambda names: None,
    ) -> None:
        """Compare all tensors with what a model needs.

        Args:
            expected: name to shape.
            dtypes: name to acceptable dtypes; names that are absent accept every floating-point dtype of torch's.
            ignored: names that may be there or not, beside ``*.inv_freq``.
            advice: what to do about names that the model has no place for, if they tell.
        Raises:
            CheckpointError: one error that names missing, extra, mis-shaped and mis-typed tensors.
        """
        faults = []
        missing = [n for n in expected if n not in self]
        if missing:
            faults.append(f"missing {_listing(missing)}")
        extra = [n for n in self if n not in expected and n not in ignored and not n.endswith(".inv_freq")]
        if extra:
            faults.append(f"extra {_listing(extra)}")
        present = {n: self.spec(n) for n in expected if n in self}
        shapes = [
            f"{n} {spec.shape} instead of {tuple(expected[n])}"
            for n, spec in present.items()
            if spec.shape != tuple(expected[n])
        ]
        if shapes:
            faults.append(f"mis-shaped {_listing(shapes)}")
        types = [
            f"{n} {spec.dtype} instead of {' or '.join(map(str, dtypes[n])) if n in dtypes else _A_FLOAT}"
            for n, spec in present.items()
            if spec.dtype not in dtypes.get(n, FLOATING)
        ]
        if types:
            faults.append(f"mis-typed {_listing(types)}")
        if faults:
            placeholders = any(spec.num_bytes == 0 for spec in present.values())
            what_to_do = _PLACEHOLDERS if placeholders else advice(extra) or _MISMATCH
            raise CheckpointError(
                f"expected the tensors that config.json describes in {self.folder}, got: {'; '.join(faults)}; "
                f"{what_to_do}"
            )


def _listing(names: list[str]) -> str:
    rest = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(map(shown_name, names[:_MOST_NAMED])) + rest


def _release_pages(tensor: Tensor) -> None:
    """Drop the whole pages of a tensor in a private file mapping; elsewhere its values would be lost."""
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    stop = (tensor.data_ptr() + tensor.numel() * tensor.element_size()) // mmap.PAGESIZE * mmap.PAGESIZE
    if stop > start:
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED)
