"""The processes of a soak: workers, and the people who ask for runs and decide. All of them may be killed at any time.

`python -m tests.soak.processes worker NAME FOLDER`, where the folder holds the plan.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

import msgspec

from durable_core import NotFound, Refused, RunBusy, Store, StoreError, control, open_store
from durable_core.events import StepEvent
from durable_worker import Worker

from .flows import MIX, chosen, is_rejected, is_withdrawn, keep_mended_in, mend_of, mended, number_of
from .side import Line, Side, begin_life, note

_logger: Final = logging.getLogger("soak")


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What all processes of a soak know."""

    urls: dict[str, str]
    """The store's URL by the name of a process: each has a way of its own to a server."""
    runs: int
    seed: int
    flows: Sequence[str]
    seconds: float
    """For how long processes are killed; the runs are asked for in the first four fifths of it."""
    began: float
    """When, by the machine's monotonic clock."""
    visibility_timeout: float
    poll: float
    concurrency: int = 10
    max_crashes: int = 6


def tell(event: StepEvent) -> None:
    """Note what was recorded, once it was."""
    if event.type in ("step:success", "step:failure"):
        note("recorded", event.run_id, event.step_id, attempt=event.attempt)
    elif event.type in ("run:end", "run:suspend", "run:crash"):
        parked = event.record is not None and "parked" in event.record.notes
        what = {"run:end": "ended", "run:suspend": "suspended", "run:crash": "crashed"}[event.type]
        note("parked" if parked else what, event.run_id)


async def work(store: Store, plan: Plan) -> None:
    """Be a worker until SIGTERM."""
    worker = Worker(
        store,
        [*MIX],
        concurrency=plan.concurrency,
        visibility_timeout=plan.visibility_timeout,
        poll=plan.poll,
        max_crashes=plan.max_crashes,
        shutdown_timeout=5,
        on_event=tell,
    )
    await worker.serve()


class People:
    """Ask for runs when it is time, and decide what runs wait for; what was done is known by the lines of earlier lives."""

    def __init__(self, store: Store, plan: Plan, side: Side) -> None:
        self._store: Final = store
        self._plan: Final = plan
        self._side: Final = side
        self._begun: set[tuple[str, str, str]] = set()
        self._tasks: Final = asyncio.TaskGroup()

    async def act(self) -> None:
        """Act until the process is ended; raise what nobody expects."""
        runs = chosen(self._plan.runs, self._plan.seed, self._plan.flows)
        lines = self._side.news()
        self._begun = {(line.what, line.run, line.step) for line in lines if line.what in ("asked", "sent", "decided")}
        wanted = [line for line in lines if line.what == "wants"]
        every = self._plan.seconds * 0.8 / len(runs)
        async with self._tasks:
            while True:
                for number, (run_id, flow) in enumerate(runs):
                    if time.monotonic() < self._plan.began + number * every:
                        break
                    self._once("asked", run_id, "", partial(flow.start, self._store, run_id))
                    if flow.name == "listens":
                        send = partial(control.send, self._store, run_id, "before", f"early-{number}")
                        self._once("sent", run_id, "before", send)
                for line in wanted:
                    if line.kind != "sleep":
                        self._once("decided", line.run, line.step, partial(self._decide, line))
                await asyncio.sleep(0.02)
                wanted = [line for line in self._side.news() if line.what == "wants"]

    def _once(self, what: str, run_id: str, step_id: str, act: Callable[[], Awaitable[object]]) -> None:
        """Do something in the background unless it was done, again until the store is there, and note that it was done."""
        key = (what, run_id, step_id)
        if key in self._begun:
            return
        self._begun.add(key)

        async def done() -> None:
            while True:
                try:
                    await act()
                    break
                except (StoreError, NotFound) as error:  # the server is away, or the run is about to wait
                    _logger.warning("%s %s %s: %s", *key, error)
                    await asyncio.sleep(0.1)
                except Refused as error:  # an earlier life did it
                    _logger.warning("%s %s %s was refused: %s", *key, error)
                    break
            note(what, run_id, step_id)

        self._tasks.create_task(done())

    async def _decide(self, wants: Line) -> None:
        """Decide after a while that the run's id gives: some at once, so that it happens while the run suspends."""
        store, run_id, step_id = self._store, wants.run, wants.step
        await asyncio.sleep(max(0, Random(f"{run_id} {step_id}").uniform(-0.5, 1.5)))
        if wants.kind == "decide":
            decide = control.reject if is_rejected(run_id) else control.approve
            await decide(store, run_id, step_id, by="alice")
        elif wants.kind == "both":
            for name in ("alice", "bob"):
                await control.approve(store, run_id, step_id, by=name)
        elif wants.kind == "send" and is_withdrawn(run_id):
            await control.send_failure(store, run_id, step_id, error="declined")
        elif wants.kind == "send":
            await control.send(store, run_id, step_id, f"late-{number_of(run_id)}")
        elif wants.kind == "cancel":
            await control.cancel(store, run_id, reason="changed my mind", by="alice")
        elif wants.kind == "meddle":
            note("meddles", run_id, step_id)
            try:
                if number_of(run_id) % 2:
                    await control.retry(store, run_id, step_id, by="alice")
                else:
                    await control.resolve(store, run_id, step_id, "by hand", reason="nobody knows", by="alice")
            except NotFound:  # it is about to begin
                raise
            except (RunBusy, Refused):  # it runs, or has ended
                return
            note("meddled", run_id, step_id)
        elif wants.kind == "mend":
            while (stands := (await control.status(store, run_id)).status) not in ("failed", "succeeded"):
                await asyncio.sleep(0.5)
            if stands == "succeeded":  # an earlier life mended it
                return
            mended(run_id).touch()
            if mend_of(run_id) == "retry":
                await control.retry(store, run_id, by="alice")
            elif mend_of(run_id) == "resolve":
                await control.resolve(store, run_id, step_id, "by hand", reason="paid by hand", by="alice")
            else:
                await control.fork(store, run_id, f"{run_id}-fork", before=step_id)


async def main(role: str, who: str, folder: Path) -> None:
    plan = msgspec.json.decode((folder / "plan.json").read_bytes(), type=Plan)
    side = begin_life(folder / "side.jsonl", who)
    keep_mended_in(folder / "mended")
    async with open_store(plan.urls[who.rpartition("-")[0]]) as store:
        side.note("ready")
        await (work(store, plan) if role == "worker" else People(store, plan, side).act())


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
