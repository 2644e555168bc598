"""Waiting threads sleep on a busy machine and stay awake on a quiet one."""

import pytest

from glm_int4.quantization.cpu.waiting import Waiting


class Machine:
    """A clock, the seconds that threads were kept waiting, and whether our sleepers are there."""

    def __init__(self, knows_pressure=True):
        self.now, self.stalled, self.asleep, self.changes = 100.0, 5.0, False, 0
        self.waiting = Waiting(lambda: self.stalled if knows_pressure else None, self)

    def start(self):
        assert not self.asleep
        self.asleep, self.changes = True, self.changes + 1

    def stop(self):
        assert self.asleep
        self.asleep, self.changes = False, self.changes + 1

    def run(self, seconds, busy):
        """Look every millisecond, while threads wait for this share of the time."""
        for _ in range(round(seconds * 1000)):
            self.now += 0.001
            self.stalled += 0.001 * busy
            self.waiting.look(self.now)


def test_they_sleep_until_the_machine_was_seen_to_be_quiet():
    machine = Machine()
    machine.waiting.look(machine.now)
    assert machine.asleep
    machine.run(0.6, busy=0.05)
    assert not machine.asleep


def test_a_busy_machine_is_noticed_soon():
    machine = Machine()
    machine.run(0.6, busy=0.0)
    assert not machine.asleep
    machine.run(0.05, busy=0.9)
    assert machine.asleep


def test_they_sleep_on_while_the_others_wait_less_for_us():
    """Who sleeps keeps nobody waiting: beside two busy loops a quarter of the time is left of nearly all of it."""
    machine = Machine()
    machine.run(0.6, busy=0.0)
    machine.run(0.1, busy=0.9)
    machine.run(5.0, busy=0.25)
    assert (machine.asleep, machine.changes) == (True, 3)
    machine.run(1.0, busy=0.0)
    assert not machine.asleep


@pytest.mark.parametrize("busy", [0.0, 0.35])
def test_short_disturbances_are_none(busy):
    machine = Machine()
    machine.run(0.6, busy=0.0)
    machine.run(0.1, busy=busy)
    assert not machine.asleep


def test_they_sleep_where_nobody_knows():
    machine = Machine(knows_pressure=False)
    machine.run(5.0, busy=0.0)
    assert (machine.asleep, machine.changes) == (True, 1)
