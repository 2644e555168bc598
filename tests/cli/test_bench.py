"""``glm-int4 bench`` as a user runs it."""

import json

import pytest

from tests.cli.test_commands import glm, text
from tests.conftest import FIXTURES


def test_bench_prints_the_contracts_json_and_progress_beside_it():
    arguments = ("--device", "cpu", "--threads", 1, "--prefill", 16, "--batch", "1,2", "--context", 16, "--json")
    result = glm("bench", "chatglm2-6b", "--layers", 1, "--bits", 4, *arguments)
    report = json.loads(text(result))
    assert (report["model"], report["bits"], report["device"], report["threads"]) == ("chatglm2-6b", 4, "cpu", 1)
    assert [row["batch"] for row in report["decode"]] == [1, 2]
    assert report["bandwidth_gb_s"] > 0
    assert report["peak_bytes"] > 7e8  # the two matrices of the vocabulary alone take 5.3e8
    assert "decoding 2 x 16 tokens" in result.stderr.decode()


@pytest.mark.slow(20)
def test_bench_prints_a_table():
    out = text(glm("bench", FIXTURES / "v2_tiny", "--device", "cpu", "--prefill", 8, "--batch", 1, "--context", 16))
    assert "of the bandwidth" in out
    assert "16 bits" in out


@pytest.mark.slow(10)
def test_mistakes_are_named():
    for arguments, message in (
        (("chatglm-6b", "--bits", 5), "expected --bits 4, 8 or 16, got 5"),
        (("chatglm-6b", "--context", "8,x"), "expected --context to be whole numbers from 1 on"),
        (("chatglm-6b", "--device", "cpu", "--tune"), "expected a CUDA device for --tune"),
        (("chatglm-5b", "--device", "cpu"), "chatglm-5b"),
    ):
        result = glm("bench", *arguments)
        assert result.returncode == 2, result.stderr
        assert message in result.stderr.decode()
