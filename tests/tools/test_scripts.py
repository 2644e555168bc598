"""Every program of tools/ and examples/ can be imported and says how it is used."""

import runpy
import sys

import pytest

from tests.conftest import EXAMPLES
from tests.server.test_example_clients import LIBRARIES

ROOT = EXAMPLES.parent
SCRIPTS = sorted(path for folder in ("tools", "examples") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_program_says_how_it_is_used(script, monkeypatch, capsys, tmp_path):
    if library := ({"openai_client.py": "openai"} | LIBRARIES).get(script.name):
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(script.parent)  # as Python does for a program
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    assert end.value.code == 0
    assert "usage:" in capsys.readouterr().out.lower()
    assert not list(tmp_path.iterdir())
