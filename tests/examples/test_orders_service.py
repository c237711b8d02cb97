"""The orders service, as its README starts it: a worker killed in the middle loses no order and doubles no effect."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook

from durable_core import MemoryStore, StepRecord, Store, control
from durable_core.testing import FakeClock, crash_everywhere
from tests.servers.ports import free_port
from tests.servers.postgres import postgres_server_url, postgres_url

__all__ = ["postgres_server_url", "postgres_url"]

EXAMPLES = Path(__file__).parents[2] / "examples"
SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
SMALL, LARGE = range(8), range(8, 12)


@pytest.fixture
def environment(request: pytest.FixtureRequest, tmp_path: Path) -> Mapping[str, str]:
    """What both commands find; a store is named for PostgreSQL alone."""
    settings = {"SHOP_DB": str(tmp_path / "shop.db"), "WAREHOUSE_SECRET": SECRET, "PYTHONPATH": str(EXAMPLES)}
    if request.param == "postgres":
        settings["DURABLE_STORE"] = request.getfixturevalue("postgres_url")
    return {**{name: value for name, value in os.environ.items() if name != "DURABLE_STORE"}, **settings}


@contextmanager
def started(command: str, folder: Path, environment: Mapping[str, str], log: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command of the README."""
    assert command in (EXAMPLES / "orders_service" / "README.md").read_text(encoding="utf-8")
    words = [sys.executable, "-m", *command.removeprefix("python -m ").split()]
    if words[2] == "uvicorn":
        words += ["--port", environment["PORT"]]
    with (
        (folder / log).open("ab") as output,
        subprocess.Popen(words, cwd=folder, env=environment, stdout=output, stderr=output) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def effects(environment: Mapping[str, str]) -> Counter[tuple[str, str]]:
    """Count what the world did, by what and for which order."""
    with closing(sqlite3.connect(environment["SHOP_DB"], timeout=30)) as table:
        try:
            return Counter(table.execute("select what, about from effects").fetchall())
        except sqlite3.OperationalError:  # nothing yet
            return Counter()


def until(fits: Callable[[], object], what: str, folder: Path) -> None:
    deadline = time.monotonic() + 90
    while not fits():
        logs = "".join(path.read_text() for path in folder.glob("*.log"))
        assert time.monotonic() < deadline, f"{what} never came\n{logs[-4000:]}"
        time.sleep(0.01)


def call_back(client: httpx.Client, order: int) -> None:
    body, now = f'{{"order": "{order}", "parcel": "P-{order}"}}', datetime.now(UTC)
    signature = Webhook(SECRET).sign(f"call-{order}", now, body)
    headers = {
        "webhook-id": f"call-{order}",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": signature,
    }
    assert client.post("/hooks/warehouse", content=body, headers=headers).status_code == 202


@pytest.mark.skipif(sys.platform == "win32", reason="kills with SIGKILL")
@pytest.mark.parametrize("environment", ["sqlite", "postgres"], indirect=True)
def test_a_killed_worker_loses_no_order_and_doubles_no_effect(environment: dict[str, str], tmp_path: Path) -> None:
    """Killed while the bank answers, and started again, the worker ends all orders, with each effect once."""
    environment["PORT"] = str(free_port())
    with (
        started("uvicorn orders_service.web:app", tmp_path, environment, "web.log"),
        httpx.Client(base_url=f"http://127.0.0.1:{environment['PORT']}", timeout=60) as client,
    ):
        until(lambda: answers(client), "the web process", tmp_path)
        for number in [*SMALL, *LARGE]:
            wanted = {"item": "chair", "cents": 90_00 if number in SMALL else 900_00}
            assert client.put(f"/orders/{number}", json=wanted).status_code == 202
            assert client.put(f"/orders/{number}", json=wanted).status_code == 202
        assert client.put("/orders/0", json={"item": "chair", "cents": 1}).status_code == 409

        def status(number: int) -> Any:
            return client.get(f"/orders/{number}").json()

        slow_bank = {**environment, "BANK_SECONDS": "20"}
        with started("python -m orders_service.worker", tmp_path, slow_bank, "worker.log") as worker:
            until(lambda: any(what == "charged" for what, _ in effects(environment)), "a charge", tmp_path)
            os.kill(worker.pid, signal.SIGKILL)
        assert not any(what == "shipped" for what, _ in effects(environment)), "killed while the bank answered"

        with started("python -m orders_service.worker", tmp_path, environment, "worker.log") as worker:
            for number in SMALL:
                until(lambda number=number: status(number)["waiting_for"] == ["on-its-way"], "a shipment", tmp_path)
                call_back(client, number)
            until(lambda: len(client.get("/approvals").json()) == len(LARGE), "questions", tmp_path)
            for number in LARGE:
                decision = {"approved": number != LARGE[-1], "by": "ada"}
                assert client.post(f"/orders/{number}/decision", json=decision).status_code == 200
                assert client.post(f"/orders/{number}/decision", json={"approved": False, "by": "bob"}).status_code in (200, 409)
                call_back(client, number)
            for number in [*SMALL, *LARGE]:
                until(lambda number=number: status(number)["status"] == "succeeded", f"the end of {number}", tmp_path)
                assert status(number)["result"] == ("rejected by ada" if number == LARGE[-1] else f"parcel P-{number}")
            worker.terminate()
            assert worker.wait(30) == 0
    expected = {("reserved", str(number)): 1 for number in [*SMALL, *LARGE]}
    expected |= {(what, str(number)): 1 for what in ("charged", "shipped") for number in [*SMALL, *LARGE[:-1]]}
    assert effects(environment) == expected | {("released", str(LARGE[-1])): 1}
    log = (tmp_path / "worker.log").read_text()
    assert {*re.findall(r"^order-(\d+) succeeded", log, re.MULTILINE)} == {str(number) for number in [*SMALL, *LARGE]}
    assert "Traceback" not in log


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/orders/0").status_code == 404
    except httpx.TransportError:
        return False


async def test_each_night_the_day_before_is_booked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At two in Berlin the worker starts a run for the day before."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from orders_service import shop, worker

    monkeypatch.setattr(shop, "PATH", str(tmp_path / "shop.db"))
    clock = FakeClock(datetime(2026, 5, 31, 23, 50, tzinfo=UTC))
    store = MemoryStore(clock=clock)
    async with worker.make_worker(store, clock):
        await clock.sleep(timedelta(minutes=20).total_seconds())
    (run,) = [run async for run in control.runs(store)]
    assert (run.run_id, run.status, run.input) == ("settle@2026-06-01T00:00Z", "succeeded", {"day": "2026-05-31"})


@pytest.mark.timeout(600)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@pytest.mark.parametrize("approved", [True, False])
def test_an_order_crashed_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, approved: bool) -> None:
    """Killed at every point, an order that somebody has to approve is charged once, or released; no step is lost or doubled."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from orders_service import flows, shop

    monkeypatch.setattr(shop, "PATH", str(tmp_path / "shop.db"))
    monkeypatch.setattr(shop.time, "sleep", lambda seconds: None)  # the bank answers at once

    async def decide(store: Store, wait: StepRecord) -> None:
        if wait.kind == "event":
            await control.send(store, wait.run_id, wait.step_id, "P-1")
        else:
            await (control.approve if approved else control.reject)(store, wait.run_id, wait.step_id, by="ada")

    def happened(run_id: str) -> list[str]:
        with closing(sqlite3.connect(shop.PATH, timeout=30)) as table:
            return [what for (what,) in table.execute("select what from effects where about = ?", (run_id,))]

    report = crash_everywhere(
        flows.order,
        open_store=f"sqlite:{tmp_path / 'runs.db'}",
        input=lambda run_id: {"id": run_id, "item": "chair", "cents": 900_00},
        decide=decide,
        effects=happened,
    )
    for point in report.points:
        assert happened(point.run_id) == ["reserved", *(["charged", "shipped"] if approved else ["released"])]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_a_night_crashed_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at every point, a day is booked once by each run."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from orders_service import flows, shop

    monkeypatch.setattr(shop, "PATH", str(tmp_path / "shop.db"))
    assert crash_everywhere(flows.settle, open_store=f"sqlite:{tmp_path / 'runs.db'}", input={"day": "2026-05-31"}).kills
