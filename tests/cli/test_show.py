"""`durable show`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from durable_core import StepRecord, open_store
from tests.cli.conftest import Durable
from tests.cli.seeds import STATES
from tests.cli.terminal import Terminal

BEGAN = datetime(2026, 3, 29, 12, tzinfo=UTC)


def appended(path: Path, *records: StepRecord) -> str:
    url = f"sqlite:{path / 'runs.db'}"

    async def fill() -> None:
        async with open_store(url) as store:
            await asyncio.gather(*map(store.append, records))

    asyncio.run(fill())
    return url


def step(number: int, status: Any = "success", **fields: Any) -> StepRecord:
    at = BEGAN + timedelta(seconds=number)
    return StepRecord(run_id="long", step_id=f"step-{number}", status=status, started_at=at, ended_at=at, **fields)


def test_the_timeline_has_every_step(durable: Durable, seeded: str) -> None:
    """Each with its state, attempts, a bar, how long it took, and what came of it in short."""
    out = durable("show", "refund-1", "--store", seeded).out
    head, timeline, hint = out.split("\n\n")
    assert head.startswith("refund-1  refund  failed\n  at pay-back: ConnectionError: the bank is closed\n  began 20")
    assert '  input {"order":1}' in head
    rows = [line.split() for line in timeline.splitlines()[1:]]
    assert [row[:2] for row in rows] == [["look-up", "succeeded"], ["approve", "approved"], ["pay-back", "failed"]]
    assert rows[2][2] == "2"
    assert "by alice: checked the invoice" in timeline
    assert "█" in timeline
    assert hint.splitlines()[-1] == f"  durable why refund-1 --store {seeded}"


def test_waits_children_and_progress_are_shown(durable: Durable, seeded: str) -> None:
    """A wait with its time, a child with its run, what was published last and how often."""
    assert "run order-7/refund" in durable("show", "order-7", "--store", seeded).out
    assert "called by step refund of run order-7" in durable("show", "order-7/refund", "--store", seeded).out
    sleeping = durable("show", "refund-3", "--store", seeded).out
    assert "cool-off" in sleeping
    assert "waits" in sleeping
    assert "until" in sleeping
    published = next(line for line in durable("show", "refund-0", "--store", seeded).out.splitlines() if "progress" in line)
    assert "3x" in published
    assert '{"done":2}' in published
    assert "1 of 2 votes" in durable("show", "refund-7", "--store", seeded).out
    assert "interrupted" in durable("show", "charge-1", "--store", seeded).out.splitlines()[-4]


def test_the_json_of_a_run(durable: Durable, seeded: str) -> None:
    """One object: the run's status, and its steps as records with when they began."""
    (run,) = durable("show", "refund-1", "--json", "--store", seeded).objects
    assert (run["run_id"], run["flow"], run["status"], run["failed"]) == ("refund-1", "refund", "failed", ["pay-back"])
    look_up, approve, pay_back = run["timeline"]
    assert look_up["result"] == {"amount": 90, "order": 1}
    assert (approve["kind"], approve["entries"], approve["result"]["by"]) == ("approval", 2, "alice")
    assert (pay_back["status"], pay_back["attempt"], pay_back["error"]["type"]) == ("failure", 2, "ConnectionError")
    assert datetime.fromisoformat(approve["began_at"]) <= datetime.fromisoformat(approve["ended_at"])


def test_one_step_in_full(durable: Durable, seeded: str) -> None:
    """Its entries, who decided and why, what was shown, the result, the whole traceback."""
    approval = durable("show", "refund-1", "--step", "approve", "--store", seeded).out
    assert "approved by alice: checked the invoice" in approval
    assert '"amount": 90' in approval
    failed = durable("show", "refund-1", "--step", "pay-back", "--store", seeded).out
    assert "ConnectionError: the bank is closed\nTraceback (most recent call last):" in failed
    assert 'raise ConnectionError("the bank is closed")' in failed
    (found,) = durable("show", "refund-1", "--step", "approve", "--json", "--store", seeded).objects
    assert [entry["status"] for entry in found["entries"]] == ["waiting", "success"]


def test_what_is_not_there_is_exit_code_3(durable: Durable, seeded: str) -> None:
    """And the error says what is."""
    assert durable("show", "refund-99", "--store", seeded).code == 3
    done = durable("show", "refund-1", "--step", "pay", "--store", seeded)
    assert done.code == 3
    assert "its last steps: 'look-up', 'approve', 'pay-back'" in done.err


def test_a_long_run_is_cut_in_its_middle(durable: Durable, tmp_path: Path) -> None:
    """Its first and last steps are shown, and of the others those that stand out; --all shows every one."""
    failing = {40: "failure", 41: "waiting", 42: "started"}
    url = appended(tmp_path, *(step(number, failing.get(number, "success")) for number in range(100)))
    out = durable("show", "long", "--store", url).out
    shown = [line.split()[0] for line in out.splitlines() if line.startswith("step-")]
    numbers = [*range(20), 40, 41, 42, *range(80, 100)]
    assert shown == [f"step-{number}" for number in numbers]
    assert [line for line in out.splitlines() if "more" in line] == ["… 20 more", "… 37 more"]
    assert f"All 100 steps:\n  durable show long --all --store {url}" in out
    everything = durable("show", "long", "--all", "--store", url).out
    assert sum(line.startswith("step-") for line in everything.splitlines()) == 100


def test_bars_are_scaled_to_the_runs_length(durable: Durable, tmp_path: Path) -> None:
    """A step that took the second half of its run has a bar over the second half."""
    half = StepRecord(run_id="r", step_id="half", started_at=BEGAN + timedelta(hours=1), ended_at=BEGAN + timedelta(hours=2))
    flow = StepRecord(run_id="r", step_id="$flow", kind="flow", name="f", started_at=BEGAN, ended_at=BEGAN + timedelta(hours=2))
    out = durable("show", "r", "--store", appended(tmp_path, half, flow)).out
    assert "······██████" in out


def test_a_retried_step_shows_all_that_happened(durable: Durable, tmp_path: Path) -> None:
    """The newest entry counts, and --step has the others with the errors of their attempts."""
    from durable_core import StepError

    url = appended(
        tmp_path,
        step(1, "waiting", error=StepError("OSError", "first"), until=BEGAN + timedelta(hours=1)),
        step(1, "failure", revision=1, attempt=2, error=StepError("OSError", "second")),
        step(1, "reopened", revision=2, note={"by": "alice", "reason": "it is mended"}),
    )
    assert "reopened" in durable("show", "long", "--store", url).out
    full = durable("show", "long", "--step", "step-1", "--store", url).out
    for words in ("OSError: first", "OSError: second", "by alice, it is mended"):
        assert words in full


@pytest.mark.parametrize("columns", [80, 140])
def test_no_line_is_longer_than_the_terminal(terminal: Callable[..., Terminal], seeded: str, columns: int) -> None:
    """But for commands, which are to be copied whole."""
    for run_id in ("refund-1", "refund-7"):
        screen = terminal("show", run_id, "--store", seeded, columns=columns)
        assert screen.end() == 0
        assert max(len(line) for line in screen.plain.splitlines() if "durable" not in line) <= columns
    assert set(STATES) >= {"refund-1", "refund-7"}


def test_ids_that_are_wide_get_a_line_of_their_own(terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    """They are never cut, and the columns of the others stay where they are."""
    long = "a-step-with-a-long-name/" * 3
    url = appended(tmp_path, StepRecord(run_id="r", step_id=long, result=b"1"), StepRecord(run_id="r", step_id="b", result=b"2"))
    screen = terminal("show", "r", "--store", url, columns=80)
    assert screen.end() == 0
    lines = [line.rstrip() for line in screen.plain.splitlines()]
    at = lines.index(long)
    assert lines[at + 1].lstrip().startswith("succeeded")
    assert lines[at + 1].index("succeeded") == lines[at + 2].index("succeeded")


def test_an_approval_that_was_set_by_hand(durable: Durable, tmp_path: Path) -> None:
    """It has no votes, and shows what was decided all the same."""
    decision = b'{"approved":true,"by":"carol","reason":"on the phone","at":"2026-03-29T12:00:00Z"}'
    url = appended(tmp_path, StepRecord(run_id="r", step_id="ask", kind="approval", note={"show": 1}, result=decision))
    out = durable("show", "r", "--store", url).out
    assert "approved" in out
    assert "by carol: on the phone" in out
