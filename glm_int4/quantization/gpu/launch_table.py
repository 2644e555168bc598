"""Launch parameters that were measured on this machine's GPU, in the user's cache.

``glm-int4 bench --tune`` measures and keeps them; they are used from then on, until the GPU, Triton or the
version of this package changes.
"""

import json
import logging
import re
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from glm_int4.errors import OutputError
from glm_int4.quantization.kernels import launch
from glm_int4.system import user_cache_folder, write_whole
from glm_int4.version import __version__

logger = logging.getLogger(__name__)

_FORMAT = 2


def identity(device: torch.device) -> dict[str, Any]:
    """What a measurement holds for: the GPU, Triton, this package and the format of the file."""
    try:
        triton = version("triton")
    except PackageNotFoundError:  # a build of another name
        triton = "unknown"
    found: dict[str, Any] = {"format": _FORMAT, "glm_int4": __version__, "triton": triton}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "architecture": 10 * properties.major + properties.minor,
            "multiprocessors": properties.multi_processor_count,
        }
    else:
        found |= {"gpu": "none", "architecture": 0, "multiprocessors": 0}
    return found


def cache_file(device: torch.device) -> Path | None:
    """Where the measurements of a GPU are kept; None where this user has no place for them."""
    folder = user_cache_folder()
    name = re.sub(r"[^a-z0-9]+", "-", identity(device)["gpu"].lower()).strip("-")
    return folder / f"launch-{name}.json" if folder else None


def save(device: torch.device, rows: dict[int, tuple[launch.Launch, ...]]) -> Path:
    """Keep rows by bits, for the GPU that they were measured on.

    Raises:
        OutputError: they cannot be kept.
    """
    path = cache_file(device)
    if path is None:
        raise OutputError("expected a home folder to keep what was measured in, got none; set XDG_CACHE_HOME")
    content = identity(device) | {"rows": {str(bits): [asdict(row) for row in table] for bits, table in rows.items()}}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, (json.dumps(content, indent=1) + "\n").encode(), mode=0o644)
    except OSError as error:
        raise OutputError(
            f"expected a folder that can be written, got {path.parent}: {error.strerror}; set XDG_CACHE_HOME"
        ) from error
    return path


def adopt(device: torch.device) -> None:
    """Use what was measured on this GPU, if it still holds; say where something else was found."""
    path = cache_file(device)
    if path is None:
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = {key: content[key] for key in identity(device)}
        if found != identity(device):
            logger.info("not using %s, measured with other versions; glm-int4 bench --tune measures again", path)
            return
        architecture = found["architecture"]
        rows = {
            (int(bits), architecture): tuple(launch.Launch(**row) for row in table)
            for bits, table in content["rows"].items()
        }
        launch.adopt(rows)
        logger.info("launch parameters from %s", path)
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("ignoring %s, which cannot be used (%s); glm-int4 bench --tune writes it anew", path, error)
