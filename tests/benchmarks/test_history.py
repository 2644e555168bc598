"""A row for every commit and machine, whose measurement is stubbed here."""

import pytest

from benchmarks.history import add_row, read_history

KNOWN = {
    "date": "2026-01-01",
    "commit": "abc",
    "cpu": "a CPU, shared",
    "capability": "AVX2",
    "threads": 2,
    "torch": "2",
}


def test_rows_of_other_commits_and_machines_are_appended(tmp_path):
    path = tmp_path / "history.csv"
    for changed in ({}, {"commit": "abd"}, {"threads": 1}):
        add_row(path, KNOWN | changed, lambda: {"decode_tokens_per_s": 12.3456})
    rows = read_history(path)
    assert [(row["commit"], row["threads"]) for row in rows] == [("abc", "2"), ("abd", "2"), ("abc", "1")]
    assert rows[0]["cpu"] == "a CPU, shared"
    assert rows[0]["decode_tokens_per_s"] == "12.35"
    assert "torch" not in rows[0]


def test_a_second_row_of_a_commit_is_refused_before_anything_is_measured(tmp_path):
    path = tmp_path / "history.csv"
    add_row(path, KNOWN, lambda: {"decode_tokens_per_s": 1.0})
    with pytest.raises(SystemExit, match="expected no row of commit abc on a CPU, shared; use --again"):
        add_row(path, KNOWN | {"date": "2026-01-02"}, lambda: pytest.fail("measured"))
    assert len(read_history(path)) == 1


def test_again_replaces_the_row_and_a_new_figure_leaves_older_rows_empty(tmp_path):
    path = tmp_path / "history.csv"
    for commit in ("abb", "abc"):
        add_row(path, KNOWN | {"commit": commit}, lambda: {"decode_tokens_per_s": 1.0})
    add_row(path, KNOWN, lambda: {"decode_tokens_per_s": 2.0, "new": 3.0}, again=True)
    rows = [(row["commit"], row["decode_tokens_per_s"], row["new"]) for row in read_history(path)]
    assert rows == [("abb", "1", ""), ("abc", "2", "3")]
