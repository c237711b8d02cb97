"""`durable why`."""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from durable_core import Runner, StepFailed, StepRecord, control, flow, open_store
from tests.cli.conftest import Durable
from tests.cli.seeds import STATES, go, refund
from tests.cli.terminal import Terminal

DECIDE = ("approve", "reject")
SAID = {
    "refund-0": ("It succeeded", ["show refund-0"]),
    "refund-1": ("It failed at pay-back", ["retry refund-1", "resolve refund-1 pay-back --value JSON --reason TEXT"]),
    "refund-2": ("raised NameError: no such name", None),
    "refund-3": ("It sleeps at cool-off until", []),
    "refund-4": ("It waits for the event packed", ["send refund-4 packed --value JSON"]),
    "refund-5": (
        r"answered the failure with apologise: .* the first step that was undone: one of look-up, approve, pay-back\.",
        ["fork refund-5 NEW --before STEP"],
    ),
    "refund-6": ("attempt 1 failed by ConnectionError: the bank is closed", ["retry refund-6 pay-back"]),
    "refund-7": ("alice or bob may decide; 2 have to approve", [f"{verb} refund-7 approve --by NAME" for verb in DECIDE]),
    "order-7": ("It waits at refund for the run order-7", [f"{verb} order-7/refund approve --by NAME" for verb in DECIDE]),
    "charge-1": ("It is parked since", ["resolve charge-1 charge --value JSON --reason TEXT", "retry charge-1"]),
    "charge-2": ("its process is gone: nobody holds its lock", ["retry charge-2", "serve MODULE:WORKER"]),
    "asked": ("has been waiting for a worker since", ["run MODULE:FLOW asked", "serve MODULE:WORKER"]),
    "dropped": ("It was cancelled .*'changed her mind', and can't continue", ["fork dropped NEW --before STEP"]),
    "stopping": ("It was asked to stop, because of 'too late'", ["serve MODULE:WORKER"]),
    "script": ("It has no flow", []),
}  # fmt: skip


@pytest.mark.parametrize("run_id", SAID)
def test_every_state_is_explained(durable: Durable, seeded: str, run_id: str) -> None:
    """In words, with the commands that would help; of a child that is waited for, its own reason."""
    words, commands = SAID[run_id]
    out = durable("why", run_id, "--store", seeded).out
    assert out.splitlines()[0].startswith(f"{run_id}  ")
    assert out.splitlines()[0].endswith(STATES[run_id])
    assert re.search(words, out), out
    shown = [line.removeprefix("  durable ") for line in out.splitlines() if line.startswith("  durable ")]
    if commands is not None:  # a crash is due at some time
        assert shown == [f"{command} --store {seeded}" for command in commands]


def test_reasons_as_json(durable: Durable, seeded: str) -> None:
    """One object, whose reasons name the run and the step, since when and until when."""
    (said,) = durable("why", "order-7", "--json", "--store", seeded).objects
    assert (said["run_id"], said["flow"], said["status"]) == ("order-7", "order", "waiting")
    child, person = said["reasons"]
    assert (child["run_id"], child["step_id"]) == ("order-7", "refund")
    assert (person["run_id"], person["step_id"]) == ("order-7/refund", "approve")
    assert datetime.fromisoformat(person["since"]) < datetime.fromisoformat(person["until"])
    assert [shlex.split(command)[1] for command in person["commands"]] == ["approve", "reject"]


def test_a_run_that_is_held_is_running(durable: Durable, tmp_path: Path) -> None:
    """Its holder is named, and how long ago something happened."""
    url = f"sqlite:{tmp_path / 'runs.db'}"

    @flow
    async def work(runner: Runner) -> str:
        await runner.step("first", lambda: "done", returns=str)
        return await asyncio.to_thread(lambda: durable("why", "r", "--store", url).out)

    async def run() -> str:
        async with open_store(url) as store:
            return await work.run(store, run_id="r")

    out = asyncio.run(run())
    assert "r  work  running" in out
    assert "It runs: it is held by" in out
    assert f"durable watch r --store {url}" in out


def test_what_came_makes_it_wait_for_its_turn(durable: Durable, tmp_path: Path) -> None:
    """Once a person has decided, only a worker is missing."""
    url = f"sqlite:{tmp_path / 'runs.db'}"

    async def run() -> None:
        async with open_store(url) as store:
            await go(refund.run(store, run_id="r", order=0))
            await control.approve(store, "r", "approve", by="alice")

    asyncio.run(run())
    out = durable("why", "r", "--store", url).out
    assert "It can continue, and has been waiting for a worker" in out
    assert "Is a worker running that has the flow refund?" in out


def test_times_that_passed_are_said(durable: Durable, tmp_path: Path) -> None:
    """A run that was asked for and is not due yet, a crash that is overdue, a deadline that is over."""
    url = f"sqlite:{tmp_path / 'runs.db'}"
    now = datetime.now(UTC)
    hour = timedelta(hours=1, seconds=30)

    async def fill() -> None:
        async with open_store(url) as store:
            await refund.start(store, run_id="later", order=1, at=now + hour)
            for run_id, step_id, fields in [
                ("late", "$flow", {"status": "waiting", "note": {"waiting_for": [["late", "ask"]]}}),
                ("late", "ask", {"status": "waiting", "kind": "approval", "until": now - hour, "note": {}}),
            ]:
                record = {"kind": "flow", "name": "f", "started_at": now - 2 * hour, "ended_at": now - 2 * hour, **fields}
                await store.append(StepRecord(run_id=run_id, step_id=step_id, **record))

    asyncio.run(fill())
    assert "(in 1 h), if a worker has its flow" in durable("why", "later", "--store", url).out
    late = durable("why", "late", "--store", url).out
    assert "(1 h ago)" in late
    assert "durable approve" not in late
    assert "It can continue" in late


def test_commands_are_quoted_for_a_shell(durable: Durable, tmp_path: Path) -> None:
    """Whatever an id holds, what is pasted names that id and runs nothing else; ids that begin with a dash are no options."""
    url = f"sqlite:{tmp_path / 'it is here.db'}"
    ids = ["a b", "a$(touch x)", "it's", "-x", "--help", "`id`", "a;b", "right\u202eleft"]

    async def fill() -> None:
        async with open_store(url) as store:
            for run_id in ids:
                await refund.start(store, run_id=run_id, order=0)
                await control.cancel(store, run_id)

    asyncio.run(fill())
    for run_id in ids:
        out = durable("why", "--store", url, "--", run_id).out
        command = out.splitlines()[-1].strip()
        assert "\u202e" not in command
        words = shlex.split(command.replace("$'right\\U0000202eleft'", "right\u202eleft"))
        assert words[:2] == ["durable", "fork"]
        assert [word for word in words[2:] if word in ids] == [run_id]
        assert ("--" in words) == run_id.startswith("-")


def test_the_only_step_before_an_undo_is_named(durable: Durable, tmp_path: Path) -> None:
    """Then the command is complete but for the new run's id."""
    url = f"sqlite:{tmp_path / 'runs.db'}"

    def fail() -> None:
        raise ConnectionError("the bank is closed")

    @flow
    async def pay(runner: Runner) -> None:
        try:
            await runner.step("pay", fail)
        except StepFailed:
            await runner.step("apologise", lambda: "sorry")
            raise

    async def run() -> None:
        async with open_store(url) as store:
            await go(pay.run(store, run_id="r"))

    asyncio.run(run())
    out = durable("why", "r", "--store", url).out
    assert "before the first step that was undone: pay.\n" in out
    assert f"  durable fork r NEW --before pay --store {url}\n" in out


def test_a_run_that_undid_nothing(durable: Durable, url: str) -> None:
    """Its flow answered an error of its own code, before any other step."""

    @flow(fails_on=ValueError)
    async def pay(runner: Runner) -> None:
        try:
            raise ValueError("no such account")
        except ValueError:
            await runner.step("tell", lambda: None)
            raise

    async def run() -> None:
        async with open_store(url) as store:
            await go(pay.run(store, run_id="r"))

    asyncio.run(run())
    assert "before the first step that was undone.\n" in durable("why", "r", "--store", url).out


def test_a_password_in_a_url_is_not_shown(durable: Durable) -> None:
    """The command that would help says URL in its place."""
    from durable_cli._asked import Asked

    shown = Asked("postgresql://me:secret@host/db", as_json=False).command("show", "r")
    assert shown == "durable show r --store URL"


def test_the_words_wrap_at_the_terminals_width(terminal: Callable[..., Terminal], seeded: str) -> None:
    """Between words, and commands stand on lines of their own."""
    screen = terminal("why", "refund-7", "--store", seeded, columns=80)
    assert screen.end() == 0
    prose = [line for line in screen.plain.splitlines() if "durable" not in line]
    assert max(map(len, prose)) <= 80
