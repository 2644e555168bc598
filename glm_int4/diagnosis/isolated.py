"""Runs a probe in a process of its own, which may be killed by what it tries without harm to this one."""

import json
import os
import signal
import subprocess
import sys
from typing import Any

from glm_int4.diagnosis.faults import first_line

# Loops compile for 7 s on a fast machine, and an import from a slow disk takes its time.
_TIMEOUT_S = 300.0
_PROGRAM = "from glm_int4.diagnosis.probes import answer; answer({!r})"


def ask(probe: str, timeout_s: float = _TIMEOUT_S) -> dict[str, Any]:
    """The facts that a probe of ``probes.py`` finds; where it fails, ``{"error": why}``."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    command = [sys.executable, "-P", "-X", "utf8", "-c", _PROGRAM.format(probe)]
    try:
        result = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no end after {timeout_s:.0f} s"}
    except (OSError, ValueError, TypeError) as error:  # no memory for a process, or no interpreter
        return {"error": first_line(error)}
    last = result.stdout.decode(errors="replace").strip().rpartition("\n")[2]
    try:
        facts: Any = json.loads(last)
    except ValueError:
        facts = None
    return facts if isinstance(facts, dict) else {"error": _how_it_ended(result)}


def _how_it_ended(result: "subprocess.CompletedProcess[bytes]") -> str:
    said = result.stderr.decode(errors="replace").strip().rpartition("\n")[2][:300]
    if result.returncode < 0:
        try:
            name = signal.Signals(-result.returncode).name
        except ValueError:
            name = f"signal {-result.returncode}"
        return f"the process was ended by {name}" + (f" ({said})" if said else "")
    return said or f"the process ended with status {result.returncode}"
