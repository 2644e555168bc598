"""How the kernels run here; Triton must be told to interpret before it is imported."""

import os

import pytest

from tests.triton_kernels.on_cpu import ARCHITECTURE

INTERPRETED, EMULATED = os.environ.get("TRITON_INTERPRET") == "1", "EMULATED_SM" in os.environ
collect_ignore_glob = [] if EMULATED else ["test_engine.py"] if INTERPRETED else ["test_*.py"]


@pytest.fixture(autouse=EMULATED)
def emulator(monkeypatch):
    from tests.triton_kernels.emulator.launching import emulated
    from triton_kernels import decode, gpu, launch

    choose = launch.attention

    def attention(heads_per_kv_head, *, tensor_cores):
        return choose(heads_per_kv_head, tensor_cores=tensor_cores and ARCHITECTURE >= 80)

    monkeypatch.setattr(launch, "attention", attention)
    with emulated(ARCHITECTURE, gpu, decode):
        yield
