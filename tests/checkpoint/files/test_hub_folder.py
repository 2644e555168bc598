"""The hub's cache where it cannot be written: one line that names the variable, and no word of the network."""

import errno
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from glm_int4.checkpoint.files.folder import resolve_folder
from glm_int4.errors import InputError
from tests.conftest import TINY
from tests.read_only import in_read_only_system

COMMIT = "a" * 40


class Hub(BaseHTTPRequestHandler):
    """A hub with one repository, of one file."""

    def do_GET(self):
        answer = {"id": "owner/name", "sha": COMMIT, "siblings": [{"rfilename": "config.json"}]}
        if "/tree/" in self.path:
            answer = [{"type": "file", "path": "config.json", "size": 2, "oid": "b" * 40}]
        content = json.dumps(answer).encode() if "/api/" in self.path else b"{}"
        self.send_response(200)
        headers = {"Content-Length": len(content), "ETag": f'"{"b" * 40}"', "X-Repo-Commit": COMMIT}
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def do_HEAD(self):
        self.do_GET()

    def log_message(self, format, *arguments):
        pass


@pytest.fixture
def hub():
    """What a program needs in its environment to ask the hub of this test."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
        server.shutdown()
        thread.join()


def without_hub():
    return {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_CACHE"))}


COMMAND = [sys.executable, "-m", "glm_int4", "info", "owner/name"]


def test_a_cache_folder_that_cannot_be_made_is_named_with_the_variable(hub, tmp_path):
    (tmp_path / "file").write_text("")
    environment = without_hub() | hub | {"HF_HOME": str(tmp_path / "file" / "cache")}
    result = subprocess.run(COMMAND, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "expected a folder that can be written, to download owner/name to" in line
    assert str(tmp_path / "file") in line
    assert "set HF_HOME to one, or pass a local folder" in line


def test_a_model_that_is_there_is_taken_from_a_cache_that_cannot_be_written(hub, tmp_path):
    environment = hub | {"HF_HOME": str(tmp_path)}
    first = subprocess.run(COMMAND, env=without_hub() | environment, capture_output=True, text=True, timeout=120)
    assert 'expected model_type "chatglm"' in first.stderr
    again = in_read_only_system(COMMAND, env=environment)
    assert 'expected model_type "chatglm"' in again.stderr.splitlines()[-1]


def test_a_read_only_system_names_the_variable(hub):
    result = in_read_only_system(COMMAND, env=hub)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "got /nonexistent/.cache/huggingface/hub: Read-only file system; set HF_HOME to one" in line


def test_a_local_folder_needs_no_cache_of_the_hub():
    result = in_read_only_system([*COMMAND[:-1], TINY])
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "Permission denied"), ConnectionError("no network")])
def test_a_socket_that_is_refused_is_not_taken_for_a_folder(monkeypatch, error):
    def fail(name, allow_patterns):
        raise RuntimeError("no answer") from error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(InputError, match=r"download failed \(no answer\)"):
        resolve_folder("owner/name")


def test_a_full_disk_is_named(monkeypatch):
    def fail(name, allow_patterns):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(InputError, match="got the hub's cache: No space left on device; set HF_HOME"):
        resolve_folder("owner/name")
