"""`durable runs`."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from durable_core import Runner, StepRecord, open_store
from tests.cli.conftest import Done, Durable
from tests.cli.seeds import STATES
from tests.cli.terminal import Terminal


def append(url: str, *records: StepRecord) -> None:
    async def fill() -> None:
        async with open_store(url) as store:
            for record in records:
                await store.append(record)

    asyncio.run(fill())


def ids(done: Done) -> list[str]:
    assert done.code == 0, done.err
    return [run["run_id"] for run in done.objects]


def test_runs_say_what_they_wait_for_or_failed_at(durable: Durable, seeded: str) -> None:
    """One line a run, newest first, in words; how many of each state below."""
    lines = durable("runs", "--store", seeded).out.splitlines()
    said = {line.split()[0]: line for line in lines[1:-2]}
    for run_id, words in {
        "refund-0": 'succeeded * "paid back"',
        "refund-1": "failed * at pay-back: ConnectionError: the bank is closed",
        "refund-2": "crashed * NameError: no such name, next try",
        "refund-3": "waiting * for cool-off until",
        "refund-7": "waiting * for approve until",
        "asked": "waiting * for its turn",
        "charge-1": "parked * at charge: step 'charge'",
        "charge-2": "interrupted * nobody holds it since",
        "dropped": "cancelled * changed her mind",
    }.items():
        state, _, about = words.partition(" * ")
        assert f" {state} " in said[run_id]
        assert about in said[run_id]
    assert lines[-1].startswith("All 15: 7 waiting, 2 failed, ")


def test_runs_are_filtered(durable: Durable, seeded: str) -> None:
    """By the beginning of the id, one status or several, the flow, and when they began."""
    assert ids(durable("runs", "charge-", "--json", "--store", seeded)) == ["charge-2", "charge-1"]
    found = durable("runs", "--status", "failed", "--status", "crashed", "--json", "--store", seeded)
    assert ids(found) == ["refund-5", "refund-2", "refund-1"]
    assert ids(durable("runs", "--flow", "order", "--json", "--store", seeded)) == ["order-7"]
    assert ids(durable("runs", "--since", "2999-01-01", "--json", "--store", seeded)) == []
    assert len(ids(durable("runs", "--since", "1d", "--json", "--store", seeded))) == 15
    assert durable("runs", "--status", "failing", "--store", seeded).code == 2
    assert "There are no such runs." in durable("runs", "nobody", "--store", seeded).out


def test_the_last_line_asks_for_the_next_page(durable: Durable, seeded: str) -> None:
    """It is a whole command with the same filters, and the pages hold each run once."""
    everything = ids(durable("runs", "--flow", "refund", "--json", "--store", seeded))
    done, found = durable("runs", "--limit", "4", "--flow", "refund", "--since", "1d", "--store", seeded), []
    for _ in everything:
        table, _, _ = done.out.partition("\n\n")
        found += [line.split()[0] for line in table.splitlines()[1:]]
        if "Older ones" not in done.out:
            break
        program, *command = shlex.split(done.out.splitlines()[-1])
        assert program == "durable"
        done = durable(*command)
    assert found == everything


def test_a_page_that_is_whole_asks_for_no_other(durable: Durable, seeded: str) -> None:
    """Exactly as many as the limit are all."""
    assert "All 2: 2 failed." in durable("runs", "--status", "failed", "--limit", "2", "--store", seeded).out
    older = durable("runs", "--status", "failed", "--limit", "1", "--store", seeded).out
    assert "--status failed --limit 1 --before refund-5 --store " in older


def test_runs_without_a_flow_are_listed_where_there_are_no_others(durable: Durable, tmp_path: Path) -> None:
    """A program that uses a runner alone sees its runs, too."""
    url = f"sqlite:{tmp_path / 'runs.db'}"

    async def work() -> None:
        async with open_store(url) as store, Runner(store, "script") as runner:
            await runner.step("first", lambda: 1, returns=int)

    asyncio.run(work())
    assert ids(durable("runs", "--json", "--store", url)) == ["script"]
    append(url, StepRecord(run_id="pay-1", step_id="$flow", kind="flow", name="pay", status="waiting"))
    assert ids(durable("runs", "--json", "--store", url)) == ["pay-1"]
    assert ids(durable("runs", "--status", "open", "--json", "--store", url)) == ["script"]


def test_a_damaged_run_hides_no_other(durable: Durable, tmp_path: Path) -> None:
    """The others are listed, and the damage is told, with exit code 1."""
    url = f"file:{tmp_path / 'runs'}"
    at = datetime(2026, 3, 29, tzinfo=UTC)
    for name in ("a", "b"):
        began = StepRecord(run_id=name, step_id="$flow", kind="flow", name="pay", status="started", started_at=at, ended_at=at)
        append(url, began, msgspec.structs.replace(began, revision=1, status="success", result=b'"whole"', id="1"))
        at += timedelta(seconds=1)
    (log,) = (tmp_path / "runs").glob("b*.jsonl")
    log.write_bytes(log.read_bytes().replace(b"whole", b"whale"))
    done = durable("runs", "--store", url)
    assert done.code == 1
    assert "succeeded" in done.out
    assert done.out.splitlines()[1].startswith("a ")
    assert str(log) in done.err


@pytest.mark.parametrize("columns", [80, 140])
def test_no_line_is_longer_than_the_terminal(terminal: Callable[..., Terminal], seeded: str, columns: int) -> None:
    """What is cut is the last column, never an id."""
    screen = terminal("runs", "--store", seeded, columns=columns)
    assert screen.end() == 0
    lines = [line for line in screen.plain.splitlines() if line.strip()]
    assert max(map(len, lines[:-1])) <= columns
    for run_id in STATES:
        assert run_id == "script" or any(line.startswith(f"{run_id} ") for line in lines)
    assert ("the bank is closed" in screen.plain) == (columns == 140)
    assert "\x1b[31mfailed" in screen.seen


def test_a_pipe_gets_neither_colours_nor_cuts(durable: Durable, seeded: str) -> None:
    """Nor spaces at the end of lines."""
    out = durable("runs", "--store", seeded).out
    assert "\x1b" not in out
    assert "…" not in out
    assert all(line == line.rstrip() for line in out.splitlines())
