"""The support agent, killed at random, ends as one that nobody disturbed."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import re
import subprocess
import sys
from collections import Counter
from html import unescape
from pathlib import Path

import pytest

import durable_web
from durable_core import RunSuspended, StepRecord, Store, control, open_store
from durable_core.testing import crash_everywhere
from examples.support_agent.agent import ticket
from tests.every_store.conftest import postgres_server_url, postgres_url
from tests.web.conftest import Browse, browse, signed_in

__all__ = ["browse", "postgres_server_url", "postgres_url"]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there a process can't be forked")

KILLS = int(os.environ.get("DURABLE_KILLS", "4"))
ASK = "support/approve-refund-2-call_0"
# A process that has imported all this already, and forks one for each kill.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__])


def work(url: str, run_id: str, folder: str) -> None:
    """Work on a ticket, in a process of its own, until it ends or waits."""

    async def run() -> None:
        async with open_store(url) as store:
            await ticket.options(lock_wait=20).run(store, run_id=run_id, order_id="A-7", folder=folder)

    try:
        asyncio.run(run())
    except RunSuspended:
        sys.exit(3)


def decide_by_command(url: str, run_id: str, name: str) -> None:
    """Approve as a person does in a terminal."""
    command = [Path(sys.executable).with_name("durable"), "--store", url, "approve", run_id, ASK, "--by", name, "--yes"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


async def decide_on_page(browse: Browse, url: str, run_id: str, name: str) -> None:
    """Approve as a person does in the browser."""
    async with open_store(url) as store:
        person = browse(durable_web.app(store, user=signed_in), name)
        mark = re.search(r'name="mark" value="([^"]+)"', (await person.get()).text)
        assert mark is not None
        answered = await person.post("act/decide", run=run_id, step=ASK, mark=unescape(mark[1]), answer="approve")
        assert answered.headers["location"].endswith("/?said=approved")


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_killed_at_random(kind: str, tmp_path: Path, browse: Browse, request: pytest.FixtureRequest) -> None:
    """Each effect happens once, or again where it was in flight at a kill; one refund; one transcript for all."""
    url = f"sqlite:{tmp_path / 'runs.db'}" if kind == "sqlite" else str(request.getfixturevalue("postgres_url"))
    chance = random.Random(7)
    kills = tickets = 0
    transcripts = set()
    while kills < KILLS or not tickets:
        tickets += 1
        run_id, folder = f"ticket-{tickets}", tmp_path / f"desk-{tickets}"
        folder.mkdir()
        killed_here, waited = 0, False
        while True:
            process = FORKS.Process(target=work, args=(url, run_id, str(folder)))
            process.start()
            limit = chance.uniform(0, 0.6) if kills < KILLS else 120
            await asyncio.to_thread(process.join, limit)
            if process.is_alive():
                process.kill()
                process.join()
                kills, killed_here = kills + 1, killed_here + 1
                continue
            if process.exitcode == 0:
                break
            assert process.exitcode == 3, process.exitcode
            assert not waited
            waited = True
            decide_by_command(url, run_id, "ann")
            await decide_on_page(browse, url, run_id, "bob")
        lines = (folder / "calls.jsonl").read_text(encoding="utf-8").splitlines()
        calls = [json.loads(line) for line in lines]
        assert {call["tool"] for call in calls} == {"find_order", "search_rules", "refund", "write_to_customer"}
        assert len({call["key"] for call in calls}) == 4
        repeated = Counter(call["tool"] for call in calls)
        assert all(times <= 1 + killed_here for times in repeated.values())
        assert len(list(folder.glob("refund-*.json"))) == 1
        async with open_store(url) as store:
            transcripts.add(tuple(await control.result(store, run_id, returns=list[str])))
    assert len(transcripts) == 1
    assert kills == KILLS


@pytest.mark.timeout(600)
def test_crashed_everywhere(tmp_path: Path) -> None:
    """Killed at every point, around both approvals too: each call is made once, or again where it was in flight; one refund."""

    def desk_of(run_id: str) -> dict[str, str]:
        (tmp_path / run_id).mkdir()
        return {"order_id": "A-7", "folder": str(tmp_path / run_id)}

    async def decide(store: Store, wait: StepRecord) -> None:
        for name in ("ann", "bob"):
            await control.approve(store, wait.run_id, wait.step_id, by=name)

    def effects(run_id: str) -> list[str]:
        calls = (tmp_path / run_id / "calls.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["tool"] for line in calls] + ["paid" for _ in (tmp_path / run_id).glob("refund-*.json")]

    report = crash_everywhere(ticket, open_store=f"sqlite:{tmp_path / 'runs.db'}", input=desk_of, decide=decide, effects=effects)
    for point in report.points:
        assert effects(point.run_id).count("paid") == 1
