"""The folders that must be writable: where they are, whether they are, and how much room there is."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm_int4.diagnosis.faults import Fault
from glm_int4.quantization.gpu import kernel_cache
from glm_int4.system import size_text, write_fault

# What every folder needs at least, and what the smallest checkpoint on the hub takes.
_ROOM_BYTES = 64e6
_CHECKPOINT_BYTES = 4e9


def describe(path: Path | None, fault: str | None = None) -> dict[str, Any]:
    """A folder, which may not exist yet, as the report has it.

    Args:
        fault: why it cannot be written, where that is known.
    """
    if path is None:
        return {"path": None, "writable": False, "free_bytes": None, "fault": fault or "this user has no home"}
    fault = fault or write_fault(path, make=False)
    return {"path": str(path), "writable": fault is None, "free_bytes": _free_bytes(path), "fault": fault}


def _free_bytes(path: Path) -> int | None:
    for folder in (path, *path.absolute().parents):
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            continue
    return None


def find(chats: Callable[[], Path], loop: dict[str, Any], imports: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """All folders by name.

    Args:
        chats: gives the folder of the chat's history and conversations, or raises RuntimeError where there is no home.
        loop, imports: the facts of the probes "loop" and "packages".
    """
    try:
        state: Path | None = chats()
    except RuntimeError:
        state = None
    hub = imports.get("hub_cache")
    found = {
        "triton": describe(kernel_cache.triton_folder()),
        "chats": describe(state),
        "temporary": describe(_temporary()),
    }
    if code := loop.get("code_folders"):
        path, fault = next((each for each in code if each[1] is None), code[0])
        found = {"compiled_code": describe(Path(path), fault)} | found
    if hub:
        found["hub"] = describe(Path(hub))
    return found


def _temporary() -> Path | None:
    try:
        return Path(tempfile.gettempdir())
    except OSError:
        return None


@dataclass(frozen=True, slots=True)
class _Purpose:
    """What a folder is for, what happens without it, and the variable that names another."""

    title: str
    consequence: str
    variable: str


_PURPOSES = {
    "compiled_code": _Purpose("compiled code", "every start compiles for some seconds", "NUMBA_CACHE_DIR"),
    "triton": _Purpose("Triton's kernels", "none is compiled and cuBLAS multiplies, slower", kernel_cache.NAMED_BY),
    "chats": _Purpose("the chat's history", "a chat is not kept for --continue", "XDG_STATE_HOME"),
    "temporary": _Purpose("temporary files", "packages that need one fail", "TMPDIR"),
    "hub": _Purpose("downloads from the hub", "only local folders can be loaded", "HF_HOME"),
}


def folder_faults(found: dict[str, dict[str, Any]], *, has_gpu: bool) -> list[Fault]:
    """Folders that cannot be written or have no room; what nothing needs here is a note."""
    faults = []
    for name, folder in found.items():
        fault = _room_fault(name, folder) if folder["writable"] else _write_fault(name, folder, has_gpu=has_gpu)
        if fault is not None:
            faults.append(fault)
    return faults


def _write_fault(name: str, folder: dict[str, Any], *, has_gpu: bool) -> Fault | None:
    if name == "compiled_code":  # the loop that was not kept is that fault
        return None
    purpose, is_triton = _PURPOSES[name], name == "triton"
    consequence, is_note = purpose.consequence, is_triton and not has_gpu
    if is_triton and (other := kernel_cache.other_folder()):
        consequence, is_note = f"{other} is taken instead", True
    got = f"{folder['path'] or 'none'} ({folder['fault']})"
    return Fault(
        check="folders",
        fault=f"expected a folder that can be written for {purpose.title}, got {got}",
        consequence=consequence,
        cure=f"set {purpose.variable} to one that can",
        is_note=is_note,
    )


def _room_fault(name: str, folder: dict[str, Any]) -> Fault | None:
    purpose, free = _PURPOSES[name], folder["free_bytes"]
    if free is None or free >= (_CHECKPOINT_BYTES if name == "hub" else _ROOM_BYTES):
        return None
    consequence, wanted = purpose.consequence, size_text(_ROOM_BYTES)
    if free >= _ROOM_BYTES:  # for all but a checkpoint
        consequence, wanted = "no checkpoint can be downloaded to it", size_text(_CHECKPOINT_BYTES)
    return Fault(
        check="folders",
        fault=f"expected {wanted} for {purpose.title}, got {size_text(free)} in {folder['path']}",
        consequence=consequence,
        cure=f"make room, or set {purpose.variable} to a folder on another disk",
        is_note=free >= _ROOM_BYTES,
    )
