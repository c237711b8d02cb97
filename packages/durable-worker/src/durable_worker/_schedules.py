"""Schedules: runs that a worker starts at given times.

Each schedule has a log of its own, `$cron/<name>`. The newest entry says which tick comes next. If that is due, a worker takes
the log's lock, starts the runs, and appends an entry with the next tick. A tick's run id is made from its time, so if a tick is
started again after a crash or by another worker, its run is already there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from inspect import iscoroutinefunction
from itertools import takewhile
from typing import Any, Final, Literal

import msgspec

from durable_core.clock import Clock
from durable_core.engine import FLOW, check_input, check_name, decided, holding, wake
from durable_core.errors import CorruptLog, RunBusy, StepDrift
from durable_core.flow import Flow
from durable_core.record import StepRecord, check_id
from durable_core.store import Lease, Store

from ._cron import Cron

CatchUp = Literal["none", "last"]
Input = Mapping[str, Any] | Callable[[datetime], Mapping[str, Any]]

_STEP: Final = "$cron"
_MOST: Final = 500
"""How many entries the log of a schedule may have before it is cleared."""
_PAUSE: Final = timedelta(seconds=2)
"""How long a schedule is skipped after an error."""
_AHEAD: Final = timedelta(minutes=1)
"""How far another worker's clock may be ahead before a warning is logged."""
_MOMENT: Final = timedelta(microseconds=1)
_logger: Final = logging.getLogger("durable_worker")


class Version(msgspec.Struct, frozen=True):
    """The record of a schedule as one deploy declares it. During a deploy there may be two."""

    expression: str
    timezone: str
    first_seen: datetime
    next: datetime | None
    """The first tick for which no run was started yet."""


class Schedule:
    """One schedule, as this worker declares it."""

    def __init__(self, name: str, cron: Cron, flow: Flow[Any, Any], catch_up: CatchUp, input: Input) -> None:
        self.name: Final = name
        self.cron: Final = cron
        self.flow: Final = flow
        self.catch_up: Final = catch_up
        self.log_id: Final = f"{_STEP}/{name}"
        self._input: Final = input
        self._looked: datetime | None = None
        self._rests_until: datetime | None = None
        self.failing = self.warned = False

    def is_time(self, now: datetime) -> bool:
        """Return True if it is time to look at the schedule. Also if the clock was set back since the last look."""
        return self._looked is None or now < self._looked or (self._rests_until is not None and self._rests_until <= now)

    def rest(self, now: datetime, until: datetime | None) -> None:
        """Set the time of the next look; None means never."""
        self._looked, self._rests_until = now, until

    def run_id(self, tick: datetime) -> str:
        """Return the id of a tick's run, which is the same for all workers."""
        return f"{self.name}@{tick:%Y-%m-%dT%H:%MZ}"

    def input(self, tick: datetime) -> dict[str, Any]:
        """Return the input of a tick's run. Lets exceptions of the input function through."""
        given = self._input(tick.astimezone(self.cron.zone)) if callable(self._input) else self._input
        if not isinstance(given, Mapping):
            raise TypeError(f"input of schedule {self.name!r} must be a mapping of the flow's parameters, not {given!r}")
        check_input(self.flow, given)
        return {**given}

    def version(self, versions: Collection[Version]) -> Version | None:
        """Return the record of the schedule as it is declared here."""
        mine = (self.cron.expression, self.cron.timezone)
        return next((version for version in versions if (version.expression, version.timezone) == mine), None)

    def due(self, version: Version | None, now: datetime, young: timedelta) -> list[datetime]:
        """Return the ticks to start: those younger than `young`, or the newest missed one, if that is wanted."""
        if version is None or version.next is None or version.next > now:
            return []
        before = version.next - _MOMENT
        ticks = [*takewhile(lambda tick: tick <= now, self.cron.ticks(max(before, now - young)))]
        missed = self.cron.newest(before, now) if not ticks and self.catch_up == "last" else None
        return ticks if missed is None else [missed]


class Schedules:
    """The schedules of one worker."""

    def __init__(self, store: Store, flows: Collection[str], clock: Clock, visibility_timeout: float) -> None:
        self._store: Final = store
        self._flows: Final = flows
        self._clock: Final = clock
        self._young: Final = timedelta(seconds=visibility_timeout)
        self._schedules: Final[dict[str, Schedule]] = {}

    def add(
        self,
        expression: str,
        flow: Flow[Any, Any],
        *,
        name: str | None,
        timezone: str,
        catch_up: CatchUp,
        input: Input | None,
    ) -> None:
        """Declare a schedule. Raises `TypeError` or `ValueError` for an invalid argument."""
        if not isinstance(flow, Flow):
            raise TypeError(f"a schedule needs a function decorated with @flow, not {flow!r}")
        if flow.name not in self._flows:
            known = ", ".join(map(repr, self._flows))
            raise ValueError(f"{flow!r} is not one of this worker's flows, {known}: add it to Worker(store, [...])")
        name = check_name("name of a schedule", flow.name if name is None else name)
        cron = Cron(expression, timezone)
        if catch_up not in ("none", "last"):
            raise ValueError(f"catch_up must be 'none' or 'last', not {catch_up!r}")
        if iscoroutinefunction(input) or not (input is None or callable(input) or isinstance(input, Mapping)):
            raise TypeError(f"input must be a mapping or a plain function of the tick that returns one, not {input!r}")
        given: Input = input if callable(input) else {**(input or {})}
        schedule = Schedule(name, cron, flow.options(clock=self._clock), catch_up, given)
        check_id("run id of a schedule", schedule.run_id(datetime.max))
        if not callable(given):
            check_input(flow, given)
        if (other := self._schedules.get(name)) is not None:
            raise ValueError(
                f"two schedules of this worker have the name {name!r}, {other.cron.expression!r} and {cron.expression!r};"
                " give one another name="
            )
        self._schedules[name] = schedule

    async def tick(self) -> int:
        """Start the runs whose times have come, and return their number. Costs nothing while no time has come.

        An error of one schedule is logged, and doesn't affect others.
        """
        now = self._clock.now()
        looks = [schedule for schedule in self._schedules.values() if schedule.is_time(now)]
        if not looks:
            return 0
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._look(schedule)) for schedule in looks]
        return sum(task.result() for task in tasks if not task.cancelled())

    async def _look(self, schedule: Schedule) -> int:
        now = self._clock.now()
        try:
            latest = await self._store.get(schedule.log_id, _STEP)
            mine = schedule.version(_versions(latest))
            if mine is None or (mine.next is not None and mine.next <= now):
                async with holding(self._store, schedule.log_id) as lease:
                    started, mine = await self._go_on(schedule, lease)
            else:
                started = 0
                self._warn(schedule, latest, now)
            schedule.rest(now, mine.next)
            schedule.failing = False
            return started
        except RunBusy:
            return 0  # another worker is at it; if that one dies, the next look finds the tick due
        except Exception as error:
            if not schedule.failing:
                _logger.warning("schedule %r could not continue, trying again: %r", schedule.name, error)
            schedule.failing = True
            schedule.rest(now, now + _PAUSE)
            return 0

    async def _go_on(self, schedule: Schedule, lease: Lease | None) -> tuple[int, Version]:
        """Start the due runs and record the next tick. Return the number of started runs, and the new record."""
        started = 0
        while True:
            latest = await self._store.get(schedule.log_id, _STEP)
            versions = _versions(latest)
            mine, now = schedule.version(versions), self._clock.now()
            if mine is not None and (mine.next is None or mine.next > now):
                return started, mine
            for tick in schedule.due(mine, now, self._young):
                _check(lease)
                started += await self._start(schedule, tick)
            cron, first_seen = schedule.cron, now if mine is None else mine.first_seen
            new = Version(cron.expression, cron.timezone, first_seen, cron.after(now))
            # Drop declarations that no worker has any more. If one comes back, it must not catch up on old ticks.
            others = [each for each in versions if each is not mine and (each.next is None or each.next > now - self._young)]
            if latest is not None and latest.revision >= _MOST:
                _check(lease)
                await self._store.clear(schedule.log_id)
                latest = None
            entry = _entry(schedule, latest, [*others, new], now)
            if (await self._store.append(entry)).id == entry.id:
                return started, new

    async def _start(self, schedule: Schedule, tick: datetime) -> bool:
        """Start a tick's run unless it exists; return True if it was started."""
        run_id = schedule.run_id(tick)
        try:
            if (known := await self._store.get(run_id, FLOW)) is not None:
                if not decided(known):  # the process that started it may have died before it woke a worker
                    await wake(self._store, known, self._clock.now())
                return False
            try:
                input = schedule.input(tick)
            except Exception:
                _logger.exception("schedule %r: run %r is left out, its input failed", schedule.name, run_id)
                return False
            await schedule.flow.start(self._store, run_id=run_id, **input)
        except StepDrift:
            return False  # another worker was first, with another input
        except CorruptLog as error:
            _logger.error("schedule %r: run %r is left out: %s", schedule.name, run_id, error)
            return False
        return True

    def _warn(self, schedule: Schedule, latest: StepRecord | None, now: datetime) -> None:
        if latest is not None and latest.ended_at > now + _AHEAD and not schedule.warned:
            schedule.warned = True
            _logger.warning(
                "schedule %r was last updated at %s, by a clock that is ahead of this one: ticks until then count as done."
                " If that clock was wrong, clear the log %r and start the workers again",
                *(schedule.name, latest.ended_at.isoformat(timespec="seconds"), schedule.log_id),
            )


def _check(lease: Lease | None) -> None:
    if lease is not None:
        lease.check()


def _versions(latest: StepRecord | None) -> list[Version]:
    versions: list[Version] = [] if latest is None else latest.value(list[Version])
    return versions


def _entry(schedule: Schedule, latest: StepRecord | None, versions: Sequence[Version], now: datetime) -> StepRecord:
    """Return the next entry of a schedule's log. Its kind is `published`, of which only the newest entry counts."""
    return StepRecord(
        run_id=schedule.log_id,
        step_id=_STEP,
        revision=0 if latest is None else latest.revision + 1,
        kind="published",
        name=schedule.name,
        result=msgspec.json.encode(versions),
        started_at=now,
        ended_at=now.astimezone(UTC),
    )
