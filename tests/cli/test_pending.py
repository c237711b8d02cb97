"""`durable pending`."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from pathlib import Path

from durable_core import control, open_store
from tests.cli.conftest import Durable
from tests.cli.seeds import go, refund


def test_what_waits_for_a_person(durable: Durable, seeded: str) -> None:
    """The oldest first, with what it shows, who may decide and until when; how to decide the first one stands below."""
    lines = durable("pending", "--store", seeded).out.splitlines()
    first, second = lines[1:3]
    assert first.split()[:2] == ["refund-7", "approve"]
    assert second.split()[:2] == ["order-7/refund", "approve"]
    assert "alice, bob, 1 of 2" in first
    assert '{"amount":90}' in first
    assert lines[-2:] == [f"  durable {verb} refund-7 approve --by NAME --store {seeded}" for verb in ("approve", "reject")]


def test_the_json_of_what_waits(durable: Durable, seeded: str) -> None:
    """All that a program needs to ask somebody else."""
    first, _ = durable("pending", "--json", "--store", seeded).objects
    began, until = (datetime.fromisoformat(first.pop(name)) for name in ("started_at", "until"))
    assert abs(until - began - timedelta(days=2)) < timedelta(seconds=1)
    (vote,) = first.pop("votes")
    assert (vote["by"], vote["approved"]) == ("alice", True)
    assert first == {
        "run_id": "refund-7",
        "step_id": "approve",
        "name": "approve",
        "show": {"amount": 90},
        "approvers": ["alice", "bob"],
        "quorum": 2,
        "on_timeout": "fail",
    }


def test_only_runs_with_a_prefix(durable: Durable, seeded: str) -> None:
    """As `runs` takes it."""
    assert [each["run_id"] for each in durable("pending", "order-", "--json", "--store", seeded).objects] == ["order-7/refund"]
    assert durable("pending", "nobody", "--store", seeded).out == "Nothing waits for a person.\n"


def test_what_was_decided_is_gone(durable: Durable, tmp_path: Path) -> None:
    """At once, though the run has not gone on yet."""
    url = f"sqlite:{tmp_path / 'runs.db'}"

    async def decide() -> None:
        async with open_store(url) as store:
            await go(refund.run(store, run_id="r", order=0))
            await control.approve(store, "r", "approve", by="alice")

    asyncio.run(decide())
    assert durable("pending", "--json", "--store", url).objects == []
