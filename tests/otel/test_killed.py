"""A run that is killed and resumed twice, and waits for a day, as a viewer of traces shows it."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from durable_core import RunSuspended, open_store
from durable_core.testing import FakeClock
from tests.otel.conftest import Seen
from tests.otel.onboarding import START, as_json, onboarding

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "howto" / "see-it-in-opentelemetry.md"
Spans = list[dict[str, Any]]


async def _visit(folder: Path, number: int, start: datetime) -> Spans:
    """Visit the run in this process, for the third or the fourth time."""
    seen = Seen()
    async with open_store(f"sqlite:{folder / 'runs.db'}") as store:
        run = onboarding(FakeClock(start), visit=number, tracers=seen.tracers)
        try:
            await run.run(store, run_id="onboard-7", email="ada@example.com")
        except RunSuspended:
            assert number == 3
    return [as_json(span) for span in seen.spans]


@pytest.fixture(scope="module")
def visits(tmp_path_factory: pytest.TempPathFactory) -> list[Spans]:
    """The spans of four visits: two in processes that are killed, one that comes to wait for a day, and the last."""
    folder = tmp_path_factory.mktemp("onboarding")
    file, found, read = folder / "spans.jsonl", [], 0
    for number in (1, 2):
        command = [sys.executable, "-m", "tests.otel.onboarding", str(folder), str(number)]
        assert subprocess.run(command, cwd=ROOT, check=False, timeout=60).returncode != 0
        lines = file.read_text(encoding="utf-8").splitlines()
        found.append([json.loads(line) for line in lines[read:]])
        read = len(lines)
    found.append(asyncio.run(_visit(folder, 3, START + timedelta(minutes=10))))
    found.append(asyncio.run(_visit(folder, 4, START + timedelta(days=1, minutes=11))))
    return found


def _one(spans: Spans, name: str) -> dict[str, Any]:
    (found,) = [span for span in spans if span["name"] == name]
    return found


def test_each_visit_is_a_trace_of_its_own(visits: list[Spans]) -> None:
    """All spans of a visit are of one trace, and no two visits share one, though the run is one."""
    traces = [{span["context"]["trace_id"] for span in spans} for spans in visits]
    assert [len(each) for each in traces] == [1, 1, 1, 1]
    assert len(set.union(*traces)) == 4


def test_a_visit_is_linked_to_the_one_before_that_was_killed(visits: list[Spans]) -> None:
    """The third visit links to the span that held what the second one did, though that was killed and never exported itself."""
    (link,) = _one(visits[2], "run onboard")["links"]
    assert link["context"]["span_id"] == _one(visits[1], "step bill")["parent_id"]
    assert link["context"]["trace_id"] == visits[1][0]["context"]["trace_id"]
    assert link["attributes"] == {"durable.visit.ended": "interrupted"}


def test_a_visit_is_linked_to_the_one_before_that_came_to_wait(visits: list[Spans]) -> None:
    """The fourth visit, a day later, links to the third."""
    (link,) = _one(visits[3], "run onboard")["links"]
    assert link["context"]["span_id"] == _one(visits[2], "run onboard")["context"]["span_id"]
    assert link["attributes"] == {"durable.visit.ended": "waiting"}


def test_what_was_done_before_has_no_span_on_a_replay(visits: list[Spans]) -> None:
    """Each attempt is in the trace of the visit that made it, and in no later one."""
    steps = [[span["name"] for span in spans if span["name"].startswith("step")] for spans in visits]
    assert steps == [["step create", "step bill"], ["step bill"], ["step welcome"], ["step ask"]]


def test_attempts_hang_below_their_visit_and_a_child_below_its_parent(visits: list[Spans]) -> None:
    """Steps that go on at once are siblings; a child's visit stands in its parent's, and its step in the child's."""
    create, failed = visits[0]
    assert create["parent_id"] == failed["parent_id"] is not None
    parent, child = _one(visits[3], "run onboard"), _one(visits[3], "run survey")
    assert parent["parent_id"] is None
    assert child["parent_id"] == parent["context"]["span_id"]
    assert _one(visits[3], "step ask")["parent_id"] == child["context"]["span_id"]


def test_spans_have_the_times_of_what_they_show(visits: list[Spans]) -> None:
    """An attempt's span ends with the attempt, a visit's where the flow came to wait; the wait is an event of it, and no span."""
    create = _one(visits[0], "step create")
    assert _time(create["start_time"]) == START
    assert _time(create["end_time"]) == START + timedelta(seconds=2)
    visit = _one(visits[2], "run onboard")
    assert _time(visit["start_time"]) == START + timedelta(minutes=10)
    assert _time(visit["end_time"]) == START + timedelta(minutes=10, seconds=1)
    (wait,) = visit["events"]
    assert wait["name"] == "durable.wait"
    assert wait["attributes"] == {
        "durable.step.id": "a-day",
        "durable.step.kind": "sleep",
        "durable.wait.until": (START + timedelta(days=1, minutes=10, seconds=1)).isoformat(),
    }


def test_the_page_shows_these_spans(visits: list[Spans]) -> None:
    """The table in the documentation is that of this run."""
    shown = re.search(r"<!-- spans -->\n(.*?)\n<!-- end -->", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert shown is not None
    assert shown[1].strip() == _table(visits)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _table(visits: list[Spans]) -> str:
    """Draw the spans as a viewer does, trace by trace."""
    rows = ["| trace | span | began | took | ended as | holds |", "|---|---|---|---|---|---|"]
    traces = {spans[0]["context"]["trace_id"]: letter for letter, spans in zip("ABCD", visits, strict=True)}
    for letter, spans in zip("ABCD", visits, strict=True):
        known = {span["context"]["span_id"] for span in spans}
        (root,) = {span["parent_id"] for span in spans} - known  # None, or a span that was never exported
        if root is not None:
            rows.append(f"| {letter} | (run onboard) | | | killed: was not exported | |")
        rows += [_row(letter, "&emsp;" * level, span, traces) for level, span in _below(root, spans, 0 if root is None else 1)]
    return "\n".join(rows)


def _below(parent: str | None, spans: Spans, level: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the spans below one, each before its own, as they began."""
    for span in sorted(spans, key=lambda span: str(span["start_time"])):
        if span["parent_id"] == parent:
            yield level, span
            yield from _below(span["context"]["span_id"], spans, level + 1)


def _row(letter: str, indent: str, span: dict[str, Any], traces: dict[str, str]) -> str:
    began, ended, said = _time(span["start_time"]), _time(span["end_time"]), span["attributes"]
    holds = [f"a link to {traces[to['context']['trace_id']]}: {to['attributes']['durable.visit.ended']}" for to in span["links"]]
    holds += [f"`{event['name']}`: {event['attributes']['durable.step.id']}" for event in span["events"]]
    holds += [f"`error.type`: {said['error.type']}"] if "error.type" in said else []
    number = f", attempt {attempt}" if (attempt := said.get("durable.step.attempt", 1)) > 1 else ""
    state = said.get("durable.run.state") or said["durable.step.outcome"]
    took = f"{(ended - began).total_seconds():g} s"
    return f"| {letter} | {indent}{span['name']}{number} | {began:%d %b %H:%M:%S} | {took} | {state} | {'; '.join(holds)} |"
