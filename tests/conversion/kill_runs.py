"""Kills quantizing runs at many moments, and checks what they leave; a program that test_killed_runs.py starts.

It imports everything and compiles the Numba loop once, and forks a child for every run. The parent computes on
one thread, and Numba's work queue is the layer that stands a fork.
"""

import argparse
import contextlib
import io
import json
import mmap
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import numba
import numpy as np
import torch

from glm_int4.checkpoint.opening import open_checkpoint
from glm_int4.checkpoint.writing import publishing
from glm_int4.conversion import quantizing
from glm_int4.errors import UserError
from glm_int4.quantization.rounding import rtn_loops
from tests.conftest import MINI, TINY

CALLS = ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync", "open")
NO_KILL = "no kill: the run ended before, or had nothing to do"
OURS, FOREIGN = "a checkpoint of ours", "somebody's files"


class Board:
    """Shared memory on which a child notes its last call, whole whenever it is killed.

    Two places take turns, and one byte says which of them holds: it changes once the other is written.
    """

    PLACE = 2048  # bytes

    def __init__(self):
        self.memory = mmap.mmap(-1, 1 + 2 * self.PLACE)

    def note(self, number, call):
        turn = 1 - self.memory[0]
        start = 1 + turn * self.PLACE
        text = json.dumps([number, call]).encode() + b"\0"
        self.memory[start : start + len(text)] = text
        self.memory[0] = turn

    def read(self):
        start = 1 + self.memory[0] * self.PLACE
        return json.loads(self.memory[start : start + self.PLACE].split(b"\0")[0])


class Killer:
    """Runs in a child: kills it before a call that changes the disk, and tells the last call it made.

    Args:
        board: where it tells.
        at: number of the call, or its name as told, for the first of that name; None: no kill.
        exchange: the system can exchange two folders.
    """

    def __init__(self, board, at=None, exchange=True):
        self.board, self.at, self.count = board, at, 0
        for name in CALLS[:-1]:
            self._watch(os, name)
        self._watch(io, "open")
        if exchange:
            self._watch(publishing, "exchange")
        else:
            publishing.exchange = lambda first, second: False

    def _watch(self, module, name):
        real = getattr(module, name)

        def watched(*args, **kwargs):
            if name != "open" or "w" in str(args[1:2]):
                self.count += 1
                target = Path(os.fsdecode(args[0])).name if args and not isinstance(args[0], int) else ""
                call = f"{name} {phase_name(target)}".strip()
                self.board.note(self.count, call)
                if self.at in (self.count, call):
                    os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        setattr(module, name, watched)


def phase_name(name):
    for part, phase in (
        (".replaced-", "replaced"),
        ("model-0", "shard"),
        ("progress", "progress"),
        (".partial", "partial"),
        (".old-", "kept"),
    ):
        if part in name:
            return phase
    return name.removesuffix(".tmp")


class Trials:
    """One source, one output, and how runs end there."""

    def __init__(self, work, source, options, old):
        self.work, self.source, self.options, self.old = work, source, options, old
        self.board = Board()
        self.out, self.partial = work / "out", work / "out.partial"
        self.old_folder, self.whole = work.parent / f"{work.name}-old", work.parent / f"{work.name}-whole"
        work.mkdir()
        for folder, opts in ((self.old_folder, old), (self.whole, options)):
            assert self.run(folder, opts) == 0
        self.seconds = min(self.timed_run() for _ in range(3))

    def run(self, output, options, *, at=None, after=None, exchange=True, overwrite=False, resume=True):
        """Run in a child; returns its exit code, negative where a signal ended it."""
        self.board.note(0, "nothing yet")
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                Killer(self.board, at, exchange)
                quantizing.quantize_checkpoint(self.source, output, resume=resume, overwrite=overwrite, **options)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        if after is not None:
            time.sleep(after)
            os.kill(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def timed_run(self):
        started = time.monotonic()
        self.reset(None)
        assert self.run(self.out, self.options) == 0
        return time.monotonic() - started

    def last_call(self):
        """Number and name of the last call that a child made."""
        return self.board.read()

    def reset(self, before):
        shutil.rmtree(self.work)
        self.work.mkdir()
        if before == OURS:
            shutil.copytree(self.old_folder, self.out)
        elif before == FOREIGN:
            self.out.mkdir()
            (self.out / "precious.txt").write_text("mine")

    def check_killed(self, before, exchange):
        """After a kill: the output is what was there before or the new one; nothing unfinished loads."""
        if self.out.exists():
            assert self.is_new() or self.is_old(self.out, before)
        elif before is not None:
            assert not exchange, "the output is gone"
            candidates = list(self.work.glob(".out.replaced-*/out"))  # one of ours that the next run puts back
            assert len(candidates) == 1 or (not candidates and before == FOREIGN)
            assert all(is_whole(folder, self.whole) or self.is_old(folder, before) for folder in candidates)
        if before == FOREIGN:
            assert len(list(self.work.glob("**/precious.txt"))) == 1
        if (self.partial / "progress.json").exists():
            try:
                open_checkpoint(self.partial)
            except UserError:
                return
            raise AssertionError("an unfinished folder loads")

    def check_end(self, before):
        """After a resumed run: the output is that of an uninterrupted run, and only what is not ours lies beside it."""
        assert self.is_new()
        assert {path.name for path in self.out.iterdir()} == {path.name for path in self.whole.iterdir()}
        beside = [path for path in self.work.rglob("*") if path.is_file() and path.parent != self.out]
        assert [path.name for path in beside] == (["precious.txt"] if before == FOREIGN else []), beside
        assert before == FOREIGN or list(self.work.iterdir()) == [self.out]

    def is_new(self):
        return is_whole(self.out, self.whole)

    def is_old(self, folder, before):
        if before == FOREIGN:
            return [path.name for path in folder.iterdir()] == ["precious.txt"]
        return before == OURS and is_whole(folder, self.old_folder)

    def trial(self, kills, before, exchange=True):
        """Kill one run after another, then let one end; returns the calls at which they were killed."""
        self.reset(before)
        hit = []
        for kill in kills:
            code = self.run(self.out, self.options, overwrite=before is not None, exchange=exchange, **kill)
            refused = code == 70 and not kill.get("resume", True) and self.is_new()  # nothing to start over
            assert code in (0, -signal.SIGKILL) or refused, code
            hit.append(self.last_call()[1] if code == -signal.SIGKILL else NO_KILL)
            self.check_killed(before, exchange)
        assert self.run(self.out, self.options, overwrite=before is not None, exchange=exchange) == 0
        self.check_end(before)
        return hit

    def calls(self, before, exchange):
        """How many calls an uninterrupted run makes."""
        self.reset(before)
        assert self.run(self.out, self.options, overwrite=before is not None, exchange=exchange) == 0
        return self.last_call()[0]


def is_whole(folder, like):
    """Whether a folder holds byte for byte what another does, but for the report, which holds durations."""
    same = [path for path in like.iterdir() if path.name != publishing.REPORT]
    if not all((folder / path.name).is_file() for path in same):
        return False
    open_checkpoint(folder)
    return all((folder / path.name).read_bytes() == path.read_bytes() for path in same)


@contextlib.contextmanager
def said(trial):
    """Say what was tried where it fails."""
    try:
        yield
    except BaseException:
        print(trial)
        raise


def warm_up():
    """Have the Numba loop compiled before the first fork: it takes 30 times as long as a run on the tiny model.

    Calling it would compile it too, but start Numba's threads, which a child does not have: it would wait for them.
    """
    torch.set_num_threads(1)
    numba.config.THREADING_LAYER, numba.config.NUMBA_NUM_THREADS = "workqueue", 1
    halves, floats, integers = (np.zeros((1, 32), dtype) for dtype in (np.uint16, np.float32, np.uint8))
    shares, sums = np.zeros(1, np.float32), np.zeros((1, 2))
    arguments = (halves, floats, 32, shares, True, 8, integers, floats, integers, sums)
    rtn_loops._search_rows.compile(tuple(map(numba.typeof, arguments)))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--random", type=int, default=30, help="kills at random times")
    args = parser.parse_args()
    warm_up()
    rng = random.Random(args.seed)
    phases = Counter()
    started = time.monotonic()

    tiny = Trials(args.work / "tiny", TINY, {"group_size": 32, "max_shard_bytes": 40_000}, {"group_size": 64})
    cases = [(None, True), (OURS, True), (OURS, False), (FOREIGN, True), (FOREIGN, False)]
    for before, exchange in cases:
        total = tiny.calls(before, exchange)
        for at in range(1, total + 1):
            again = [{"at": rng.randint(1, total), "resume": rng.random() < 0.6}] if rng.random() < 0.5 else []
            with said(f"killed before call {at}, then {again}; output before: {before}; exchange: {exchange}"):
                phases.update(tiny.trial([{"at": at}, *again], before, exchange))
    for at in range(1, 13):  # a run that starts over is killed while it deletes what another has left
        for before in (None, OURS):
            first = tiny.calls(before, True) - rng.randint(1, 12)
            with said(f"killed before call {first}, then, starting over, before call {at}; output before: {before}"):
                phases.update(tiny.trial([{"at": first}, {"at": at, "resume": False}], before))
    total = tiny.calls(OURS, False)
    for first in range(total - 10, total + 1):  # a run is killed while it puts aside what another had published
        with said(f"killed before call {first}, then, starting over, once the output has moved aside"):
            kills = [{"at": first}, {"at": "rename partial", "resume": False}]
            phases.update(tiny.trial(kills, OURS, exchange=False))
    calls = phases.total() - phases[NO_KILL]
    mini = Trials(args.work / "mini", MINI, {"bits": 4, "max_shard_bytes": 300_000}, {"bits": 8})
    for _ in range(args.random):
        kills = [{"after": rng.uniform(0, mini.seconds)} for _ in range(rng.choice((1, 1, 2)))]
        before = rng.choice((None, OURS))
        with said(f"killed after {kills} seconds; output before: {before}"):
            hit = mini.trial(kills, before)
            phases.update(call if call == NO_KILL else f"at random: {call}" for call in hit)
    at_random = phases.total() - phases[NO_KILL] - calls
    print(f"{calls} kills before calls, {at_random} at random, {time.monotonic() - started:.1f} s")
    for phase, count in sorted(phases.items()):
        print(f"{count:5d}  {phase}")


if __name__ == "__main__":
    main()
