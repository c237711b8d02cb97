"""Wherever its process dies, a run of two agents ends with the same transcripts, and nothing that is recorded happens again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from durable_core import Runner, RunSuspended, StepRecord, Store, control, flow
from durable_core.testing import crash_everywhere
from tests.every_store.conftest import Opened
from tests.every_store.killing import Act, World, everywhere
from tests.openai_agents.conftest import no_traces
from tests.openai_agents.programs import ASKED, EFFECTS, two_agents

__all__ = ["no_traces"]


def life(world: World) -> list[Act]:
    async def happen(name: str) -> str:
        return world.effects.happen(name)

    @flow(name="support", clock=world.clock, wait_limit=0)
    async def support(runner: Runner) -> str:
        return json.dumps(await two_agents(runner, happen))

    async def until_asked(store: Store) -> None:
        with pytest.raises(RunSuspended):
            await support.run(store, run_id=world.run_id)

    async def approve(store: Store) -> None:
        await control.approve(store, world.run_id, ASKED, by="alice")

    async def until_done(store: Store) -> None:
        await support.run(store, run_id=world.run_id)

    return [Act(until_asked, "waiting"), Act(approve), Act(until_done)]


async def test_a_kill_at_every_append(opened: Opened) -> None:
    """Before and after each append, on each store: the transcripts are those of a run that nobody disturbed."""
    async with opened() as store:
        lives = await everywhere(life, store)
        transcripts = []
        for lived in lives:
            newest = await lived.world.newest()
            assert newest is not None
            assert newest.status == "success"
            transcripts.append(newest.result)
            for name, step_id in EFFECTS.items():
                # A call beside the one with which the process died was in flight, too.
                beside = lived.met[-1:] in (("support/1-order-call_0",), ("support/1-mood-call_1",)) and "/1-" in step_id
                most = 2 if beside or lived.may_repeat(step_id) else 1
                assert 1 <= lived.world.effects[name] <= most, (name, lived.when, lived.met)
    assert len(lives) > 4
    assert len(set(transcripts)) == 1


@pytest.mark.timeout(600)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_processes_that_are_killed_everywhere(tmp_path: Path) -> None:
    """SIGKILL in each of two parallel tools, in an approved one, and wherever else: what had ended is not done again."""

    @flow
    async def support(runner: Runner) -> str:
        async def happen(name: str) -> str:
            with (tmp_path / runner.run_id).open("a") as ledger:
                ledger.write(f"{name}\n")
            return name

        return json.dumps(await two_agents(runner, happen))

    async def approve(store: Store, wait: StepRecord) -> None:
        await control.approve(store, wait.run_id, wait.step_id, by="alice")

    report = crash_everywhere(
        support,
        open_store=f"sqlite:{tmp_path / 'runs.db'}",
        decide=approve,
        effects=lambda run_id: (tmp_path / run_id).read_text().split(),
    )
    killed = {point.place.partition(",")[0] for point in report.points if point.killed}
    assert {f"as {step_id!r} begins" for step_id in EFFECTS.values()} < killed
