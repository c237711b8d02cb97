"""Wherever its process dies, a run of two agents ends with the same transcripts, and nothing that is recorded happens again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from durable_core import Runner, RunSuspended, Store, control, flow
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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="one process that has imported everything forks the others")
def test_processes_that_are_killed_in_their_tools(tmp_path: Path) -> None:
    """SIGKILL in each of two parallel tools, and in an approved one: what had ended is not done again."""
    ledger = tmp_path / "ledger"
    acts = ["order", "mood", "", "approve", "refund", ""]
    command = [sys.executable, "-m", "tests.openai_agents.programs", f"sqlite:{tmp_path / 'runs.db'}", str(ledger), *acts]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=270)
    killed = "exit code -9"
    assert json.loads(done.stdout) == [killed, killed, f"waits for {ASKED}", "approved", killed, "returned 2 transcripts"]
    happened = ledger.read_text().split()
    assert happened[-1] == "refund"
    assert (happened.count("mood"), happened.count("refund")) == (1, 1)
