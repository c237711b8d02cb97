"""`durable approve`, `reject` and `send`: what a person sees, is asked and decides."""

from __future__ import annotations

import getpass
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from durable_core import StepRecord, Store, control
from tests.cli.acting import asked, on_url, ship, wait_until_it_reads
from tests.cli.conftest import Durable
from tests.cli.terminal import Terminal

Start = Callable[..., Terminal]


@pytest.fixture
def local(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'durable.db'}"


def decision_of(url: str, run_id: str = "r1") -> Any:
    """Return the newest entry of the approval."""
    return on_url(url, lambda store: store.get(run_id, "approve"))


def test_a_decision_on_each_store(durable: Durable, url: str) -> None:
    """It is recorded with who and why, printed as an entry, and a second, different one is refused with what was there."""
    on_url(url, lambda store: asked(store, "r1"))
    done = durable("approve", "r1", "approve", "--by", "alice", "--reason", "paid", "--yes", "--json", "--store", url)
    assert done.code == 0
    (entry,) = done.objects
    assert (entry["run_id"], entry["step_id"], entry["status"], entry["revision"]) == ("r1", "approve", "success", 1)
    assert entry["result"] == {"approved": True, "by": "alice", "reason": "paid", "at": entry["result"]["at"]}
    assert entry["note"]["show"] == {"order": "7", "amount": 90}
    assert datetime.fromisoformat(entry["ended_at"]).utcoffset() == timedelta(0)
    again = durable("approve", "r1", "approve", "--by", "alice", "--yes", "--store", url)
    assert (again.code, again.out) == (0, "approve of r1 is approved, by alice\n")
    other = durable("reject", "r1", "approve", "--by", "bob", "--yes", "--store", url)
    assert (other.code, other.out) == (1, "")
    assert re.search("was decided at .*: approved by 'alice'", other.err)


def test_votes_are_counted(durable: Durable, local: str) -> None:
    """Who votes sees how many approve the same; one rejection decides."""
    for run_id in ("r1", "r2"):
        on_url(local, lambda store, run_id=run_id: asked(store, run_id, people=2))
    first = durable("approve", "r1", "approve", "--by", "alice", "--yes", "--store", local)
    assert first.out == "alice approved approve of r1: 1 of 2\n"
    changed = ("--yes", "--value", '{"amount": 45}', "--store", local)
    assert durable("approve", "r1", "approve", "--by", "bob", *changed).out == "bob approved approve of r1: 1 of 2\n"
    assert 'bob approves {"amount":45}' in durable("why", "r1", "--store", local).out
    assert durable("approve", "r1", "approve", "--by", "alice", *changed).out == "approve of r1 is approved, by alice\n"
    assert decision_of(local).value()["value"] == {"amount": 45}
    assert (
        durable("reject", "r2", "approve", "--by", "bob", "--yes", "--store", local).out == "approve of r2 is rejected, by bob\n"
    )
    refused = durable("approve", "r2", "approve", "--by", "eve", "--store", local)
    assert (refused.code, refused.out) == (1, "")


def test_who_may_not_decide_is_not_asked(durable: Durable, local: str) -> None:
    """The library says who may, and the command how to say who one is."""
    on_url(local, lambda store: asked(store, "r1", people=2))
    for verb, yes in (("approve", []), ("reject", ["--yes"])):
        done = durable(verb, "r1", "approve", "--by", "eve", *yes, "--store", local)
        assert (done.code, done.out) == (1, "")
        assert done.err == (
            "Error: 'eve' may not decide 'approve' of run 'r1'; approvers: alice, bob\n"
            f"If you are one of them, say which:\n  durable {verb} r1 approve --by NAME --store {local}\n"
        )
    said = ("--value", '{"amount": 45}', "--reason", "too dear")
    done = durable("approve", "r1", "approve", "--by", "eve", "--yes", *said, "--store", local)
    again = f"""durable approve r1 approve --by NAME --value '{{"amount":45}}' --reason 'too dear' --store {local}"""
    assert again in done.err
    on_url(local, lambda store: control.reject(store, "r1", "approve", by="bob"))
    late = durable("approve", "r1", "approve", "--by", "eve", "--store", local)
    assert (late.code, "--by" in late.err) == (1, False)


def test_a_decision_that_comes_too_late_is_refused(durable: Durable, local: str) -> None:
    """That is no time-out of the command: it did not wait."""
    past = datetime.now(UTC) - timedelta(hours=1)
    waiting = StepRecord(run_id="r1", step_id="approve", kind="approval", status="waiting", note={"show": 1}, until=past)
    on_url(local, lambda store: store.append(waiting))
    done = durable("approve", "r1", "approve", "--by", "alice", "--yes", "--store", local)
    assert done.code == 1
    assert "nobody decided 'approve' before" in done.err


@pytest.mark.parametrize(
    ("names", "match"), [(("nobody", "approve"), "there is no"), (("r1", "nothing"), "its last steps: 'approve'")]
)
def test_what_is_not_there_is_not_found(durable: Durable, local: str, names: tuple[str, str], match: str) -> None:
    """With or without a question."""
    on_url(local, lambda store: asked(store, "r1"))
    for yes in ([], ["--yes"]):
        done = durable("approve", *names, *yes, "--store", local)
        assert done.code == 3
        assert match in done.err


def test_without_a_terminal_nothing_is_decided(durable: Durable, local: str) -> None:
    """Who can't be asked has to say --yes."""
    on_url(local, lambda store: asked(store, "r1"))
    done = durable("approve", "r1", "approve", "--store", local, input="y\n")
    assert done.code == 2
    assert "--yes" in done.err
    assert decision_of(local).status == "waiting"


def test_a_person_sees_what_is_decided_and_is_asked(terminal: Start, local: str) -> None:
    """What is shown, who may, who voted so far; and who one is, which is the system's user unless said."""
    on_url(local, lambda store: asked(store, "r1", people=2))
    on_url(local, lambda store: control.approve(store, "r1", "approve", by="alice", reason="looks right"))
    seen = terminal("approve", "r1", "approve", "--by", "bob", "--store", local)
    seen.expect(r"Run r1 asks for approve, since \d.*\{.*\"order\": \"7\",.*\"amount\": 90.*\}.*May decide: alice, bob")
    seen.expect(r"It takes 2 people.*alice approved .* ago: looks right.*Approve approve as bob\? \[y/N\]:")
    seen.type("y\n")
    assert seen.end() == 0
    assert seen.seen.splitlines()[-1] == "approve of r1 is approved, by bob"
    on_url(local, lambda store: asked(store, "r2"))
    other = terminal("reject", "r2", "approve", "--store", local)
    other.expect(f"Reject approve as {re.escape(getpass.getuser())}\\?")
    other.type("yes\n")
    assert other.end() == 0
    assert decision_of(local, "r2").value()["approved"] is False


@pytest.mark.parametrize(("answer", "code"), [("\n", 1), ("n\n", 1), ("\x03", 130), ("\x04", 130)])
def test_no_answer_decides_nothing(terminal: Start, local: str, answer: str, code: int) -> None:
    """No is what Enter means; Ctrl-C and Ctrl-D leave at once."""
    on_url(local, lambda store: asked(store, "r1"))
    seen = terminal("approve", "r1", "approve", "--store", local)
    seen.expect(r"\[y/N\]: ")
    wait_until_it_reads(seen)
    seen.type(answer)
    assert seen.end() == code
    assert "Nothing was done." in seen.seen
    assert decision_of(local).status == "waiting"


HOSTILE = "\x1b[2J\x1b]0;owned\x07[red]not markup[/red] \u202eevil\u202c \x9b31m \u2028 :smile:"


@pytest.mark.parametrize("columns", [80, 140])
def test_what_is_shown_moves_no_terminal_and_fits_a_screen(terminal: Start, local: str, columns: int) -> None:
    """Escapes, marks of direction and markup are text; of eight megabytes the beginning is enough."""

    async def ask(store: Store) -> None:
        shown = {HOSTILE: HOSTILE, "long": "x" * 2**23, "many": [*range(1000)]}
        note = {"show": shown, "approvers": [f"alice{HOSTILE}"]}
        for step_id in ("approve", "pay\u202e"):
            await store.append(
                StepRecord(run_id="r1", step_id=step_id, name=HOSTILE, kind="approval", status="waiting", note=note)
            )

    on_url(local, ask)
    for step_id in ("approve", "pay\u202e"):
        seen = terminal("approve", "r1", step_id, "--by", f"alice{HOSTILE}", "--store", local, columns=columns)
        seen.expect(r"lines more: durable show r1 --step .*\[y/N\]:")
        seen.type("n\n")
        assert seen.end() == 1
        assert not set(seen.seen) & set("\x1b\x07\x9b\u202e\u202c\u2028")
        assert r"\u001b[2J" in seen.seen
        assert "[red]not markup[/red]" in seen.seen
        assert len(seen.seen) < 20_000


def test_an_event_on_each_store(durable: Durable, url: str) -> None:
    """Before anybody waits, or while somebody does; with a value, or what went wrong."""
    on_url(url, lambda store: ship.start(store, "s0"))
    done = durable("send", "s1", "packed", "--value", '{"parcels": 2}', "--json", "--store", url)
    (entry,) = done.objects
    assert (done.code, entry["result"], entry["kind"]) == (0, {"parcels": 2}, "event")
    assert on_url(url, lambda store: ship.run(store, "s1")) == {"parcels": 2}
    assert durable("send", "s1", "packed", "--value", '{"parcels": 2}', "--store", url).code == 0
    other = durable("send", "s1", "packed", "--store", url)
    assert (other.code, other.out) == (1, "")
    assert durable("send", "s2", "packed", "--error", "lost", "--store", url).out == "told s2 that packed went wrong\n"
    error = on_url(url, lambda store: store.get("s2", "packed")).error
    assert error is not None
    assert error.message == "lost"


def test_a_value_comes_from_a_file_or_a_pipe(durable: Durable, local: str, tmp_path: Path) -> None:
    """A file is named by @, standard input by -."""
    on_url(local, lambda store: ship.start(store, "s0"))
    (tmp_path / "value.json").write_text("[1]", encoding="utf-8")
    assert durable("send", "a", "x", "--value", f"@{tmp_path / 'value.json'}", "--json", "--store", local).objects[0][
        "result"
    ] == [1]
    assert durable("send", "b", "x", "--value", "-", "--json", "--store", local, input="[2]").objects[0]["result"] == [2]


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ("yes", "a string needs quotes"),
        ("NaN", "not a JSON number"),
        ("[" * 100_000, "is not JSON"),
        ("@nowhere.json", "can't be read"),
    ],
)
def test_what_is_no_json_is_wrong_usage(durable: Durable, local: str, value: str, match: str) -> None:
    """It is told in short, and nothing is sent."""
    done = durable("send", "a", "x", "--value", value, "--store", local)
    assert done.code == 2
    assert match in done.err
    assert len(done.err) < 1000
    assert on_url(local, lambda store: store.get("a", "x")) is None


def test_an_event_has_a_value_or_an_error(durable: Durable, local: str) -> None:
    """Both at once is a mistake."""
    assert durable("send", "a", "x", "--value", "1", "--error", "no", "--store", local).code == 2
