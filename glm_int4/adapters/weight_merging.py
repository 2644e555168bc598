"""LoRA as part of a checkpoint's own tensors, a piece of rows at a time: what is quantized in place of them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from glm_int4.adapters.adapter_file import CONFIG_FILE, map_adapter
from glm_int4.adapters.adapter_source import AdapterSource
from glm_int4.adapters.applying import check_together
from glm_int4.adapters.lora_tensors import Delta, Lora
from glm_int4.checkpoint.writing.output_folder import sha256


class Merging:
    """What ``CheckpointReader.change`` takes, for adapters that all act at once, each seen from the base."""

    def __init__(self, loras: Sequence[Lora]) -> None:
        check_together(loras)
        self._deltas: dict[str, list[Delta]] = {}
        self._replaced: dict[str, Tensor] = {}
        for lora in loras:
            for name, deltas in lora.deltas.items():
                self._deltas.setdefault(f"{name}.weight", []).extend(deltas)
            self._replaced |= lora.vectors | {f"{name}.weight": tensor for name, tensor in lora.whole.items()}

    def __call__(self, name: str, rows: slice | Tensor, values: Tensor) -> Tensor:
        """Rows of a tensor as adapters leave them, in float32 where something was added.

        Args:
            name: of the tensor. rows: which these are, without a step. values: as the checkpoint has them.
        """
        if name in self._replaced:
            return self._replaced[name][rows]
        if name not in self._deltas:
            return values
        assert isinstance(rows, slice)  # the embedding alone is read by ids, and nothing is added to it
        base = values.float()
        out, start = base.clone(), rows.start or 0
        for delta in self._deltas[name]:
            first, stop = max(start, delta.rows.start), min(start + len(values), delta.rows.stop)
            if first < stop:
                here = slice(first - start, stop - start)
                _add(delta, slice(first - delta.rows.start, stop - delta.rows.start), base[here], out[here])
        return out


def _add(delta: Delta, rows: slice, base: Tensor, out: Tensor) -> None:
    """Add to ``out`` (M, K) what some of a delta's rows make of ``base`` (M, K)."""
    up, down = delta.up[rows].float().to(base.device), delta.down.float().to(base.device)
    if delta.magnitude is None:
        out.addmm_(up, down, alpha=delta.scale)
        return
    merged = torch.addmm(base, up, down, alpha=delta.scale)
    lengths = delta.magnitude[rows].float().to(base.device)
    out += merged * (lengths / merged.norm(dim=1))[:, None] - base


def describe(source: AdapterSource) -> dict[str, Any]:
    """An adapter as a report names it: what it is called, its scale, and its files' SHA-256."""
    files = (source.folder / CONFIG_FILE, map_adapter(source.folder)[0])
    return {
        "name": source.folder.resolve().name,
        "scale": source.scale,
        "sha256": {path.name: sha256(path) for path in files},
    }
