"""`durable serve`, `sweep` and `web`: a worker of the user's program, in a process of its own."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from durable_core import control
from tests.cli.acting import ROOT, asked, on_url, pay, refund
from tests.cli.conftest import Durable
from tests.cli.terminal import Terminal

Start = Callable[..., Terminal]
HERE = "tests.cli.acting"


@pytest.fixture
def local(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'durable.db'}"


@contextmanager
def serving(*args: str, cwd: Path = ROOT) -> Iterator[subprocess.Popen[str]]:
    """Serve a worker until it is told to stop."""
    command = [sys.executable, "-m", "durable_cli", "serve", *args]
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.kill()


def line_with(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    """Read what it logs until a line shows a pattern."""
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if found := re.search(pattern, line):
            return found
    raise AssertionError(f"{pattern!r} was not logged in:\n{''.join(seen)}")


def until(url: str, run_id: str, state: str) -> control.RunStatus:
    """Wait until a run stands so."""
    deadline = monotonic() + 60
    while (run := on_url(url, lambda store: control.status(store, run_id))).status != state or run.holder is not None:
        assert monotonic() < deadline, run
        sleep(0.05)
    return run


@pytest.mark.parametrize("worker", ["refund", "flows", "make_worker"])
def test_runs_are_driven_until_a_signal_comes(local: str, worker: str) -> None:
    """By a flow, a list of flows, or a worker made by a function; it says what it does on stderr, and stops gracefully."""
    on_url(local, lambda store: refund.start(store, "r1", order="7"))
    with serving(f"{HERE}:{worker}", "--store", local) as process:
        line_with(process, "durable_worker: working for .*refund")
        deadline = monotonic() + 60
        while not (run := on_url(local, lambda store: control.status(store, "r1"))).waiting_for:
            assert monotonic() < deadline, run
            sleep(0.05)
        on_url(local, lambda store: control.approve(store, "r1", "approve", by="alice"))
        assert until(local, "r1", "succeeded").result == "paid 90"
        process.send_signal(signal.SIGTERM if worker == "flows" else signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out) == (0, "")
        assert "Traceback" not in err


def test_one_round(durable: Durable, local: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted in words, or as an object."""
    monkeypatch.chdir(ROOT)
    assert durable("sweep", f"{HERE}:flows", "--store", local).out == "nothing was due\n"
    for run_id in ("r1", "r2"):
        on_url(local, lambda store, run_id=run_id: refund.start(store, run_id, order="7"))
    on_url(local, lambda store: pay.start(store, "p1", opens=str(ROOT)))
    assert durable("sweep", f"{HERE}:make_worker", "--store", local).out == "1 succeeded, 2 suspended\n"
    (report,) = durable("sweep", f"{HERE}:flows", "--json", "--store", local).objects
    assert set(report.values()) == {0}
    assert {"started", "succeeded", "failed", "suspended"} < report.keys()


def test_working_and_waiting_on_each_store(durable: Durable, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was asked for is swept to its approval, decided, served to its end, and waited for, with JSON all along."""
    monkeypatch.chdir(ROOT)
    on_store = ("--store", url, "--json")
    (started,) = durable("start", f"{HERE}:refund", "r1", "--input", '{"order": "7"}', *on_store).objects
    (report,) = durable("sweep", f"{HERE}:flows", *on_store).objects
    early = durable("wait", "r1", "--timeout", "0.1s", *on_store)
    (decided,) = durable("approve", "r1", "approve", "--by", "alice", "--yes", *on_store).objects
    with serving(f"{HERE}:flows", "--store", url) as process:
        done = durable("wait", "r1", "--timeout", "60s", *on_store)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in err) == (0, False)
    assert (started["run_id"], report["suspended"], early.code, decided["step_id"]) == ("r1", 1, 4, "approve")
    (run,) = done.objects
    assert (done.code, run["status"], run["result"]) == (0, "succeeded", "paid 90")


def request(url: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    """Ask over HTTP, and return the status with what was answered."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers or {}), timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


PROGRAM = """
import os

from durable_core import Runner, flow, open_store
from durable_worker import Delivery, Worker

@flow
async def greet(runner: Runner, name: str) -> str:
    return await runner.step("greet", lambda: f"hello {name}")

def trust(delivery: Delivery) -> str:
    return delivery.headers["x-id"]

worker = Worker(open_store(os.environ.get("MINE", "sqlite:mine.db")), [greet])
worker.webhook("/greet", greet, verify=trust, run_id=lambda payload: payload["name"], input=lambda payload: payload)
"""


def test_webhooks_are_answered_beside_the_runs(tmp_path: Path) -> None:
    """By a worker that has a store of its own; the address is logged, and a stop lets both end."""
    (tmp_path / "greeting.py").write_text(PROGRAM, encoding="utf-8")
    with serving("greeting:worker", "--port", "0", cwd=tmp_path) as process:
        address = line_with(process, r"listening on (http://127\.0\.0\.1:\d+) for /greet, /healthz")[1]
        assert request(f"{address}/greet", b'{"name": "ada"}', {"x-id": "1"}) == (202, {"run_id": "ada"})
        url = f"sqlite:{tmp_path / 'mine.db'}"
        assert until(url, "ada", "succeeded").result == "hello ada"
        assert request(f"{address}/healthz") == (200, {"working": True})
        assert request(f"{address}/nowhere")[0] == 404
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
        assert "Traceback" not in err
        taken = subprocess.run(
            [sys.executable, "-m", "durable_cli", "serve", "greeting:worker", "--store", "sqlite:other.db"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert taken.returncode == 2
        assert "leave out --store" in taken.stderr


def test_health_is_answered_where_a_port_is_given(local: str) -> None:
    """Also for a worker without webhooks; a port that is taken is refused before any run is."""
    with serving(f"{HERE}:flows", "--port", "0", "--store", local) as process:
        port = line_with(process, r"listening on http://127\.0\.0\.1:(\d+) for /healthz")[1]
        with serving(f"{HERE}:flows", "--port", port, "--store", local) as second:
            _, err = second.communicate(timeout=30)
            assert second.returncode == 1
            assert err.startswith(f"Error: can't listen on 127.0.0.1, port {port}: ")
            assert "working for" not in err


def test_ctrl_c_on_a_terminal_stops_the_worker(terminal: Start, local: str) -> None:
    """Gracefully: the run in hand is handed back."""
    on_url(local, lambda store: asked(store, "r1"))
    seen = terminal("serve", f"{HERE}:flows", "--store", local, cwd=ROOT)
    seen.expect("working for")
    seen.interrupt()
    assert seen.end() == 0
    assert "Traceback" not in seen.seen


@pytest.mark.parametrize(
    ("worker", "match"),
    [
        ("number", "is of type int: name a flow or a list of flows, a Worker, or a function of a store"),
        ("no_worker", "returned 'int', not a durable_worker.Worker"),
        ("nothing", "has no 'nothing'"),
    ],
)
def test_what_is_no_worker_is_wrong_usage(
    durable: Durable, local: str, monkeypatch: pytest.MonkeyPatch, worker: str, match: str
) -> None:
    """It says what one is."""
    monkeypatch.chdir(ROOT)
    for command in ("serve", "sweep"):
        done = durable(command, f"{HERE}:{worker}", "--store", local)
        assert (done.code, done.out) == (2, "")
        assert match in done.err


@pytest.mark.parametrize(
    ("missing", "command", "install"),
    [
        ("durable_worker", ("serve", f"{HERE}:flows"), "pip install 'durable-worker'"),
        ("durable_worker", ("sweep", f"{HERE}:flows"), "pip install 'durable-worker'"),
        ("uvicorn", ("serve", f"{HERE}:flows", "--port", "0"), "pip install 'durable-cli[serve]'"),
        ("durable_web", ("web",), "pip install 'durable-web[serve]'"),
        ("uvicorn", ("web",), "pip install 'durable-web[serve]'"),
    ],
)
def test_a_distribution_that_is_missing_is_named(
    durable: Durable, local: str, monkeypatch: pytest.MonkeyPatch, missing: str, command: tuple[str, ...], install: str
) -> None:
    """In one line."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(sys.modules, missing, None)
    done = durable(*command, "--store", local)
    assert (done.code, done.out) == (1, "")
    assert install in done.err
    assert len(done.err.splitlines()) == 1
