"""The packages that glm-int4 needs: which versions are installed, and what is missing or too old."""

import re
from importlib import metadata
from typing import Any

from glm_int4.diagnosis.faults import Fault

# What pyproject.toml asks for, and the oldest version that will do.
REQUIRED = {
    "torch": "2.11", "numpy": "", "numba": "", "safetensors": "", "sentencepiece": "", "tokenizers": "",
    "huggingface_hub": "", "transformers": "5", "typer": "", "rich": "", "prompt_toolkit": "", "markdown-it-py": "",
}  # fmt: skip
# What is wanted for a part alone.
OPTIONAL = (
    *("triton", "fastapi", "uvicorn", "prometheus-client", "llguidance"),
    *("matplotlib", "jieba", "rouge-chinese", "nltk"),
)
# Numba's absence is the loop's fault, and its import, like torch's, is tried by a probe of its own.
_PROBED = ("torch", "numba")


def versions() -> dict[str, str | None]:
    """The version of every package; None where it is not installed."""
    return {name: _version(name) for name in (*REQUIRED, *OPTIONAL)}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except Exception:  # not installed, or its record is damaged
        return None


def package_faults(found: dict[str, str | None], imports: dict[str, Any]) -> list[Fault]:
    """What is missing, too old or cannot be imported.

    Args:
        found: what ``versions`` returned. imports: the facts of the probe "packages".
    """
    errors: dict[str, str | None] = imports.get("errors", {})
    faults = [] if "error" not in imports else [_broken("packages", imports["error"], "reinstall them")]
    for name, oldest in REQUIRED.items():
        version, error = found[name], errors.get(name)
        if name in _PROBED and version is None:
            continue
        runs = name in errors and error is None  # a package without a record of its version does too
        if version is None and not runs:
            faults.append(_broken(name, "none", f'install it: pip install "{_wanted(name, oldest)}"'))
        elif error is not None:
            faults.append(_broken(name, error, f"reinstall it: pip install --force-reinstall {name}"))
        elif version is not None and _numbers(version) < _numbers(oldest):
            faults.append(_broken(name, version, f'update it: pip install "{_wanted(name, oldest)}"'))
    return faults


def _broken(name: str, got: str, cure: str) -> Fault:
    what = f"{name} {REQUIRED[name]} or newer" if REQUIRED.get(name) else name
    only_hf = name == "transformers"
    return Fault(
        check="packages",
        fault=f"expected {what} that can be imported, got {got}",
        consequence="glm_int4.hf cannot be used, all else can" if only_hf else "commands fail that need it",
        cure=cure,
    )


def _wanted(name: str, oldest: str) -> str:
    return f"{name}>={oldest}" if oldest else name


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.match(r"[\d.]*", version)[0].split(".") if number]  # type: ignore[index]
