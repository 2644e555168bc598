"""Every program of tools/ and examples/ can be imported and says how it is used."""

import runpy
import sys

import pytest

from tests.conftest import EXAMPLES

ROOT = EXAMPLES.parent
SCRIPTS = sorted(path for folder in ("tools", "examples") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_program_says_how_it_is_used(script, monkeypatch, capsys, tmp_path):
    if script.name == "openai_client.py":
        pytest.importorskip("openai")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(script.parent)  # as Python does for a program
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    assert end.value.code == 0
    assert "usage:" in capsys.readouterr().out.lower()
    assert not list(tmp_path.iterdir())
