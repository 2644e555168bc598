"""The README says what the results and the program say."""

import re
import subprocess
import sys

from tests.conftest import EXAMPLES

ROOT = EXAMPLES.parent


def test_the_tables_are_generated_from_the_committed_results():
    result = subprocess.run([sys.executable, ROOT / "benchmarks" / "tables.py", "--check"])
    assert result.returncode == 0, "run python benchmarks/tables.py"


def test_the_documents_name_files_and_commands_that_exist():
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for path in re.findall(r"\]\(([^):]+)\)", text) + re.findall(r"python ((?:tools|benchmarks)/\w+\.py)", text):
            assert (ROOT / path).exists(), f"{name} names {path}"
        for command in re.findall(r"glm-int4 (\w+)", text):
            if command not in ("says",):
                assert (ROOT / "glm_int4" / "cli" / f"{command}.py").is_file(), f"{name} names {command}"
