"""`durable retry`, `cancel`, `resolve` and `fork`: one run, or many after a question."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from durable_core import RunSuspended, Store, control
from tests.cli.acting import asked, failed, on_url, pay, refund, ship
from tests.cli.conftest import Durable
from tests.cli.terminal import Terminal

Start = Callable[..., Terminal]


@pytest.fixture
def local(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'durable.db'}"


def state_of(url: str, run_id: str) -> str:
    return on_url(url, lambda store: control.status(store, run_id)).status


def test_mending_on_each_store(durable: Durable, url: str, tmp_path: Path) -> None:
    """A failed run goes on, one that waits stops, a step is set by hand, and a fork begins anew: each says how it stands."""
    on_url(url, lambda store: failed(store, "r1", "r2", opens=str(tmp_path / "open")))
    on_url(url, lambda store: asked(store, "r3"))
    (run,) = durable("retry", "r1", "--reason", "it is open", "--by", "alice", "--json", "--store", url).objects
    assert (run["run_id"], run["flow"], run["status"]) == ("r1", "pay", "waiting")
    (tmp_path / "open").touch()
    assert on_url(url, lambda store: pay.run(store, "r1")) == "charged"
    flow: Any = on_url(url, lambda store: store.list("r1"))
    reopened = [entry.notes for entry in flow if (entry.step_id, entry.status) == ("charge", "reopened")]
    assert [(note["by"], note["reason"]) for note in reopened] == [("alice", "it is open")]
    resolved = durable("resolve", "r2", "charge", "--value", '"in cash"', "--reason", "paid", "--json", "--store", url)
    assert [(entry["status"], entry["result"]) for entry in resolved.objects] == [("success", "in cash")]
    assert on_url(url, lambda store: pay.run(store, "r2")) == "in cash"
    (run,) = durable("cancel", "r3", "--json", "--store", url).objects
    assert run["status"] == "cancelling"
    (run,) = durable("fork", "r2", "r4", "--before", "charge", "--json", "--store", url).objects
    assert (run["status"], run["origin"], run["steps"]) == ("waiting", ["r2", "charge"], 1)


def test_what_mending_says_to_people(durable: Durable, local: str) -> None:
    """What happens next, and who does it."""
    on_url(local, lambda store: failed(store, "r1", "r2"))
    on_url(local, lambda store: refund.start(store, "r3", order="7"))
    goes_on = "continues when a worker with the flow pay takes it, or with:\n  durable run MODULE:FLOW"
    cancelled = "r1 is asked to stop: it does when it notices, or when it is run again\n"
    assert durable("retry", "r1", "charge", "--store", local).out == f"r1 {goes_on} r1 --store {local}\n"
    assert (
        durable("fork", "r1", "r4", "--before", "charge", "--store", local).out
        == f"r4 begins as r1 did before charge; it {goes_on} r4 --store {local}\n"
    )
    assert durable("cancel", "r1", "--store", local).out == cancelled
    assert durable("cancel", "r3", "--store", local).out == "r3 is cancelled\n"
    said = durable("resolve", "r2", "charge", "--reason", "paid", "--by", "alice", "--store", local)
    assert said.out == "charge of r2 is set by hand, by alice\n"


@pytest.mark.parametrize(
    ("command", "code", "match"),
    [
        (("retry", "nobody"), 3, "there is no run 'nobody'"),
        (("retry", "r1", "nothing"), 3, "there is no step 'nothing'"),
        (("retry", "r2"), 1, "neither failed nor is it stuck"),
        (("cancel", "nobody"), 3, "there is no run 'nobody'"),
        (("resolve", "r1", "look-up", "--reason", "x"), 1, "neither failed nor was interrupted"),
        (("resolve", "r1", "charge"), 2, "--reason"),
        (("fork", "r1", "r9", "--before", "nothing"), 3, "no step 'nothing' to fork before"),
        (("fork", "r1", "r2", "--before", "charge"), 1, "choose another run id"),
        (("retry",), 2, "name a run, or select many"),
        (("retry", "r1", "--flow", "pay"), 2, "name a run, or select many"),
        (("cancel", "r1", "--status", "waiting"), 2, "name a run, or select many"),
        (("cancel", "--status", "lost"), 2, "'lost' is not one of open, waiting"),
        (("retry", "--flow", "pay"), 2, "--yes"),
    ],
)
def test_what_does_not_fit_is_refused(durable: Durable, local: str, command: tuple[str, ...], code: int, match: str) -> None:
    """With the library's words, and nothing on stdout."""

    async def seed(store: Store) -> None:
        await failed(store, "r1")
        await asked(store, "r2")

    on_url(local, seed)
    done = durable(*command, "--store", local)
    assert (done.code, done.out) == (code, "")
    assert match in done.err


def test_many_runs_are_counted_listed_and_retried_after_a_question(terminal: Start, local: str) -> None:
    """The first ten are named; those of other flows and in other states are left alone."""

    async def seed(store: Store) -> None:
        await failed(store, *(f"r{number}" for number in range(12)))
        await asked(store, "waits")

    on_url(local, seed)
    no = terminal("retry", "--flow", "pay", "--status", "failed", "--store", local)
    no.expect(r"r11 .*failed.*since .*r2 .*and 2 more.*Retry 12 runs as .*\? \[y/N\]: ", within=20)
    assert "r1 " not in no.seen
    no.type("\n")
    assert no.end() == 1
    assert state_of(local, "r0") == "failed"
    yes = terminal("retry", "--flow", "pay", "--status", "failed", "--store", local)
    yes.expect(r"\[y/N\]: ")
    yes.type("y\n")
    assert yes.end() == 0
    assert yes.seen.splitlines()[-1].endswith("retried 12 of 12 runs")
    assert {state_of(local, f"r{number}") for number in range(12)} == {"waiting"}


def test_a_run_that_refuses_stops_no_other(durable: Durable, local: str) -> None:
    """All are tried, each that was refused is named, and the exit code tells that there was one."""

    async def answered(store: Store) -> None:
        await failed(store, "r1", "r2", "r3")
        # It undid what it had done, so it can't go on.
        flow = await store.get("r2", "$flow")
        assert flow is not None
        await store.append(
            msgspec.structs.replace(flow, revision=flow.revision + 1, id="other", note={**flow.notes, "answered_by": ["undo"]})
        )

    on_url(local, answered)
    done = durable("retry", "--flow", "pay", "--yes", "--json", "--store", local)
    assert done.code == 1
    assert [(each["run_id"], each["done"]) for each in done.objects] == [("r3", True), ("r2", False), ("r1", True)]
    (refused,) = [each["error"] for each in done.objects if each["error"]]
    assert "answered its failure with 'undo'" in refused
    assert refused in done.err
    assert (state_of(local, "r1"), state_of(local, "r2")) == ("waiting", "failed")
    told = durable("retry", "--flow", "pay", "--yes", "--store", local)
    assert (told.code, told.out) == (1, "retried 0 of 1 run\n")


def test_the_command_that_goes_on_can_be_pasted(durable: Durable, local: str) -> None:
    """With the run's id quoted, and the store that was named."""
    on_url(local, lambda store: failed(store, "r $(x)"))
    retried = durable("retry", "r $(x)", "--store", local)
    assert retried.out.endswith(f" or with:\n  durable run MODULE:FLOW 'r $(x)' --store {local}\n")
    forked = durable("fork", "r $(x)", "r;2", "--before", "charge", "--store", local)
    assert forked.out.endswith(f" or with:\n  durable run MODULE:FLOW 'r;2' --store {local}\n")


def test_a_damaged_log_hides_no_other(durable: Durable, tmp_path: Path) -> None:
    """The rest is retried, and the exit code tells of it."""
    url = f"file:{tmp_path / 'runs'}"
    on_url(url, lambda store: failed(store, "r1", "r2"))
    (log,) = (tmp_path / "runs").glob("*r2*.jsonl")
    log.write_bytes(log.read_bytes().replace(b"closed", b"opened"))
    done = durable("retry", "--flow", "pay", "--yes", "--store", url)
    assert (done.code, done.out) == (1, "retried 1 of 1 run\n")
    assert log.name in done.err


def test_many_runs_are_told_to_stop(durable: Durable, local: str) -> None:
    """Unless a status is given, those that have not ended."""

    async def seed(store: Store) -> None:
        await failed(store, "r1")
        for run_id in ("s1", "s2"):
            with suppress(RunSuspended):
                await ship.run(store, run_id)

    on_url(local, seed)
    done = durable("cancel", "--since", "1h", "--yes", "--store", local)
    assert (done.code, done.out) == (0, "told 2 of 2 runs to stop\n")
    assert [state_of(local, run_id) for run_id in ("r1", "s1", "s2")] == ["failed", "cancelling", "cancelling"]
    none = durable("cancel", "--flow", "nothing", "--yes", "--store", local)
    assert (none.code, none.out) == (0, "")
    assert "no such runs" in none.err


def test_hostile_ids_are_harmless(durable: Durable, local: str) -> None:
    """In what is listed, refused and told."""
    run_id = "r\u202e[red]\u2028"
    on_url(local, lambda store: failed(store, run_id))
    one = durable("retry", run_id, "--store", local)
    many = durable("cancel", "--status", "waiting", "--yes", "--json", "--store", local)
    again = durable("fork", run_id, f"{run_id}2", "--before", "nothing", "--store", local)
    for said in (one.out, many.out, again.err):
        assert not set(said) & set("\u202e\u2028")
    assert r"\u202e[red]\u2028" in one.out
    assert again.code == 3
