"""Workers die, freeze and stop, and their runs go on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from durable_core import control
from durable_core.store import OpenableStore
from tests.celery.conftest import Process, Shop
from tests.celery.orders import slow


def driver(shop: Shop, workers: tuple[Process, Process]) -> tuple[Process, Process, int]:
    """Wait until a run is in the middle; return the worker that drives it, the other one, and the process."""
    shop.wait_until(lambda: bool(shop.effects["one-second-begins"]))
    (pid,) = [pid for line, pid in shop.lines if line == "one-second-begins"]
    first, second = workers
    return (first, second, pid) if pid in first.pids else (second, first, pid)


def check_effects(shop: Shop) -> None:
    """Only the step in flight at the kill was done twice."""
    found = {name: count for name, count in shop.effects.items() if not name.endswith("-told")}
    assert found == {"one-first": 1, "one-second-begins": 2, "one-second-ends": 1, "one-third": 1}


@pytest.mark.parametrize(
    "url", ["sqlite:{folder}/runs.db", "file:{folder}/runs", "{broker}?prefix=runs"], ids=["sqlite", "file", "redis"]
)
@pytest.mark.parametrize("found_by", ["sweep", "broker"])
class TestAKill:
    """A worker is killed with SIGKILL in the middle of a flow, and the other one ends it."""

    @pytest.fixture
    def store_url(self, url: str, tmp_path: Path, broker) -> str:
        return url.format(folder=tmp_path, broker=broker.url.replace("/0", "/1"))

    @pytest.fixture
    def settings(self, found_by: str) -> dict[str, float]:
        return {"visibility_timeout": 5.0} if found_by == "broker" else {"sweep_every": 2.0}

    async def test_the_other_worker_ends_the_run(self, shop: Shop, store: OpenableStore, found_by: str) -> None:
        """The broker delivers the task again, or before that the sweep finds the run."""
        workers = shop.two_workers()
        await slow.start(store, "one", name="one")
        dead, _, _ = driver(shop, workers)
        dead.kill()
        shop.open_gate()
        if found_by == "sweep":
            shop.beat()
        await shop.ended(store, "one")
        check_effects(shop)


async def test_a_process_of_a_pool_dies(shop: Shop, store: OpenableStore) -> None:
    """The task is put back at once when only the process dies that drives the run."""
    worker = shop.worker("prefork", "-c", "2")
    worker.ready()
    await slow.start(store, "one", name="one")
    _, _, pid = driver(shop, (worker, worker))
    os.kill(pid, signal.SIGKILL)
    shop.open_gate()
    await shop.ended(store, "one")
    check_effects(shop)


@pytest.mark.parametrize("settings", [{"visibility_timeout": 2.0}])
async def test_a_long_run_is_delivered_again(shop: Shop, store: OpenableStore) -> None:
    """A run that is longer than the broker's visibility timeout comes to the other worker as well, which leaves it alone."""
    workers = shop.two_workers()
    await slow.start(store, "one", name="one")
    _, other, _ = driver(shop, workers)
    shop.wait_until(lambda: other.log.count("durable.go_on") >= 4)
    shop.open_gate()
    await shop.ended(store, "one")
    assert {name: count for name, count in shop.effects.items() if not name.endswith("-told")} == {
        "one-first": 1,
        "one-second-begins": 1,
        "one-second-ends": 1,
        "one-third": 1,
    }


@pytest.mark.parametrize("pool", [("solo",), ("prefork", "-c", "2"), ("threads", "-c", "2")], ids=lambda pool: pool[0])
async def test_a_worker_that_stops_hands_its_run_back(shop: Shop, store: OpenableStore, pool: tuple[str, ...]) -> None:
    """On SIGTERM the step that runs may end; the next worker goes on with the run at once, and nothing is done twice."""
    worker = shop.worker(*pool)
    worker.ready()
    await slow.start(store, "one", name="one")
    driver(shop, (worker, worker))
    worker._process.send_signal(signal.SIGTERM)
    shop.wait_until(lambda: "runs are handed to others" in worker.log)
    shop.open_gate()
    assert worker.stop() == 0
    assert (await control.status(store, "one")).status == "waiting"
    assert not shop.effects["one-third"]
    other = shop.worker("solo")
    await shop.ended(store, "one")
    assert shop.effects["one-second-begins"] == shop.effects["one-third"] == 1
    assert "Traceback" not in worker.log + other.log


@pytest.mark.parametrize("settings", [{"shutdown_timeout": 0.5}])
async def test_a_stop_cancels_what_takes_too_long(shop: Shop, store: OpenableStore) -> None:
    """The worker ends although a step doesn't, and the next one does that step again."""
    worker = shop.worker("prefork", "-c", "2")
    worker.ready()
    await slow.start(store, "one", name="one")
    driver(shop, (worker, worker))
    assert worker.stop() == 0
    shop.open_gate()
    shop.worker("solo")
    await shop.ended(store, "one")
    check_effects(shop)


async def test_a_soft_time_limit_hands_the_run_to_the_next_process(
    shop: Shop, store: OpenableStore, plain: OpenableStore
) -> None:
    """A limit that the user sets for tasks loses no run: another task goes on with it at once."""
    worker = shop.worker("prefork", "-c", "2")
    worker.ready()
    await slow.start(plain, "one", name="one")
    shop.app.send_task("durable.go_on", ("slow", "one"), soft_time_limit=2)
    shop.wait_until(lambda: shop.effects["one-second-begins"] == 2)
    shop.open_gate()
    await shop.ended(store, "one")
    check_effects(shop)
