"""The ground floor: what the operating system says of memory and folders. Every room may import this.

torch is imported where a GPU is asked about, so that the command line starts without it.
"""

import contextlib
import ctypes
import logging
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from glm_int4.errors import OutputError

if TYPE_CHECKING:
    import torch

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)


def size_text(num_bytes: float) -> str:
    """A size for people: GB = 1e9 bytes."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.2f} {unit}"
    return f"{num_bytes:.0f} bytes"


def gb_text(num_bytes: float) -> str:
    """A size in GB (1e9 bytes), whatever it is, so that sizes in a message compare at a glance."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 5e7 else f"{num_bytes / 1e9:.3f} GB"


def free_bytes(device: "torch.device") -> int | None:
    """Memory that is free for more, or None where the system does not say.

    On a GPU, blocks that torch has left over and keeps are given back first: the driver counts them as taken.
    """
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    return available_bytes()


def available_bytes() -> int | None:
    """Main memory that is free for more, in a container at most what is left of its limit; None where none says."""
    limit = container_memory()
    found = [_kilobytes_of("/proc/meminfo", "MemAvailable:"), limit[1] if limit else None]
    return min((size for size in found if size is not None), default=None)


def total_bytes() -> int:
    """Memory of this machine, or of its container; 16 GiB where the system does not say (Windows)."""
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        machine = 16 << 30
    limit = container_memory()
    return min(machine, limit[0]) if limit else machine


def container_memory(root: Path = Path("/")) -> tuple[int, int] | None:
    """The limit of this process's control groups and what is left of it, in bytes; None without a limit.

    Files that are cached count as free, as in MemAvailable: the system takes that memory back.
    """
    found = []
    for folder, names in _memory_groups(root):
        limit, used = _number_in(folder / names[0]), _number_in(folder / names[1])
        if limit is None or used is None or limit >= 1 << 60:  # what version 1 says for no limit
            continue
        found.append((limit, max(limit - max(used - _cached_bytes(folder), 0), 0)))
    return (min(limit for limit, _ in found), min(left for _, left in found)) if found else None


def _memory_groups(root: Path) -> Iterator[tuple[Path, tuple[str, str]]]:
    """The folders of this process's control groups (Linux), innermost first, and the files of limit and use."""
    try:
        lines = (root / "proc" / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError):
        return
    for line in lines:
        _, controllers, path = line.split(":", 2) if line.count(":") >= 2 else ("", "none", "")
        mounted = root / "sys" / "fs" / "cgroup"
        names = ("memory.max", "memory.current")
        if controllers:
            if "memory" not in controllers.split(","):
                continue
            mounted, names = mounted / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        folder = mounted / path.lstrip("/")  # which is not there in a container that sees its own groups alone
        for each in (folder, *folder.parents):
            if each.is_relative_to(mounted):
                yield each, names


def _cached_bytes(folder: Path) -> int:
    """Files in memory that a control group is charged for, with those of the groups in it."""
    try:
        rows = [line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines()]
        sizes = {row[0]: int(row[1]) for row in rows}
    except (OSError, ValueError, IndexError):
        return 0
    prefix = "total_" if "total_inactive_file" in sizes else ""  # version 1 counts the group alone without it
    return sizes.get(f"{prefix}inactive_file", 0) + sizes.get(f"{prefix}active_file", 0)


def _number_in(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # "max"
        return None


def peak_bytes(device: "torch.device | None" = None) -> int:
    """Most memory taken: of tensors on a GPU, of this process elsewhere; 0 where the system does not say (Windows)."""
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    peak = _kilobytes_of("/proc/self/status", "VmHWM:")
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak(device: "torch.device") -> None:
    """Count ``peak_bytes`` from now on, where the system can."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _kilobytes_of(path: str, key: str) -> int | None:
    """The bytes of a line like ``key 12 kB`` in a file of Linux, None where there is none."""
    try:
        lines = Path(path).read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeError):
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(key)), None)


def trim_heap() -> None:
    """Return freed heap to the system, where the C library can (glibc).

    Loading ChatGLM-6B in INT4 leaves 0.15 GB of it behind.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def lock_folder(folder: Path) -> int | None:
    """Lock a folder until its descriptor is closed or the process dies, and return the descriptor.

    Returns:
        None where the system or the file system has no such locks.
    Raises:
        OutputError: another run holds it.
    """
    if fcntl is None:
        return None
    descriptor = None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        free = _lock(descriptor, folder)
    except FileNotFoundError:  # it was there a moment ago: the run that wrote it has given it another name
        free = False
    if not free:
        if descriptor is not None:
            os.close(descriptor)
        raise OutputError(
            f"expected {folder} for this run alone, got another run that is writing it; "
            "wait until it has ended or choose another output"
        )
    return descriptor


def _lock(descriptor: int, folder: Path) -> bool:
    """Whether an open folder could be locked, and is still the one of its name."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        logger.warning("cannot lock %s (%s): let no other run write there", folder, error.strerror)
        return True
    return os.path.samestat(os.fstat(descriptor), os.stat(folder))


def sync_folder(folder: Path) -> None:
    """Have the names in a folder reach the disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_fault(folder: Path, *, make: bool = True) -> str | None:
    """Why a folder cannot be written to; None where it can.

    Args:
        make: the folder where there is none; otherwise the nearest one above it is asked.
    """
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = next(each for each in (folder, *folder.absolute().parents) if os.path.lexists(each))
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)
    except OSError as error:
        return error.strerror or str(error)
    return None


def user_cache_folder() -> Path | None:
    """Our folder in the user's cache, which may not exist yet; None where the user has no home."""
    for named in (os.environ.get("XDG_CACHE_HOME", ""), os.environ.get("LOCALAPPDATA", "")):
        if os.path.isabs(named):
            return Path(named) / "glm-int4"
    try:
        return Path.home() / ".cache" / "glm-int4"
    except RuntimeError:
        return None


def name_a_temporary_folder() -> None:
    """Let packages that only ask where temporary files would go be imported where there is no place for them."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        tempfile.tempdir = "/tmp"


def own_temporary_folder() -> Path | None:
    """A temporary folder that no other user can write to, the same in every process; None where there is none."""
    try:
        temporary = tempfile.gettempdir()
        if temporary == os.getcwd():  # Python's last resort
            return None
        folder = Path(temporary) / f"glm-int4-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except (AttributeError, OSError):  # AttributeError: Windows, whose temporary folder is the user's own
        return None
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
    return folder if ours else None


@contextlib.contextmanager
def opened_for_torch(path: Path) -> Iterator[str]:
    """Open a file to read, and give a name by which code in C can open it too.

    Such code takes names for UTF-8, which a folder's name need not be.
    """
    with path.open("rb") as file:
        name = f"/proc/self/fd/{file.fileno()}"
        yield name if os.path.exists(name) else str(path)


def write_whole(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a file under another name first and then give it its name, so that no reader finds half of it.

    Args:
        mode: who may read it; without another value its owner alone.

    Raises:
        OSError: it cannot be written; then nothing is left behind.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:50]}.")
    try:
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
