"""Whatever stands where a record is expected: a record, of which nothing is lost, or one of our errors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_core import (
    ChildStopped,
    DurableError,
    MemoryStore,
    Runner,
    RunSuspended,
    StepError,
    StepRecord,
    StoreError,
    control,
    flow,
)
from durable_core.record import Kind, Status
from durable_core.testing import replay_check
from tests.fuzz.fuzzing import DEEP_JSON, VALUES, damaged, fuzzed, json_bytes, kept

_NOW = datetime(2026, 1, 1, tzinfo=UTC)
WHOLE = StepRecord(
    run_id="run-1",
    step_id="charge",
    revision=3,
    status="failure",
    kind="approval",
    name="Charge the card",
    result=b'{"amount": [1, 2.5, null]}',
    error=StepError.from_exception(ValueError("é\n\0")),
    note={"show": {"amount": 90}, "votes": []},
    until=_NOW + timedelta(days=1),
    attempt=2,
    started_at=_NOW,
    ended_at=_NOW + timedelta(seconds=1),
    fingerprint="0" * 16,
)
SMALL = StepRecord(run_id="r", step_id="s")
GOOD = st.sampled_from([WHOLE.to_json(), SMALL.to_json()])
FIELDS = sorted(msgspec.json.decode(WHOLE.to_json()))


@st.composite
def other_fields(draw: st.DrawFn) -> bytes:
    """A record with other values in some of its fields, or without these."""
    fields = msgspec.json.decode(draw(GOOD))
    for name in draw(st.lists(st.sampled_from([*FIELDS, "more"]), min_size=1, max_size=4)):
        if draw(st.booleans()):
            fields[name] = draw(VALUES)
        else:
            fields.pop(name, None)
    return json_bytes(fields)


def check_record(line: bytes) -> None:
    """A line is a record that comes back from its own wire form, or a `StoreError`."""
    try:
        record = StepRecord.from_json(line)
    except StoreError:
        return
    assert StepRecord.from_json(line) == record
    assert StepRecord.from_json(record.to_json()) == record
    assert isinstance(record.notes, dict)
    assert repr(record)
    assert str(record.error)
    assert record.duration is not None
    record.value()


@pytest.mark.parametrize("line", kept("records"))
def test_kept_records(line: bytes) -> None:
    check_record(line)


@fuzzed
@given(damaged(GOOD) | other_fields() | st.binary(max_size=60) | VALUES.map(json_bytes) | DEEP_JSON)
def test_any_line(line: bytes) -> None:
    check_record(line)


IDS = st.sampled_from(
    ["$flow", "$cancel", "step", "wait", "ask", "child", "race", "rail", "many", "many/0", "many/1", "progress", "until"]
)
TIMES = st.sampled_from([_NOW, _NOW + timedelta(days=1), datetime(2, 1, 1, tzinfo=UTC), datetime(9998, 12, 31, tzinfo=UTC)])


@st.composite
def entries(draw: st.DrawFn) -> list[StepRecord]:
    """A log of one run that no program of ours writes: each entry is right, and they need not fit together."""
    found: list[StepRecord] = []
    revisions: dict[str, int] = {}
    for step_id in ["$flow"] * draw(st.integers(0, 2)) + draw(st.lists(IDS, max_size=6)):
        fields: dict[str, Any] = {
            "status": draw(st.sampled_from(get_args(Status))),
            "kind": "flow" if step_id == "$flow" and draw(st.integers(0, 3)) else draw(st.sampled_from(get_args(Kind))),
            "name": "everything" if step_id == "$flow" else step_id,
            "note": draw(VALUES),
            "until": draw(st.none() | TIMES),
            "attempt": draw(st.sampled_from([1, 2, 2**62])),
            "started_at": draw(TIMES),
            "ended_at": draw(TIMES),
            "result": draw(st.none() | st.sampled_from([b"null", b"1", b'"rail"', b'{"approved":true}', b"[]"])),
            "error": draw(st.none() | st.just(StepError.from_exception(ValueError("no")))),
            "fingerprint": draw(st.none() | st.just("0" * 16)),
        }
        try:
            record = StepRecord(run_id="r", step_id=step_id, revision=revisions.get(step_id, 0), **fields)
            record.to_json()
        except (DurableError, ValueError, TypeError):
            continue  # what can't be recorded stands in no log
        revisions[step_id] = record.revision + 1
        found.append(StepRecord.from_json(record.to_json()))
    return found


@flow(wait_limit=0)
async def everything(runner: Runner, more: Any = None) -> Any:
    """Ask for each of the steps that the logs above may hold."""
    await runner.step("step", lambda: 1)
    await runner.until("until", lambda: True, every=10)
    await runner.first("race", rail=lambda: runner.step("rail", lambda: 1), other=lambda: runner.event("never"))
    await runner.map("many", str, ["a", "b"])
    await runner.publish("progress", 1)
    await runner.flow("child", small)
    await runner.sleep("wait", 60)
    return await runner.approval("ask", {"amount": 90})


@flow(wait_limit=0)
async def small(runner: Runner) -> int:
    return 1


async def _all(found: Any) -> list[Any]:
    return [each async for each in found]


READERS: dict[str, Callable[[MemoryStore], Awaitable[object]]] = {
    "status": lambda store: control.status(store, "r"),
    "runs": lambda store: _all(control.runs(store)),
    "pending": lambda store: _all(control.pending(store)),
    "published": lambda store: control.published(store, "r", "progress"),
    "check": lambda store: replay_check(everything, store, ["r"]),
    "approve": lambda store: control.approve(store, "r", "ask", by="alice"),
    "send": lambda store: control.send(store, "r", "wait", 1),
    "resolve": lambda store: control.resolve(store, "r", "step", 1, reason="by hand"),
    "retry": lambda store: control.retry(store, "r"),
    "cancel": lambda store: control.cancel(store, "r"),
    "fork": lambda store: control.fork(store, "r", "copy", before="step"),
    "clear": lambda store: control.clear_ended(store, older_than=timedelta(0)),
    "run": lambda store: everything.run(store, "r"),
}


DOCUMENTED: dict[str, tuple[type[Exception], ...]] = {"resolve": (TypeError,)}  # for a value that no approval has


async def read(log: list[StepRecord]) -> None:
    """Let each reader and actor have the log: it answers, or raises an error of the library."""
    for name, reader in READERS.items():
        store = MemoryStore()
        for record in log:
            await store.append(record)
        try:
            with suppress(DurableError, ChildStopped, RunSuspended, *DOCUMENTED.get(name, ())):
                await asyncio.wait_for(reader(store), 20)
        except BaseException as error:
            error.add_note(f"reader {name} of {[record.to_json() for record in log]}")
            raise
        kept_entries = [*await store.list("r")]
        assert kept_entries[: len(log)] == log or name == "clear"


@pytest.mark.parametrize("lines", kept("logs"))
@pytest.mark.filterwarnings("ignore::durable_core.StepDrift")
async def test_kept_logs(lines: bytes) -> None:
    await read([StepRecord.from_json(line) for line in lines.splitlines()])


@pytest.mark.filterwarnings("ignore::durable_core.StepDrift")
@fuzzed
@given(entries())
def test_any_log(log: list[StepRecord]) -> None:
    """Entries that are right each, and don't fit together: notes of any shape, kinds and statuses in any order."""
    asyncio.run(read(log))
