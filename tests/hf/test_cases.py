"""Every row of the table in docs/transformers.md, as it stands there."""

import importlib.util
import logging
import warnings

import pytest
import torch

from tests.hf.cases import CASES, DOCUMENT, render
from tests.hf.worlds import World

ROWS = [(case, kind) for case in CASES for kind in case.on]


@pytest.fixture(scope="session")
def folders(small_checkpoints, mini_int4):
    return small_checkpoints | {"INT4": mini_int4}


@pytest.mark.parametrize(("case", "kind"), ROWS, ids=[f"{kind}-{case.call}" for case, kind in ROWS])
def test_what_the_table_says_happens(case, kind, folders, tmp_path, caplog):
    for package in case.needs:
        if package == "no GPU":
            if torch.cuda.is_available():
                pytest.skip("needs a machine without CUDA")
        elif importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}: pip install {package}")
    caplog.set_level(logging.INFO)
    out = tmp_path / "out"
    out.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft, accelerate and transformers warn of each other
        case.run(World(kind, folders, out, caplog))


def test_the_table_of_the_document_is_that_of_the_cases():
    document = DOCUMENT.read_text(encoding="utf-8")
    assert "<!-- table: cases -->" in document
    assert render(document) == document, "run python -m tests.hf.cases"
