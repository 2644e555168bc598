"""What becomes of measurements: kept figures, tables and plots."""

import string

import pytest

from benchmarks.report import plots
from benchmarks.report.condense import condense
from benchmarks.report.tables import speed_of
from benchmarks.report.texts import TEXTS

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


def measured(*rows):
    """What pytest-benchmark writes of rows; one without figures is skipped."""
    named = [
        {"name": "-".join(str(row.get(key)) for key in ("model", "way", "kind")), "extra_info": row} for row in rows
    ]
    return {"benchmarks": [*named, {"name": "skipped", "extra_info": {}}]}


@pytest.fixture
def result():
    return condense(measured(*(MACHINE | row for row in ROWS)))


def test_the_machine_is_kept_once_and_every_figure_in_a_row(result):
    assert result["machine"] == MACHINE
    assert result["rows"] == ROWS


def test_what_is_measured_again_takes_the_place_of_the_first_figure():
    again = MACHINE | {"commit": "abd"} | ROWS[1] | {"tokens_per_s": 3.0, "bandwidth_gb_s": 44.0}
    result = condense(measured(*(MACHINE | row for row in ROWS)), measured(again))
    assert [row["tokens_per_s"] for row in result["rows"]] == [9.5, 3.0, 9.0, 45.0]
    assert result["machine"] == MACHINE | {"commit": "abc, abd", "bandwidth_gb_s": 44.0}


def test_figures_of_two_machines_are_not_joined():
    other = MACHINE | {"threads": 1} | ROWS[0]
    with pytest.raises(SystemExit, match=r"expected runs on one machine, got threads \['1', '2'\]"):
        condense(measured(MACHINE | ROWS[1]), measured(other))


def test_a_table_has_a_column_for_every_way_and_says_what_is_missing(result):
    lines = speed_of("cpu", result).splitlines()
    assert lines[0] == "| tokens/s, CPU | INT4 | half precision | llama.cpp Q4_0 |"
    assert lines[2] == "| ChatGLM-6B, answer behind 128 | 9.5 (80 %) | 2.5 (80 %) | not measured |"
    assert lines[4] == "| ChatGLM3-6B, prompt of 512 | not measured | not measured | 45.0 |"
    assert "a machine (AVX512), 2 threads, torch 2.13.0, 2026-01-01, commit abc" in lines[-1]
    assert "not measured yet (`make gpu-bench`)" in speed_of("gpu", None)


def test_the_same_table_in_chinese_has_the_same_figures(result):
    lines = speed_of("cpu", result, "zh").splitlines()
    assert lines[0] == "| tokens/s, CPU | INT4 | 半精度 | llama.cpp Q4_0 |"
    assert lines[2] == "| ChatGLM-6B，128 token 之后的生成 | 9.5 (80 %) | 2.5 (80 %) | 未测量 |"
    assert "a machine（AVX512），2 个线程，torch 2.13.0，2026-01-01，提交 abc" in lines[-1]


@pytest.mark.parametrize("key", TEXTS)
def test_a_text_has_the_same_figures_and_headings_in_both_languages(key):
    english, chinese = (
        sorted((name, form) for _, name, form, _ in string.Formatter().parse(text) if name and name != "s")
        for text in TEXTS[key]
    )
    assert chinese == english
    assert TEXTS[key][1].count("|") == TEXTS[key][0].count("|")


def test_plots_are_the_same_from_run_to_run(result, tmp_path):
    for name, plot in plots.PLOTS.items():
        first, second = (plots.draw(tmp_path / folder / f"{name}.svg", plot, result).read_bytes() for folder in "ab")
        assert first == second
        assert len(first) > 5000
