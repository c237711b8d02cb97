"""Runs that cannot be read hide no other, on any store."""

from __future__ import annotations

import asyncio

import pytest

from durable_core import CorruptLog, Runner, control, flow, open_store
from durable_core.engine import count
from durable_core.store import flows_of
from durable_worker import Worker
from tests.soak.spoiling import SPOILT, spoil


@flow
async def greet(runner: Runner) -> str:
    return await runner.step("greet", lambda: "hello")


async def test_runs_that_cannot_be_read_hide_no_other(url: str) -> None:
    """Damaged runs, and runs that a newer version wrote: a worker takes all others to their ends, and they are listed."""
    async with open_store(url) as store:
        await spoil(url, greet, "spoilt-first", "kind", "later")
        for number in range(3):
            await greet.start(store, f"before-{number}")
        for number, (field, value) in enumerate(SPOILT):
            await spoil(url, greet, f"spoilt-{number}", field, value)
        for number in range(3):
            await greet.start(store, f"later-{number}")
        others = [f"{when}-{number}" for when in ("before", "later") for number in range(3)]
        if (index := flows_of(store)) is not None:
            for limit in range(1, 13):
                assert [flow.run_id for flow in await index.flows(limit=limit)] == others[::-1][:limit]
    async with open_store(url) as store:
        worker = Worker(store, [greet])
        async with asyncio.timeout(60):
            succeeded = 0
            while succeeded < len(others):
                succeeded += (await worker.sweep()).succeeded
        found: list[str] = []
        with pytest.raises(CorruptLog, match="spoilt"):
            async for run in control.runs(store):
                found.append(run.run_id)  # noqa: PERF401  # a comprehension would lose them all to what is raised last
        assert sorted(found) == others
        held = {} if url.startswith("s3") else {("greet", "succeeded"): len(others)}  # that index holds no run that has ended
        assert (await count(store)).runs == held
