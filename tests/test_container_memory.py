"""Memory in a container: what its control groups leave, in both of Linux's versions."""

import pytest
import torch

from glm_int4 import system

MIB = 1 << 20


def container(root, line, files):
    """A file system with one control group."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(line + "\n")
    for name, content in files.items():
        path = root / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def test_the_limit_of_version_2_and_what_is_left_without_cached_files(tmp_path):
    statistics = f"anon 1\ninactive_file {15 * MIB}\nactive_file {5 * MIB}"
    files = {"memory.max": 100 * MIB, "memory.current": 70 * MIB, "memory.stat": statistics}
    root = container(tmp_path, "0::/", files)
    assert system.container_memory(root) == (100 * MIB, 50 * MIB)


def test_the_limit_of_version_1_in_a_container_that_does_not_see_its_own_path(tmp_path):
    files = {
        "memory/memory.limit_in_bytes": 100 * MIB,
        "memory/memory.usage_in_bytes": 70 * MIB,
        "memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {10 * MIB}\ntotal_active_file 0",
    }
    root = container(tmp_path, "4:cpu:/docker/abc\n3:memory:/docker/abc", files)
    assert system.container_memory(root) == (100 * MIB, 40 * MIB)


def test_the_tightest_of_nested_groups_counts(tmp_path):
    files = {
        "user.slice/memory.max": 80 * MIB,
        "user.slice/memory.current": 79 * MIB,
        "user.slice/a/memory.max": 200 * MIB,
        "user.slice/a/memory.current": 10 * MIB,
    }
    root = container(tmp_path, "0::/user.slice/a", files)
    assert system.container_memory(root) == (80 * MIB, MIB)


@pytest.mark.parametrize("files", [{}, {"memory.max": "max", "memory.current": 5}, {"memory.max": "1 000"}])
def test_no_limit(tmp_path, files):
    assert system.container_memory(container(tmp_path, "0::/", files)) is None


@pytest.mark.parametrize("line", ["", "nonsense", "0::"])
def test_strange_files_are_no_limit(tmp_path, line):
    assert system.container_memory(container(tmp_path, line, {})) is None
    assert system.container_memory(tmp_path / "nowhere") is None


def test_a_limit_is_what_loading_plans_with(monkeypatch):
    monkeypatch.setattr(system, "container_memory", lambda: (64 * MIB, MIB))
    assert system.total_bytes() == 64 * MIB
    assert system.free_bytes(torch.device("cpu")) == system.available_bytes() == MIB
