"""Workers in processes of their own: stopped, killed, frozen, with runs that kill them, several on one store."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from durable_core import Store, control, open_store
from durable_core.engine import FLOW, decided
from durable_core.store import wakeups_of
from tests.every_store.stopping import deadly, gated, serve, start, unswept

VISIBILITY = 3.0
LEASE = 3.0
SECONDS = 120.0
pytestmark = pytest.mark.skipif(
    not hasattr(signal, "SIGSTOP"), reason="Windows neither freezes processes nor stops them by SIGTERM"
)

Serve = Callable[..., Any]


@pytest.fixture
def place(url: str) -> str:
    return url.replace("lease=10", f"lease={LEASE:g}")


@pytest.fixture
def worker(place: str) -> Iterator[Serve]:
    """Start a worker; it is gone at the end."""
    processes: list[Any] = []

    def worker(*flows: str, visibility_timeout: float = VISIBILITY) -> Any:
        processes.append(start(serve, place, flows, visibility_timeout))
        return processes[-1]

    yield worker
    for process in processes:
        process.kill()
        process.join()


async def until(true: Callable[[], Awaitable[object]], what: object) -> None:
    deadline = time.monotonic() + SECONDS
    while not await true():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


async def happened(ledger: Path, line: str, times: int = 1) -> None:
    async def is_there() -> bool:
        return ledger.exists() and ledger.read_text().split("\n").count(line) >= times

    await until(is_there, f"{line} did not happen: {ledger.read_text() if ledger.exists() else ''}")


async def over(store: Store, *run_ids: str) -> None:
    async def are_over() -> bool:
        return all([decided(await store.get(run_id, FLOW)) for run_id in run_ids])

    await until(are_over, run_ids)


async def exit_code(process: Any) -> int:
    await asyncio.to_thread(process.join, SECONDS)
    code: int = process.exitcode
    return code


async def test_a_worker_that_is_stopped_hands_its_runs_back(place: str, worker: Serve, tmp_path: Path) -> None:
    """On SIGTERM the step that runs may end and nothing more begins; another worker goes on at once, by the wake-up alone."""
    ledger, gate = tmp_path / "ledger", tmp_path / "gate"
    async with unswept(place) as store:
        await gated.start(store, "run", ledger=str(ledger), gate=str(gate))
        first = worker("gated", visibility_timeout=10 * SECONDS)
        await happened(ledger, "one begins")
        first.terminate()
        await asyncio.sleep(0.2)  # the signal is heard while the step runs
        gate.touch()
        assert await exit_code(first) == 0
        assert ledger.read_text().split("\n") == ["one begins", "one", ""]
        assert (await control.status(store, "run")).status == "waiting"
        worker("gated")
        await over(store, "run")
        assert ledger.read_text().split("\n") == ["one begins", "one", "two begins", "two", ""]


async def test_a_worker_that_is_killed_in_a_step(place: str, worker: Serve, tmp_path: Path) -> None:
    """Another goes on after the visibility timeout; the step runs again, what was recorded doesn't."""
    ledger, gate = tmp_path / "ledger", tmp_path / "gate"
    gate.touch()
    async with unswept(place) as store:
        await gated.start(store, "run", ledger=str(ledger), gate=str(gate), stop_at="two")
        first = worker("gated")
        began = time.monotonic()
        await happened(ledger, "two begins")
        first.kill()
        assert await exit_code(first) == -signal.SIGKILL
        worker("gated")
        (tmp_path / "gate-two").touch()
        await over(store, "run")
        assert ledger.read_text().split("\n") == ["one begins", "one", "two begins", "two begins", "two", ""]
        if getattr(wakeups_of(store), "hides_wakeups", False):
            assert time.monotonic() - began >= VISIBILITY


async def test_a_worker_that_is_frozen_for_longer_than_its_lease(place: str, worker: Serve, tmp_path: Path) -> None:
    """Where locks are leases another goes on meanwhile; each step has one outcome, and the run ends once."""
    ledger, gate = tmp_path / "ledger", tmp_path / "gate"
    async with open_store(place) as store:
        await gated.start(store, "run", ledger=str(ledger), gate=str(gate))
        first = worker("gated")
        await happened(ledger, "one begins")
        os.kill(first.pid, signal.SIGSTOP)
        worker("gated")
        gate.touch()
        await (over(store, "run") if "lease=" in place else asyncio.sleep(VISIBILITY + LEASE))
        os.kill(first.pid, signal.SIGCONT)
        await over(store, "run")
        first.terminate()
        assert await exit_code(first) == 0
        entries = [(record.step_id, record.status) for record in await store.list("run")]
        assert entries.count(("one", "success")) == entries.count(("two", "success")) == entries.count((FLOW, "success")) == 1
        if "lease=" not in place:  # the lock was held all the time
            assert ledger.read_text().split("\n") == ["one begins", "one", "two begins", "two", ""]


async def test_a_run_that_kills_its_process_takes_no_neighbour_along(place: str, worker: Serve, tmp_path: Path) -> None:
    """It is parked after so many deaths; a run beside it is begun again no more than twice, and ends."""
    ledger, gate = tmp_path / "ledger", tmp_path / "gate"
    async with open_store(place) as store:
        await deadly.start(store, "deadly", ledger=str(ledger))
        for number in range(5):
            await gated.start(store, f"run-{number}", ledger=str(ledger), gate=str(gate))
        process, began, deaths = worker("gated", "deadly"), time.monotonic(), 0

        async def is_parked() -> bool:
            nonlocal process, began, deaths
            if not process.is_alive():
                deaths += 1
                process, began = worker("gated", "deadly"), time.monotonic()
            elif deaths >= 2 and time.monotonic() > began + 1:  # the third may come before that second is over
                gate.touch()
            return (await control.status(store, "deadly")).status == "parked"

        await until(is_parked, "the run that kills its process is not parked")
        gate.touch()  # if it was parked before that second was over
        await over(store, *(f"run-{number}" for number in range(5)))
        assert deaths == ledger.read_text().split("\n").count("deadly") == 3
        for number in range(5):
            begun = [record.status for record in await store.list(f"run-{number}") if record.step_id == FLOW].count("started")
            assert begun <= 3, f"run-{number} was taken along {begun} times"


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_three_workers_on_one_file(place: str, worker: Serve, tmp_path: Path) -> None:
    """They share a hundred runs; each is driven once, by one of them."""
    ledger, gate = tmp_path / "ledger", tmp_path / "gate"
    gate.touch()
    async with open_store(place) as store:
        processes = [worker("gated") for _ in range(3)]
        names = [f"run-{number}" for number in range(100)]
        await asyncio.gather(*(gated.start(store, name, ledger=str(ledger), gate=str(gate)) for name in names))
        await over(store, *names)
        for process in processes:
            process.terminate()
        assert [await exit_code(process) for process in processes] == [0, 0, 0]
        assert ledger.read_text().split("\n").count("two") == 100
        for name in names:
            flow = [record.status for record in await store.list(name) if record.step_id == FLOW]
            assert flow == ["waiting", "started", "success"]
