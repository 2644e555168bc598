"""What runs where a package cannot be imported: Triton (macOS, Windows), Numba, transformers."""

import subprocess
import sys

import pytest

from tests.conftest import EXAMPLES, MINI

# Blocks packages as if they were not installed, then goes the whole way.
SCRIPT = """
import sys
blocked, model, output = sys.argv[1].split(","), *sys.argv[2:]
sys.modules |= dict.fromkeys(blocked)

import torch
import glm_int4
from glm_int4.cli.main import app

report = glm_int4.quantize_checkpoint(model, output, bits=4)
question, greedy = [{"role": "user", "content": "3加5等于几?"}], glm_int4.SamplingParams(temperature=0)
for folder, options in ((output, {}), (output, {"kv_bits": 8}), (output, {"dtype": torch.float32}), (model, {})):
    glm = glm_int4.load(folder, device="cpu", **options)
    assert glm.chat(question, sampling=greedy) == "8", (folder, options)
loaded = [name for name in blocked if sys.modules[name] is not None]
assert not loaded, loaded
print(glm_int4.load(output, device="cpu").setup.backend)
"""


def run(blocked, output):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, ",".join(blocked), MINI, output],
        capture_output=True,
        text=True,
        cwd=EXAMPLES.parent,
    )


@pytest.mark.parametrize("blocked", [["triton"], ["triton", "numba", "transformers"]], ids="+".join)
def test_quantizing_and_chatting_work_without(blocked, tmp_path):
    result = run(blocked, tmp_path / "int4")
    assert result.returncode == 0, result.stderr
    expected = ("reference",) if "numba" in blocked else ("integer", "float32")
    assert result.stdout.split()[-1] in expected


def test_a_chat_on_a_cpu_loads_no_compiler_of_torch(tmp_path):
    """Which takes a second and 0.1 GB; the script fails where a blocked module was imported all the same."""
    result = run(["torch._dynamo", "triton"], tmp_path / "int4")
    assert result.returncode == 0, result.stderr
