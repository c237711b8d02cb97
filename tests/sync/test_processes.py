"""Blocking programs in processes of their own: killed, interrupted, forked."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer

import pytest

from durable_core.sync import control, open_store
from tests.sync import programs

SECONDS = 60
ALL = [*(f"step-{number}" for number in range(programs.STEPS)), "a", "b", "child"]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL, SIGINT of one process, or fork")


@pytest.fixture(params=["file", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file:{tmp_path / 'runs'}" if request.param == "file" else f"sqlite:{tmp_path / 'runs.db'}"


def start(command: str, url: str, folder: Path, *more: object) -> subprocess.Popen[str]:
    arguments = [sys.executable, programs.__file__, command, url, str(folder), *map(str, more)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def output_of(process: subprocess.Popen[str]) -> str:
    """Return the rest of what it writes. `communicate` would lose what `readline` has read ahead."""
    assert process.stdout is not None
    assert process.stderr is not None
    watchdog = Timer(SECONDS, os.killpg, (process.pid, signal.SIGKILL))  # with its children
    watchdog.start()
    with process:
        output, errors = process.stdout.read(), process.stderr.read()
    watchdog.cancel()
    assert process.returncode == 0, errors
    return output.strip()


def test_a_flow_killed_after_each_effect(url: str, tmp_path: Path) -> None:
    """A process dies after an effect and before its record: that step alone runs again, and nothing is left out."""
    for kill in (1, 4, 5):
        with start("settle", url, tmp_path, kill) as process:
            process.communicate(timeout=SECONDS)
        assert process.returncode == -signal.SIGKILL
    assert output_of(start("settle", url, tmp_path)).split() == ALL
    lines = (tmp_path / "ledger").read_text().split()
    twice = [name for name in ALL if lines.count(name) == 2]
    assert len(lines) == len(ALL) + len(twice)
    assert twice == ["step-0", "step-3", "step-7"]
    assert output_of(start("settle", url, tmp_path)).split() == ALL
    assert (tmp_path / "ledger").read_text().split() == lines


@pytest.mark.parametrize("place", programs.PLACES)
def test_ctrl_c_leads_out_of(place: str, tmp_path: Path) -> None:
    """Twenty times SIGINT reaches a program that waits or works: each time it goes on at once, and the log is right."""
    url = f"sqlite:{tmp_path / 'runs.db'}"
    rng = random.Random(place)
    with start(place, url, tmp_path) as process:
        watchdog = Timer(SECONDS, process.kill)
        watchdog.start()
        for _ in range(programs.ROUNDS):
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(rng.choice((0, 0.001, 0.01)))  # at another moment each time
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == "interrupted\n"
        output = output_of(process)
        watchdog.cancel()
    assert output.startswith("all is well")
    with open_store(url) as store:
        for run_id in store.runs():
            entries = [record for record in store.list(run_id) if record.status in ("success", "failure")]
            assert {record.step_id for record in entries} <= {"one", "after"}
        if place.startswith("in_a_flow"):
            assert {run.status for run in control.runs(store) if run.flow} == {"interrupted"}


@pytest.mark.parametrize("seed", range(3))
def test_ctrl_c_at_any_moment(url: str, tmp_path: Path, seed: int) -> None:
    """However often a busy program is interrupted, it ends: no call hangs, and no step that was recorded runs again."""
    rng = random.Random(seed)
    with start("busy", url, tmp_path) as process:
        watchdog = Timer(SECONDS, process.kill)
        watchdog.start()
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(40):
            time.sleep(rng.random() * 0.02)
            process.send_signal(signal.SIGINT)
        assert output_of(process) == "done"
        watchdog.cancel()
    lines = (tmp_path / "ledger").read_text().split()
    assert {*lines} == {f"step-{number}" for number in range(100)}
    assert len(lines) <= 100 + 40
    with open_store(url) as store:
        assert len(store.list("busy")) == 100


def test_forked_children_have_a_loop_of_their_own(place: str, tmp_path: Path) -> None:
    """After `os.fork`, in a flow too, and in a process that multiprocessing forked, the same store goes on, as in the parent."""
    told = output_of(start("fork", place, tmp_path)).splitlines()
    assert told[:4] == [f"{name} MainThread 1" for name in ("parent", "multiprocessing", "fork", "again")]
    assert told[4:] == ["0 0", "in-a-flow MainThread 1", "running"]


def test_a_call_at_the_interpreters_end_is_refused(url: str, tmp_path: Path) -> None:
    """What is collected last can't wait for a loop that has stopped: it is told so, and the process ends."""
    assert "the interpreter began to shut down" in output_of(start("late", url, tmp_path))
