"""What a schedule may be: expressions, zones, names and input are looked at when it is declared."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from durable_core import Runner, control, flow
from durable_core.errors import NotFound
from durable_core.stores.memory import MemoryStore
from durable_core.testing import FakeClock
from durable_worker import Worker
from durable_worker._cron import Cron
from tests.worker.replicas import utc

NOON = utc("2026-06-01 12:00")


@flow
async def settle(runner: Runner, day: str, tries: int = 1) -> str:
    return day


@flow
async def beat(runner: Runner) -> None: ...


@flow(name="a/b")
async def with_a_slash(runner: Runner) -> None: ...


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(NOON)


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock=clock)


@pytest.fixture
def worker(store: MemoryStore, clock: FakeClock) -> Worker:
    return Worker(store, [settle, beat, with_a_slash], clock=clock)


@pytest.mark.parametrize(
    ("expression", "following"),
    [
        ("* * * * *", ["2026-06-01 12:01", "2026-06-01 12:02"]),
        ("*/20 * * * *", ["2026-06-01 12:20", "2026-06-01 12:40"]),
        ("0 9 * * 1-5", ["2026-06-02 09:00", "2026-06-03 09:00"]),
        ("0 9 * * mon-FRI", ["2026-06-02 09:00", "2026-06-03 09:00"]),
        ("0 0 1 1 *", ["2027-01-01 00:00", "2028-01-01 00:00"]),
        ("0 0 l * *", ["2026-06-30 00:00", "2026-07-31 00:00"]),
        ("0 0 * * 5#1", ["2026-06-05 00:00", "2026-07-03 00:00"]),
        ("0 0 29 2 *", ["2028-02-29 00:00", "2032-02-29 00:00"]),
        ("0 0 13 * fri", ["2026-06-05 00:00", "2026-06-12 00:00"]),
        (" 5   4 * * * ", ["2026-06-02 04:05", "2026-06-03 04:05"]),
        ("@hourly", ["2026-06-01 13:00", "2026-06-01 14:00"]),
        ("@daily", ["2026-06-02 00:00", "2026-06-03 00:00"]),
        ("@midnight", ["2026-06-02 00:00", "2026-06-03 00:00"]),
        ("@weekly", ["2026-06-07 00:00", "2026-06-14 00:00"]),
        ("@monthly", ["2026-07-01 00:00", "2026-08-01 00:00"]),
        ("@yearly", ["2027-01-01 00:00", "2028-01-01 00:00"]),
        ("@Annually", ["2027-01-01 00:00", "2028-01-01 00:00"]),
    ],
)
def test_the_ticks_of_an_expression(expression: str, following: list[str]) -> None:
    """Five fields, or one of cron's words; ticks are later than the moment that they are asked for."""
    found = Cron(expression, "UTC").ticks(NOON)
    assert [next(found), next(found)] == [*map(utc, following)]


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("0 0 9 * * 1-5", "has 6 fields; write five"),
        ("0 9 * *", "has 4 fields; write five"),
        ("daily", "has 1 field; write five"),
        ("", "has 0 fields; write five"),
        ("@reboot", "'@reboot' is unknown; known: @hourly, @daily"),
        ("@every 5m", "'@every 5m' is unknown; known: @hourly"),
        ("60 * * * *", "'60 * * * *' is not a cron expression: Bad minute"),
        ("0 9 * * mon-funday", "Bad day-of-week"),
        ("0 9 * * */0", "Bad day-of-week"),
        ("0 0 30 2 *", "'0 0 30 2 *' is not a cron expression: Bad day-of-month"),
        ("0 0 31 2,4,6 *", "Bad day-of-month"),
        ("0 0 */5 2 MON#5", "a time that never comes"),
        (f"{'9' * 5000} * * * *", "is not a cron expression"),
        ("\0 * * * *", "is not a cron expression"),
    ],
)
def test_an_expression_that_is_none_is_refused(worker: Worker, expression: str, complaint: str) -> None:
    """The error shows the expression and says what was expected, before anything runs."""
    with pytest.raises(ValueError, match=complaint.replace("*", r"\*")) as refused:
        worker.cron(expression, beat)
    assert "0 9 * * 1-5" in str(refused.value)
    assert len(str(refused.value)) < 400


def test_an_unknown_time_zone_is_refused(worker: Worker) -> None:
    """The error names it, and says what Windows needs."""
    for timezone in ("Europe/Berlim", "", "../UTC", "Europe", "a\0b"):
        with pytest.raises(ValueError, match="is unknown here; write a name such as 'Europe/Berlin'.*tzdata") as refused:
            worker.cron("@daily", beat, timezone=timezone)
        assert repr(timezone) in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "complaint"),
    [
        ((5, beat), {}, TypeError, "expression must be a str such as '0 9 * * 1-5', not 5"),
        (("@daily", print), {}, TypeError, "a schedule needs a function decorated with @flow, not <built-in"),
        (("@daily", beat), {"timezone": UTC}, TypeError, "timezone must be a time zone's name"),
        (("@daily", beat), {"catch_up": "all"}, ValueError, "catch_up must be 'none' or 'last', not 'all'"),
        (("@daily", beat), {"name": "a/b"}, ValueError, "name of a schedule 'a/b' contains a '/'"),
        (("@daily", with_a_slash), {}, ValueError, "name of a schedule 'a/b' contains a '/'"),
        (("@daily", beat), {"name": "$beat"}, ValueError, "starts with '$'"),
        (("@daily", beat), {"name": ""}, ValueError, "name of a schedule '' has 0 bytes"),
        (("@daily", beat), {"name": "x" * 500}, ValueError, "run id of a schedule 'xxx.* has 518 bytes"),
        (("@daily", beat), {"name": 7}, TypeError, "name of a schedule must be a str"),
        (("@daily", settle), {}, TypeError, "missing a required argument: 'day'"),
        (("@daily", settle), {"input": {"day": "x", "at": 5}}, TypeError, "unexpected keyword argument 'at'"),
        (("@daily", settle), {"input": {"day": 5}}, TypeError, "input 'day' of flow 'settle' does not fit its annotation str"),
        (("@daily", settle), {"input": "monday"}, TypeError, "input must be a mapping or a plain function of the tick"),
    ],
)
def test_what_can_be_no_schedule_is_refused(
    worker: Worker, arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], complaint: str
) -> None:
    """Names, input and options are looked at when the schedule is declared."""
    with pytest.raises(error, match=complaint.replace("*", r"\*").replace(r".\*", ".*").replace("$", r"\$")):
        worker.cron(*arguments, **options)


def test_an_async_input_is_refused(worker: Worker) -> None:
    """It is called for a tick and returns the input itself."""

    async def ask(tick: datetime) -> dict[str, Any]:
        return {}

    with pytest.raises(TypeError, match="a plain function of the tick"):
        worker.cron("@daily", beat, input=ask)  # type: ignore[arg-type]  # that is the point


def test_two_schedules_of_one_name_are_refused(worker: Worker) -> None:
    """Their runs would have the same ids; another name makes two schedules of one flow."""
    worker.cron("@daily", beat)
    with pytest.raises(
        ValueError, match=r"two schedules of this worker have the name 'beat', '0 0 \* \* \*' and '0 \* \* \* \*'"
    ):
        worker.cron("@hourly", beat)
    worker.cron("@hourly", beat, name="hourly")


def test_a_flow_of_another_worker_is_refused(store: MemoryStore) -> None:
    """Nobody would run what such a schedule asks for."""
    with pytest.raises(ValueError, match=r"<flow 'settle'> is not one of this worker's flows, 'beat': add it to Worker"):
        Worker(store, [beat]).cron("@daily", settle, input={"day": "x"})


async def test_a_run_gets_the_input_of_its_tick(store: MemoryStore, clock: FakeClock, worker: Worker) -> None:
    """A function of the tick gets it in the zone of the schedule; the run id tells it in UTC."""
    seen: list[datetime] = []

    def day(tick: datetime) -> dict[str, str]:
        seen.append(tick)
        return {"day": f"{tick:%A}"}

    worker.cron("30 0 * * *", settle, name="night", timezone="Asia/Kolkata", input=day)
    worker.cron("0 19 * * *", settle, name="evening", input={"day": "any"})
    assert (await worker.sweep()).started == 0
    clock.advance(timedelta(hours=7))
    report = await worker.sweep()
    assert (report.started, report.succeeded) == (2, 2)
    assert await control.result(store, "night@2026-06-01T19:00Z") == "Tuesday"
    assert await control.result(store, "evening@2026-06-01T19:00Z") == "any"
    assert [(tick.tzinfo, tick.isoformat()) for tick in seen] == [(ZoneInfo("Asia/Kolkata"), "2026-06-02T00:30:00+05:30")]


async def test_the_log_of_a_schedule_shows_in_no_list(store: MemoryStore, clock: FakeClock, worker: Worker) -> None:
    """People see runs; the log is read by who knows its id."""
    worker.cron("* * * * *", beat, name="pulse")
    await worker.sweep()
    clock.advance(60)
    assert (await worker.sweep()).succeeded == 1
    assert [run.run_id async for run in control.runs(store)] == ["pulse@2026-06-01T12:01Z"]
    assert [record async for record in control.pending(store)] == []
    with pytest.raises(NotFound, match=r"runs there: 'pulse@2026-06-01T12:01Z'$"):
        await control.status(store, "nothing")
    assert await control.clear_ended(store, older_than=timedelta(0)) == ["pulse@2026-06-01T12:01Z"]
    newest = await store.get("$cron/pulse", "$cron")
    assert newest is not None
    assert newest.value() == [
        {"expression": "* * * * *", "timezone": "UTC", "first_seen": "2026-06-01T12:00:00Z", "next": "2026-06-01T12:02:00Z"}
    ]
