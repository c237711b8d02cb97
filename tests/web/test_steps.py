"""A run's steps over time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from durable_core import MemoryStore, Runner, Store, control
from durable_core.record import StepError, StepRecord
from durable_web import app
from durable_web._views._steps import PAGE, steps_of
from tests.web.conftest import Browse, signed_in

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
ERROR = StepError("TimeoutError", "no answer")


def entry(revision: int, status: Any, begin: float, end: float, **fields: Any) -> StepRecord:
    times = {"started_at": NOON + timedelta(seconds=begin), "ended_at": NOON + timedelta(seconds=end)}
    return StepRecord(run_id="run", **{"step_id": "step", "revision": revision, "status": status, **times, **fields})


def bar(*entries: StepRecord, now: float = 100, is_at_work: bool = True) -> list[tuple[str, float, float]]:
    """Return the parts of a bar over a hundred seconds from noon: what they are, where they begin, how long they are."""
    steps = steps_of(entries, statuses=(), page=None, is_at_work=is_at_work)
    spans = steps.page[0].spans(NOON, NOON + timedelta(seconds=100), NOON + timedelta(seconds=now))
    return [(span.tone, span.left, span.width) for span in spans]


def test_attempts_and_waits_are_parts_of_a_bar() -> None:
    """An attempt that failed, the delay after it, and the one that succeeded."""
    failed = entry(0, "waiting", 10, 20, error=ERROR, until=NOON + timedelta(seconds=50))
    assert bar(failed, entry(1, "success", 50, 60)) == [("bad", 10, 10), ("wait", 20, 30), ("ok", 50, 10)]
    assert bar(failed, now=40) == [("bad", 10, 10), ("wait", 20, 20)]


def test_what_nobody_did_is_no_work() -> None:
    """Between a failure and the retry by hand nothing happened; an intent that nobody works on is none either."""
    mended = [entry(0, "failure", 0, 10, error=ERROR), entry(1, "reopened", 0, 40), entry(2, "success", 50, 60)]
    assert bar(*mended) == [("bad", 0, 10), ("idle", 10, 30), ("idle", 40, 10), ("ok", 50, 10)]
    assert bar(entry(0, "started", 0, 0)) == [("work", 0, 100)]
    assert bar(entry(0, "started", 0, 0), is_at_work=False) == [("idle", 0, 100)]


def test_waiting_for_a_person_is_waiting_until_the_decision() -> None:
    """Votes between don't end it."""
    asked = entry(0, "waiting", 0, 0, kind="approval")
    vote, decision = entry(1, "waiting", 0, 30, kind="approval"), entry(2, "success", 0, 60, kind="approval", result=b"{}")
    assert bar(asked, vote, decision) == [("wait", 0, 30), ("wait", 30, 30)]
    assert bar(asked, vote, now=80) == [("wait", 0, 30), ("wait", 30, 50)]


def test_a_moment_is_seen() -> None:
    """What took no time has a width, within the bar."""
    assert bar(entry(0, "success", 100, 100)) == [("ok", 99.2, 0.8)]


def test_a_page_of_many_steps() -> None:
    """The last page unless one is asked for; by status, with the numbers of all."""
    log = [entry(0, "failure" if number % 100 == 7 else "success", number, number, step_id=f"s{number}") for number in range(250)]
    last = steps_of(log, statuses=(), page=None, is_at_work=False)
    assert (last.number, last.pages, len(last.page), last.page[0].newest.step_id) == (3, 3, 250 - 2 * PAGE, "s200")
    first = steps_of(log, statuses=(), page=1, is_at_work=False)
    assert (first.page[0].newest.step_id, first.page[-1].newest.step_id) == ("s0", "s99")
    failed = steps_of(log, statuses=["failure"], page=None, is_at_work=False)
    assert [step.newest.step_id for step in failed.page] == ["s7", "s107", "s207"]
    assert failed.counts == {"success": 247, "failure": 3}
    assert steps_of(log, statuses=(), page=99, is_at_work=False).number == 3


async def test_progress_of_thousands_is_a_small_row(memory: MemoryStore, browse: Browse) -> None:
    """The newest one is shown, and the last ones are drawn."""
    async with Runner(memory, "run") as runner:
        for number in range(2_000):
            await runner.publish("progress", {"done": number})
    alice = browse(app(memory, user=signed_in), "alice")
    shown = await alice.get("run", run="run")
    assert "{done: 1999}" in shown.text
    assert shown.text.count("<rect") < 60
    assert "1900 entries are not shown" in (await alice.get("step", run="run", step="progress")).text


async def test_who_acted_is_told(store: Store, browse: Browse) -> None:
    """A retry and a resolution, with their reasons, on the run's page and on the step's."""

    def fails() -> None:
        raise ConnectionError("no answer")

    async with Runner(store, "run") as runner:
        for step in ("one", "two"):
            try:
                await runner.step(step, fails)
            except Exception:
                continue
    await control.retry(store, "run", "one", by="bob", reason="the line is mended")
    await control.resolve(store, "run", "two", 7, by="carol", reason="paid by hand")
    alice = browse(app(store, user=signed_in), "alice")
    for page in [await alice.get("run", run="run"), await alice.get("step", run="run", step="one")]:
        assert "retried by <strong>bob</strong>: the line is mended" in page.text
    for page in [await alice.get("run", run="run"), await alice.get("step", run="run", step="two")]:
        assert "resolved by <strong>carol</strong>: paid by hand" in page.text
