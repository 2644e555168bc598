"""The fuzzer sees what it looks for: faults, time, memory, crashes, hangs, and lines that ran."""

import random
import sys
import threading
import time

import pytest

from glm_int4.errors import InputError
from glm_int4.text.chat.messages import is_blank
from tests.fuzz import fuzzer, watching
from tests.fuzz.mutations import Kind, mutate


class Told:
    """A target that does what it is told."""

    def __init__(self, act):
        self._act = act

    def use(self, kind, data):
        return self._act()


def raises(error):
    def act():
        raise error

    return act


def spends_time():
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass


@pytest.mark.parametrize(
    ("act", "fault"),
    [
        (raises(ValueError("x")), "ValueError at test_watching.py"),
        (raises(InputError("a\nb")), "not one line"),
        (raises(InputError("a" * 3001)), "not one line"),
        (spends_time, "of processor time"),
    ],
)
def test_what_must_not_happen_is_a_fault(monkeypatch, act, fault):
    monkeypatch.setattr(watching, "MAX_SECONDS", 0.05)
    found, _ = watching.outcome(Told(act), "kind", b"")
    assert fault in found


def test_memory_that_grows_is_a_fault(monkeypatch):
    peaks = iter([0, watching.MAX_GROWTH_BYTES + 1])
    monkeypatch.setattr(watching, "peak_bytes", lambda: next(peaks))
    found, _ = watching.outcome(Told(lambda: None), "kind", b"")
    assert "bytes of memory" in found


def test_an_error_of_one_line_is_none_and_its_words_tell_it_from_others():
    error = InputError("expected a text, got 'some words'; write one")
    assert watching.outcome(Told(raises(error)), "kind", b"") == (None, "expected a text, got ; write one")
    assert watching.outcome(Told(lambda: None), "kind", b"") == (None, "no error")
    assert watching.outcome(Told(lambda: "expected more"), "kind", b"") == (None, "expected more")


def test_lines_of_the_package_count_in_every_thread_of_a_block():
    lines = watching.Lines()
    try:
        with lines:
            is_blank("a")
        seen = set(lines.seen)
        is_blank("a")
        assert {path for path, _ in seen} == {is_blank.__code__.co_filename}
        assert lines.seen == seen
        lines.seen.clear()
        with lines:
            thread = threading.Thread(target=is_blank, args=("a",))
            thread.start()
            thread.join()
        assert lines.seen == seen
    finally:
        threading.settrace(None)


STARTED = 'print(\'{"executions": 0, "lines": 0, "messages": 0}\', flush=True); '


@pytest.mark.parametrize(
    ("program", "fault"),
    [
        ("import os; os.abort()", "ended with status -6"),
        ("1 / 0", "ended with status 1 ZeroDivisionError"),
        ("import time; time.sleep(60)", "no answer in 1 s"),
    ],
)
def test_a_crash_and_a_hang_are_faults(monkeypatch, tmp_path, program, fault):
    monkeypatch.setattr(fuzzer, "HANG_SECONDS", 1)
    found, _, last, _ = fuzzer.watch([sys.executable, "-c", STARTED + program], tmp_path, 30)
    assert found.startswith(fault)
    assert last["executions"] == 0


def test_a_child_that_finds_something_is_believed_and_one_that_never_starts_ends_the_run(tmp_path):
    program = STARTED + 'print(\'{"fault": "x", "kind": "k", "file": "f"}\'); print(\'{"executions": 1}\')'
    fault, findings, last, _ = fuzzer.watch([sys.executable, "-c", program], tmp_path, 30)
    assert (fault, findings, last) == ("ended with status 0", {"k: x": "f"}, {"executions": 1})
    with pytest.raises(RuntimeError, match="the child did not start"):
        fuzzer.watch([sys.executable, "-c", "1 / 0"], tmp_path, 30)


@pytest.mark.parametrize("kind", ["bytes", "text", "json", "json lines", "safetensors", "archive"])
def test_mutations_of_every_format_are_new_and_the_same_for_a_seed(kind):
    seed = b'[{"role": "user", "content": "\xe4\xbd\xa0\xe5\xa5\xbd", "deep": [[1]]}]'
    known = Kind(format=kind, seeds=(seed,), words=("content", "x"))

    def variants():
        rng, data, made = random.Random(0), seed, []
        for _ in range(100):
            data = mutate(data if len(data) < 2000 else seed, known, rng, [seed, data])
            made.append(data)
        return made

    first = variants()
    assert first == variants()
    assert len(set(first)) > 70
