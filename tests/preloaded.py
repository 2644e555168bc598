"""Commands in processes that have imported torch and Numba already, which takes most of a short command's time.

A server, this file as a program, imports them once and forks for every command. What a command then does is what
``python -m glm_int4`` does: our own modules are imported, and the interpreter ends, in the command's own process.
"""

import atexit
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

# Begin the names of variables that are read when a process starts, or when the packages are imported.
_READ_EARLY = (
    "PYTHON",
    "LC_",
    "LANG",
    "OMP_",
    "GOMP_",
    "KMP_",
    "MKL_",
    "OPENBLAS",
    "NUMBA",
    "TORCH",
    "LD_",
    "MALLOC",
    "CUDA",
)

_SERVER: list[subprocess.Popen] = []


def run(arguments, stdin, environment, cwd, timeout):
    """Run ``glm_int4`` with arguments; returns what ``subprocess.run`` does, with bytes."""
    command = [sys.executable, "-m", "glm_int4", *map(str, arguments)]
    if not hasattr(os, "fork") or _early(environment) != _early(os.environ) or _early(os.environ) != _STARTED_WITH:
        return subprocess.run(command, input=stdin, capture_output=True, env=environment, cwd=cwd, timeout=timeout)
    with tempfile.TemporaryDirectory() as folder:
        files = [os.path.join(folder, name) for name in ("stdin", "stdout", "stderr")]
        Path(files[0]).write_bytes(stdin)
        asked = {"arguments": command[3:], "files": files, "environment": environment, "cwd": str(cwd or os.getcwd())}
        server = _server()
        server.stdin.write(json.dumps(asked | {"timeout": timeout}) + "\n")
        server.stdin.flush()
        status = json.loads(server.stdout.readline())
        out, err = (Path(file).read_bytes() for file in files[1:])
    if status is None:
        raise subprocess.TimeoutExpired(command, timeout, out, err)
    return subprocess.CompletedProcess(command, status, out, err)


def _early(environment):
    return {name: value for name, value in environment.items() if name.startswith(_READ_EARLY)}


_STARTED_WITH = _early(os.environ)


def _server():
    if not _SERVER:
        command = [sys.executable, __file__]
        _SERVER.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        atexit.register(_SERVER[0].communicate)
    return _SERVER[0]


def _serve():
    """Fork for every command that is asked for; returns in the fork, with its arguments."""
    while line := _read_line():
        asked = json.loads(line)
        child = os.fork()
        if not child:
            _become(asked)
            return asked["arguments"]
        signal.signal(signal.SIGALRM, lambda *_, child=child: os.kill(child, signal.SIGKILL))
        signal.alarm(asked["timeout"])
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        in_time = signal.alarm(0) > 0
        os.write(1, f"{json.dumps(status if in_time else None)}\n".encode())
    return None


def _read_line():
    """From the descriptor, so that nothing stays in a buffer that a fork would inherit."""
    line = b""
    while not line.endswith(b"\n") and (some := os.read(0, 1 << 16)):
        line += some
    return line


def _become(asked):
    """Take on a command's files, environment and folder."""
    for number, path in enumerate(asked["files"]):
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["cwd"])


def _preload():
    import numba  # noqa: F401
    import torch  # noqa: F401
    import typer  # noqa: F401


if __name__ == "__main__":
    _preload()
    if (arguments := _serve()) is not None:
        sys.argv = ["glm_int4", *arguments]
        sys.path[0] = os.getcwd()  # as python -m has it
        runpy.run_module("glm_int4", run_name="__main__", alter_sys=True)
