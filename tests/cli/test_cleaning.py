"""`durable clean`: what it clears, and that it asks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from durable_core import StepRecord, Store
from tests.cli.acting import asked, failed, on_url, wait_until_it_reads
from tests.cli.conftest import Durable
from tests.cli.terminal import Terminal

Start = Callable[..., Terminal]


@pytest.fixture
def local(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'durable.db'}"


async def _runs(store: Store) -> list[str]:
    from durable_core.store import runs_of

    listing = runs_of(store)
    assert listing is not None
    return sorted([run async for run in listing.runs()])


async def _seed(store: Store) -> None:
    await failed(store, "a1", "a2", "b1")
    await asked(store, "a3")


def test_cleaning_each_store(durable: Durable, url: str) -> None:
    """Runs that ended long enough ago are named by a dry run, and cleared with --yes; others stay."""
    on_url(url, _seed)
    assert durable("clean", "--yes", "--json", "--store", url).objects == []
    dry = durable("clean", "a", "--older", "0s", "--dry-run", "--json", "--store", url)
    assert sorted(each["run_id"] for each in dry.objects) == ["a1", "a2"]
    assert {each["cleared"] for each in dry.objects} == {False}
    assert on_url(url, _runs) == ["a1", "a2", "a3", "b1"]
    done = durable("clean", "a", "--older", "0s", "--yes", "--store", url)
    assert (done.code, done.out) == (0, "cleared 2 runs that ended more than 0 ms ago\n")
    assert on_url(url, _runs) == ["a3", "b1"]


def test_nothing_is_cleared_unasked(terminal: Start, durable: Durable, local: str) -> None:
    """Without a terminal it says --yes; on one the runs are named, and no is the answer that Enter gives."""
    on_url(local, _seed)
    piped = durable("clean", "--older", "0s", "--store", local)
    assert piped.code == 2
    assert "--yes" in piped.err
    for answer, code in (("\n", 1), ("\x03", 130)):
        seen = terminal("clean", "--older", "0s", "--store", local)
        seen.expect(r"  b1.*Clear 3 runs for good\? \[y/N\]: ", within=20)
        wait_until_it_reads(seen)
        seen.type(answer)
        assert seen.end() == code
    assert on_url(local, _runs) == ["a1", "a2", "a3", "b1"]
    seen = terminal("clean", "--older", "0s", "--store", local)
    seen.expect(r"\[y/N\]: ")
    seen.type("y\n")
    assert seen.end() == 0
    assert "cleared 3 runs" in seen.seen
    assert on_url(local, _runs) == ["a3"]


def test_where_nothing_ended_nothing_is_asked(durable: Durable, local: str) -> None:
    """Hostile ids of others do no harm either."""
    on_url(local, lambda store: store.append(StepRecord(run_id="a\u202e", step_id="s")))
    done = durable("clean", "--store", local)
    assert (done.code, done.out) == (0, "cleared 0 runs that ended more than 30 d ago\n")


@pytest.mark.parametrize("older", ["-1d", "soon", "9" * 400, "999999999d"])
def test_what_is_no_age_is_wrong_usage(durable: Durable, local: str, older: str) -> None:
    """It says how to write one."""
    done = durable("clean", "--older", older, "--yes", "--store", local)
    assert done.code == 2
