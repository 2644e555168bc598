"""The floors of a decoding step: every launch of the code is counted, and the committed figures are those of today."""

import json

import pytest

pytest.importorskip("triton")

from benchmarks.kernels import floors
from benchmarks.machine import RESULTS


@pytest.mark.parametrize("preset", ["chatglm-6b", "chatglm2-6b"])
def test_the_committed_launches_are_those_that_the_code_makes(preset):
    rows = json.loads((RESULTS / "floors.json").read_text(encoding="utf-8"))["rows"]
    (row,) = (row for row in rows if (row["model"], row["bits"]) == (preset, 4))
    for card in floors.MULTIPROCESSORS:
        counted = floors.step_launches(preset, 4, card)
        assert counted == (row["launches"][f"sm_{card}"], row["launches_before"][f"sm_{card}"])


def test_torchs_own_kernels_and_those_of_all_layers_are_counted():
    layers = 28
    in_graph, before = floors.step_launches("chatglm2-6b", 16, 90)
    # Two norms, rotary embedding, attention in two passes, four products and two for the activation.
    around = in_graph - layers * (5 + 4 + 2)
    assert around in range(2, 10)  # embedding, first norm, head, and what brings types together
    assert before == 3  # tokens, positions and columns
