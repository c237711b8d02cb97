"""`durable watch` and `durable wait`."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from durable_core import RunSuspended, control, open_store
from tests.cli.conftest import Durable
from tests.cli.seeds import refund
from tests.cli.terminal import Terminal


@pytest.fixture
def waiting(tmp_path: Path) -> str:
    """A store whose run `r` waits for a person."""
    url = f"sqlite:{tmp_path / 'runs.db'}"
    asyncio.run(_run(url))
    return url


async def _run(url: str, approved: bool | None = None) -> None:
    async with open_store(url) as store:
        if approved is not None:
            decide = control.approve if approved else control.reject
            await decide(store, "r", "approve", by="alice")
        with suppress(RunSuspended):
            await refund.run(store, run_id="r", order=0)


def finish(url: str) -> None:
    """Approve what the run waits for, and run it to its end."""
    asyncio.run(_run(url, True))


@contextmanager
def piped(*args: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "durable_cli", *args]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_run_is_drawn_until_it_ends(terminal: Callable[..., Terminal], waiting: str) -> None:
    """What it waits for shows while it waits; in the end the whole run stands there, and the exit code says how it ended."""
    screen = terminal("watch", "r", "--store", waiting)
    screen.expect("for approve until")
    finish(waiting)
    screen.expect("succeeded")
    assert screen.end() == 0
    assert screen.seen.rindex("paid back") > screen.seen.rindex("\x1b[?25h")  # the cursor is back before the last drawing


def test_ctrl_c_ends_the_watch_and_not_the_run(terminal: Callable[..., Terminal], waiting: str) -> None:
    """Exit code 130, the cursor shown again, no traceback, and a word that the run goes on."""
    screen = terminal("watch", "r", "--store", waiting)
    screen.expect("for approve until")
    screen.interrupt()
    assert screen.end() == 130
    assert "Run r continues as before." in screen.plain
    assert "Traceback" not in screen.seen
    assert screen.seen.rindex("\x1b[?25h") > screen.seen.rindex("\x1b[?25l")


def test_a_long_run_fits_the_terminal(terminal: Callable[..., Terminal], waiting: str) -> None:
    """Of a run with more steps than lines the head and the last steps are drawn while it goes on."""

    async def add() -> None:
        from durable_core import StepRecord

        async with open_store(waiting) as store:
            for number in range(50):
                await store.append(StepRecord(run_id="r", step_id=f"step-{number}"))

    asyncio.run(add())
    screen = terminal("watch", "r", "--store", waiting)
    screen.expect("step-49")
    drawn = screen.plain
    assert len(drawn.splitlines()) <= 40
    screen.interrupt()
    assert screen.end() == 130


def test_a_pipe_gets_a_line_for_each_change(waiting: str) -> None:
    """Those that were there, and then those that come, at once."""
    with piped("watch", "r", "--store", waiting) as process:
        assert process.stdout is not None
        there = [process.stdout.readline().split() for _ in range(4)]
        assert [words[1:3] for words in there] == [
            ["r", "started"],
            ["look-up", "succeeded"],
            ["approve", "waits"],
            ["r", "waiting"],
        ]
        finish(waiting)
        rest, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert [line.split()[1:3] for line in rest.splitlines()] == [
        ["approve", "approved"],
        ["r", "started"],
        *[["progress", "published"]] * 3,
        ["pay", "succeeded"],
        ["r", "succeeded"],
    ]


def test_json_is_an_entry_a_line(durable: Durable, waiting: str) -> None:
    """From the first entry on, as they are in the log."""
    finish(waiting)
    done = durable("watch", "r", "--json", "--store", waiting)
    assert done.code == 0
    found = [(entry["step_id"], entry["revision"], entry["status"]) for entry in done.objects]
    assert found[:3] == [("$flow", 0, "started"), ("look-up", 0, "success"), ("approve", 0, "waiting")]
    assert found[-1] == ("$flow", 3, "success")


@pytest.mark.parametrize(("run_id", "code"), [("refund-0", 0), ("refund-1", 1), ("dropped", 1), ("nobody", 3)])
@pytest.mark.parametrize("command", ["watch", "wait"])
def test_the_exit_code_says_how_a_run_ended(durable: Durable, seeded: str, command: str, run_id: str, code: int) -> None:
    """0 for success, 1 for a failure or a cancellation, 3 where there is no such run."""
    assert durable(command, run_id, "--store", seeded).code == code


def test_wait_prints_the_result(durable: Durable, seeded: str) -> None:
    """As JSON; with --json how the run stands, whatever came of it."""
    assert durable("wait", "refund-0", "--store", seeded).objects == ["paid back"]
    (run,) = durable("wait", "refund-0", "--json", "--store", seeded).objects
    assert (run["status"], run["result"]) == ("succeeded", "paid back")
    failed = durable("wait", "refund-1", "--json", "--store", seeded)
    assert failed.objects[0]["failed"] == ["pay-back"]
    assert "the bank is closed" in failed.err
    assert durable("wait", "refund-1", "--store", seeded).out == ""


def test_wait_gives_up_after_its_timeout(durable: Durable, seeded: str) -> None:
    """With exit code 4."""
    done = durable("wait", "refund-3", "--timeout", "0.1s", "--store", seeded)
    assert (done.code, done.out) == (4, "")
    assert "has not ended within 0.1 s" in done.err
    assert durable("wait", "refund-3", "--timeout", "soon", "--store", seeded).code == 2
    assert durable("wait", "script", "--store", seeded).code == 1  # without a flow


def test_wait_ends_with_the_run(waiting: str) -> None:
    """It waits as long as it takes."""
    with piped("wait", "r", "--store", waiting) as process:
        finish(waiting)
        out, _ = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, '"paid back"\n')


def test_ctrl_c_while_waiting(terminal: Callable[..., Terminal], waiting: str) -> None:
    """It ends at once, and says that the run goes on."""
    screen = terminal("wait", "r", "--store", waiting, env={"DURABLE_TEST": "1"})
    wait_until_it_waits(screen, waiting)
    screen.interrupt()
    assert screen.end() == 130
    assert "continues as before" in screen.plain
    assert "Traceback" not in screen.seen


def wait_until_it_waits(screen: Terminal, url: str) -> None:
    """Return once the program has opened the store's file."""
    path = os.path.realpath(url.removeprefix("sqlite:"))
    import psutil

    from tests.cli.terminal import until

    until(lambda: any(each.path == path for each in psutil.Process(screen.process.pid).open_files()))


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_pipe_that_is_closed_is_no_traceback(waiting: str) -> None:
    """`durable watch r | head -1` ends quietly at the next line."""
    with piped("watch", "r", "--store", waiting) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        finish(waiting)
        assert process.wait(60) == 128 + signal.SIGPIPE
        assert process.stderr is not None
        assert process.stderr.read() == ""
