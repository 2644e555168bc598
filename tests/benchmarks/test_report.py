"""What becomes of measurements: kept figures, tables and plots."""

import sys

import pytest

from tests.conftest import EXAMPLES

MACHINE = {
    "device": "a machine",
    "capability": "AVX512",
    "threads": 2,
    "torch": "2.13.0",
    "commit": "abc",
    "date": "2026-01-01",
    "bandwidth_gb_s": 40.0,
}


def row(model, way, kind, rate, **what):
    sizes = {"weight_bytes": 3_300_000_000, "memory_bytes": 3_500_000_000, "kv_bytes": 28672}
    return {"model": model, "layers": 28, "way": way, "kind": kind, "tokens_per_s": rate} | sizes | what


ROWS = [
    row("chatglm-6b", "int4", "decode", 9.5, batch=1, context=128, bytes_per_token=3.3e9, share=0.8),
    row("chatglm-6b", "half", "decode", 2.5, batch=1, context=128, bytes_per_token=12.4e9, share=0.8),
    row("chatglm3-6b", "int4", "decode", 9.0, batch=1, context=128, bytes_per_token=3.2e9, share=0.7),
    row("chatglm3-6b", "llama.cpp q4_0", "prefill", 45.0, tokens=512),
]


@pytest.fixture
def programs(monkeypatch):
    """The modules of the benchmarks folder."""
    monkeypatch.syspath_prepend(str(EXAMPLES.parent / "benchmarks"))
    import generate_report
    import generate_tables
    import plots

    yield generate_report, generate_tables, plots
    for name in ("generate_report", "generate_tables", "plots"):
        sys.modules.pop(name)


@pytest.fixture
def result(programs):
    measured = {"benchmarks": [{"extra_info": MACHINE | row} for row in ROWS] + [{"extra_info": {}}]}
    return programs[0].condense(measured)


def test_the_machine_is_kept_once_and_every_figure_in_a_row(result):
    assert result["machine"] == MACHINE
    assert result["rows"] == ROWS


def test_a_table_has_a_column_for_every_way_and_says_what_is_missing(programs, result):
    lines = programs[1].speed_of("cpu", result).splitlines()
    assert lines[0] == "| tokens/s, CPU | INT4 | half precision | llama.cpp Q4_0 |"
    assert lines[2] == "| ChatGLM-6B, answer behind 128 | 9.5 (80 %) | 2.5 (80 %) | not measured |"
    assert lines[4] == "| ChatGLM3-6B, prompt of 512 | not measured | not measured | 45.0 |"
    assert "a machine (AVX512), 2 threads, torch 2.13.0, 2026-01-01, commit abc" in lines[-1]
    assert "not measured yet (`make gpu-bench`)" in programs[1].speed_of("gpu", None)


def test_plots_are_the_same_from_run_to_run(programs, result, tmp_path):
    for name in programs[2].PLOTS:
        first = programs[2].draw(name, "cpu", result, tmp_path / "a").read_bytes()
        assert programs[2].draw(name, "cpu", result, tmp_path / "b").read_bytes() == first
        assert len(first) > 5000
