"""The examples of examples/clients, each with its library and a server of the mini model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import EXAMPLES

ROOT = EXAMPLES.parent
LIBRARIES = {
    "with_openai.py": "openai",
    "with_langchain.py": "langchain_openai",
    "with_litellm.py": "litellm",
    "with_llama_index.py": "llama_index",
    "with_instructor.py": "instructor",
}
SHOWN = {name: ["chat: 8", "stream: 8", "completion: 8"] for name in LIBRARIES} | {
    "with_langchain.py": ["chat: 8", "chain: 8", "stream: 8", "completion: 8"],
    "with_instructor.py": ["object: 5"],
}
ABSENT = "import importlib.util, sys; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)"


def python_with(library):
    """This Python, or that of the virtual environment for clients that want older packages, if it has a library."""
    for python in (sys.executable, os.environ.get("CLIENTS_PYTHON", ROOT / "build" / "clients" / "bin" / "python")):
        if Path(python).is_file() and not subprocess.run([python, "-c", ABSENT, library], check=False).returncode:
            return python
    pytest.skip(f"needs {library}: make nightly installs it")


def test_every_example_is_run():
    assert {path.name for path in (EXAMPLES / "clients").glob("*.py")} == LIBRARIES.keys()


@pytest.mark.slow(10)
@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("way", ["argument", "environment"])
def test_a_client_gets_the_answers(mini_server, name, way):
    python, url = python_with(LIBRARIES[name]), f"{mini_server.url}/v1"
    arguments = [url] if way == "argument" else []
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "PYTHONPATH"))}
    here = kept | ({"OPENAI_BASE_URL": url} if way == "environment" else {})
    result = subprocess.run(
        [python, EXAMPLES / "clients" / name, *arguments], capture_output=True, text=True, timeout=300, env=here
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == SHOWN[name]
