"""Running a program where nothing can be written and there is no home, as in a locked-down container."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def in_read_only_system(command, *packages, env=None):
    """Run a command where / cannot be written to and there is no home.

    Args:
        packages: folders that come first on Python's path. env: more variables.
    """
    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("needs root and unshare, to make / read-only")
    script = 'mount --make-rprivate / && mount -o remount,bind,ro / && ! touch "$0" 2> /dev/null && exec "$@"'
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("XDG", "NUMBA", "TRITON"))}
    result = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, str(ROOT / "README.md"), *map(str, command)],
        env=inherited
        | {"HOME": "/nonexistent", "PYTHONPATH": os.pathsep.join(map(str, (*packages, ROOT)))}
        | (env or {}),
        capture_output=True,
        text=True,
        timeout=120,
    )
    if "mount:" in result.stderr or "unshare:" in result.stderr:
        pytest.skip(f"no mount namespace here: {result.stderr}")
    return result
