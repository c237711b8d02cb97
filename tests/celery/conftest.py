"""A broker, a store, and real workers of Celery in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import psutil
import pytest

from durable_core import control, open_store
from durable_core.store import OpenableStore
from tests.celery.orders import attached
from tests.servers.redis import KEEPING, RedisServer, redis_server

ROOT = Path(__file__).parents[2]
SECONDS = 60.0


class Process:
    """A worker, or beat, with a log."""

    def __init__(self, log: Path, environment: dict[str, str], *arguments: str) -> None:
        self._log = log
        command = [sys.executable, "-m", "celery", "-A", "tests.celery.orders", *arguments, "--loglevel", "INFO"]
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def pids(self) -> set[int]:
        """The process and its children."""
        process = psutil.Process(self._process.pid)
        return {process.pid, *(child.pid for child in process.children(recursive=True))}

    def kill(self) -> None:
        """End it with SIGKILL, and its children with it."""
        if self._process.poll() is None:
            for pid in self.pids:
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> int:
        """Ask it to end in an orderly way, and return its exit status."""
        self._process.terminate()
        return self._process.wait(SECONDS)

    def ready(self) -> None:
        wait_until(lambda: " ready." in self.log or "beat: Starting" in self.log, self._failure)

    def _failure(self) -> str:
        return self.log[-5000:]


class Shop:
    """What a test has: a broker, a store, and as many workers as it starts."""

    def __init__(self, folder: Path, broker: RedisServer, store_url: str, **settings: float) -> None:
        self.folder = folder
        self.broker = broker
        self.store_url = store_url
        self.settings = settings
        self.app, self.carrier = attached(broker.url, store_url, **settings)
        self._processes: list[Process] = []

    def start(self, *arguments: str) -> Process:
        names = {name.upper(): str(value) for name, value in self.settings.items()}
        environment = {"BROKER": self.broker.url, "STORE": self.store_url, "EFFECTS": str(self._effects), **names}
        process = Process(self.folder / f"log-{len(self._processes)}", environment, *arguments)
        self._processes.append(process)
        return process

    def worker(self, *pool: str) -> Process:
        name = f"worker-{len(self._processes)}@localhost"
        return self.start("worker", "-n", name, "--without-gossip", "--without-mingle", "--pool", *pool)

    def two_workers(self) -> tuple[Process, Process]:
        workers = self.worker("solo"), self.worker("prefork", "-c", "2")
        for worker in workers:
            worker.ready()
        return workers

    def beat(self) -> None:
        self.start("beat", "--schedule", str(self.folder / "beat"), "--max-interval", "1")

    def sweep(self) -> None:
        self.app.send_task("durable.sweep")

    def send(self, flow: str, run_id: str) -> None:
        """Send one more task for a run."""
        self.app.send_task("durable.go_on", (flow, run_id))

    @property
    def _effects(self) -> Path:
        return self.folder / "effects"

    @property
    def lines(self) -> list[tuple[str, int]]:
        """The effects in their order, each with the process that had it."""
        if not self._effects.exists():
            return []
        lines = (line.rpartition(" ") for line in self._effects.read_text().splitlines())
        return [(line, int(pid)) for line, _, pid in lines]

    @property
    def effects(self) -> Counter[str]:
        return Counter(line for line, _ in self.lines)

    def open_gate(self) -> None:
        self.folder.joinpath("gate").touch()

    def wait_until(self, true: Callable[[], bool]) -> None:
        wait_until(true, self.describe)

    def describe(self) -> str:
        return "\n".join([f"effects: {self.effects}", *(process.log[-6000:] for process in self._processes)])

    async def ended(self, store: OpenableStore, *run_ids: str) -> None:
        """Wait until the runs have ended."""
        for run_id in run_ids:
            try:
                await control.result(store, run_id, timeout=SECONDS)
            except TimeoutError:
                pytest.fail(f"run {run_id!r} has not ended: {await control.status(store, run_id)}\n{self.describe()}")

    async def stands(self, store: OpenableStore, run_id: str, status: str) -> None:
        await until(lambda: self._is(store, run_id, status), self.describe)

    async def _is(self, store: OpenableStore, run_id: str, status: str) -> bool:
        return (await control.status(store, run_id)).status == status

    def close(self) -> None:
        for process in self._processes:
            process.kill()
        self.app.close()


def wait_until(true: Callable[[], bool], describe: Callable[[], str]) -> None:
    deadline = time.monotonic() + SECONDS
    while not true():
        if time.monotonic() > deadline:
            pytest.fail(f"not so within {SECONDS:g} s\n{describe()}")
        time.sleep(0.02)


async def until(true: Callable[[], Awaitable[bool]], describe: Callable[[], str]) -> None:
    deadline = time.monotonic() + SECONDS
    while not await true():
        if time.monotonic() > deadline:
            pytest.fail(f"not so within {SECONDS:g} s\n{describe()}")
        time.sleep(0.02)


@pytest.fixture
def broker() -> Iterator[RedisServer]:
    with redis_server(*KEEPING) as server:
        yield server


@pytest.fixture
def settings() -> dict[str, float]:
    """Of the application; a test may give its own."""
    return {}


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path}/runs.db"


@pytest.fixture
def shop(tmp_path: Path, broker: RedisServer, store_url: str, settings: dict[str, float]) -> Iterator[Shop]:
    shop = Shop(tmp_path, broker, store_url, **settings)
    try:
        yield shop
    finally:
        shop.close()


@pytest.fixture
async def store(shop: Shop) -> AsyncIterator[OpenableStore]:
    """The store as a web process opens it that called `attach`."""
    async with shop.carrier.open_store() as store:
        yield store


@pytest.fixture
async def plain(shop: Shop) -> AsyncIterator[OpenableStore]:
    """The store as a process opens it that knows nothing of Celery."""
    async with open_store(shop.store_url) as store:
        yield store
