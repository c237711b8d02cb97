"""What a worker remembers of runs that make trouble."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from durable_core.testing import FakeClock
from durable_worker._memory import Memory

UNTIL = datetime(2026, 1, 1, tzinfo=UTC)


def test_pauses_grow_to_a_limit_however_often_it_happens() -> None:
    """A run that is woken too early thousands of times is looked at once a minute, and never fails for that."""
    memory = Memory(FakeClock())
    pauses = [memory.later_each_time("run", UNTIL).total_seconds() for _ in range(2000)]
    assert pauses[:8] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert pauses[-1] == 60


def test_another_time_begins_anew() -> None:
    """The pause belongs to one time of the run."""
    memory = Memory(FakeClock())
    pauses = [memory.later_each_time("run", UNTIL + timedelta(hours=number // 2)) for number in range(4)]
    assert [pause.total_seconds() for pause in pauses] == [1, 2, 1, 2]


def test_a_damaged_log_is_left_alone_for_an_hour_at_most() -> None:
    """However often it was found damaged, it is looked at each hour."""
    clock = FakeClock()
    memory = Memory(clock)
    for _ in range(1100):
        memory.leave_alone("run")
        clock.advance(3599)
    assert memory.is_left_alone("run")
    clock.advance(1)
    assert not memory.is_left_alone("run")
