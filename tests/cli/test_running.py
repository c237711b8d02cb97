"""`durable start` and `run`: a flow that is named as a program calls it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from durable_cli._asked import Asked
from durable_core import StepRecord, control
from tests.cli.acting import ROOT, on_url
from tests.cli.conftest import Durable
from tests.cli.terminal import Terminal

Start = Callable[..., Terminal]
HERE = "tests.cli.acting"


@pytest.fixture
def local(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'durable.db'}"


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flow is imported from the current folder."""
    monkeypatch.chdir(ROOT)


def test_a_run_on_each_store(durable: Durable, url: str) -> None:
    """It is asked for, run until it waits, decided, and run to its end; its result is on stdout, as JSON."""
    order = ("--input", '{"order": "7"}')
    asked = durable("start", f"{HERE}:refund", "r1", *order, "--json", "--store", url)
    assert [(run["status"], run["input"]) for run in asked.objects] == [("waiting", {"order": "7"})]
    waits = durable("run", f"{HERE}:refund", "r1", "--store", url)
    assert (waits.code, waits.out) == (0, "")
    assert "r1 is suspended. It waits for:\n  approve  (durable approve r1 approve --store " in waits.err
    (run,) = durable("run", f"{HERE}:refund", "r1", "--json", "--store", url).objects
    assert (run["status"], run["waiting_for"], run["result"]) == ("waiting", ["approve"], None)
    assert durable("approve", "r1", "approve", "--yes", "--store", url).code == 0
    ran = durable("run", f"{HERE}:refund", "r1", "--store", url)
    assert (ran.code, ran.out) == (0, '"paid 90"\n')
    assert re.search(r"replayed +1 step\ndone +pay  ", ran.err)
    (run,) = durable("run", f"{HERE}:refund", "r1", *order, "--json", "--store", url).objects
    assert (run["status"], run["result"]) == ("succeeded", "paid 90")


def test_a_run_that_is_asked_for_twice(durable: Durable, local: str) -> None:
    """The same again changes nothing; other input is refused; a later time is kept."""
    start = ("start", f"{HERE}:refund", "r1", "--store", local)
    first = durable(*start, "--input", '{"order": "7"}', "--at", "2h")
    assert re.fullmatch(r"r1 waits for its turn: a worker with the flow refund takes it from \d{4}-.* on\n", first.out)
    assert durable(*start, "--input", "-", input='{"order": "7"}').out == first.out
    other = durable(*start, "--input", '{"order": "8"}')
    assert other.code == 1
    assert "was started with other input" in other.err
    durable("cancel", "r1", "--store", local)
    assert durable(*start, "--input", '{"order": "7"}').out == "r1 was asked for before: it is cancelled\n"


@pytest.mark.parametrize(
    ("flow", "input", "code", "match"),
    [
        (f"{HERE}:refund", "{}", 1, "missing a required argument: 'order'"),
        (f"{HERE}:refund", '{"order": "7", "colour": 1}', 1, "unexpected keyword argument 'colour'"),
        (f"{HERE}:refund", '{"store": "7", "order": "7"}', 1, "unexpected keyword argument 'store'"),
        (f"{HERE}:refund", '{"order": 7}', 1, "'order' of flow 'refund'"),
        (f"{HERE}:refund", "[1]", 2, "by name"),
        (f"{HERE}:refund", "{", 2, "is not JSON"),
        (HERE, "{}", 2, "is not MODULE:FLOW, such as refund:refund"),
        (":refund", "{}", 2, "is not MODULE:FLOW"),
        (".acting:refund", "{}", 2, "is not MODULE:FLOW"),
        ("tests.cli.nowhere:refund", "{}", 2, "there is no module 'tests.cli.nowhere' in"),
        ("nowhere.at_all:refund", "{}", 2, "there is no module 'nowhere' in"),
        (f"{HERE}:missing", "{}", 2, "has no 'missing'; flows there: refund, ship, pay, crashes"),
        (f"{HERE}:number", "{}", 2, "is of type int, not decorated with @flow; flows there: refund, ship, pay, crashes"),
    ],
)
def test_what_does_not_fit_begins_nothing(durable: Durable, local: str, flow: str, input: str, code: int, match: str) -> None:
    """One line says what was given and what is there."""
    for command in ("start", "run"):
        done = durable(command, flow, "r1", "--input", input, "--store", local)
        assert (done.code, done.out) == (code, "")
        assert match in done.err
        assert "Traceback" not in done.err
    assert on_url(local, lambda store: store.list("r1")) in ((), [])


def test_a_program_is_imported_from_the_current_folder(durable: Durable, local: str, tmp_path: Path) -> None:
    """Under its own name; what is wrong in it shows from its own lines on."""
    (tmp_path / "a_program_of_mine.py").write_text(
        "from durable_core import Runner, flow\n\n\n@flow\nasync def order(runner: Runner) -> str:\n    return __name__\n",
        encoding="utf-8",
    )
    (tmp_path / "a_broken_program.py").write_text("import a_program_that_is_not_there\n", encoding="utf-8")
    command = [sys.executable, "-m", "durable_cli", "--store", local, "run"]
    good = subprocess.run([*command, "a_program_of_mine:order", "r1"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert good.stdout == '"a_program_of_mine"\n'
    bad = subprocess.run([*command, "a_broken_program:order", "r2"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (bad.returncode, bad.stdout) == (1, "")
    assert bad.stderr.startswith('Traceback (most recent call last):\n  File "')
    assert bad.stderr.count("  File ") == 1
    assert "a_broken_program.py" in bad.stderr
    assert "ModuleNotFoundError: No module named 'a_program_that_is_not_there'" in bad.stderr


PRINTS = """
from durable_core import Runner, flow
print("imported")

@flow
async def order(runner: Runner) -> str:
    print("run")
    return await runner.step("print", print_it)

def print_it() -> str:
    print("step")
    return "done"

flows = [order]
"""


def test_what_a_program_prints_is_no_result(
    durable: Durable, local: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes to stderr, while the module is imported and while its flows run: stdout can be parsed."""
    (tmp_path / "a_program_that_prints.py").write_text(PRINTS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    ran = durable("run", "a_program_that_prints:order", "r1", "--json", "--store", local)
    assert [run["result"] for run in ran.objects] == ["done"]
    assert [line for line in ran.err.splitlines() if " " not in line] == ["imported", "run", "step"]
    durable("start", "a_program_that_prints:order", "r2", "--store", local)
    swept = durable("sweep", "a_program_that_prints:flows", "--json", "--store", local)
    assert [report["succeeded"] for report in swept.objects] == [1]


@pytest.mark.parametrize("where", ["module", "flow", "step"])
def test_a_program_that_leaves_has_not_done_its_work(local: str, tmp_path: Path, where: str) -> None:
    """`sys.exit(0)` in it is no success of the command."""
    (tmp_path / "a_program_that_leaves.py").write_text(
        "import sys\nfrom durable_core import Runner, flow\n\ndef leave(here: str) -> None:\n"
        f"    if here == {where!r}:\n        sys.exit(0)\n\nleave('module')\n\n@flow\n"
        "async def order(runner: Runner) -> None:\n    leave('flow')\n    await runner.step('leave', leave, 'step')\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "durable_cli", "--store", local, "run", "a_program_that_leaves:order", "r1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert ("SystemExit: 0" if where == "module" else "the program called sys.exit(0)") in done.stderr


def test_a_failure_is_one_line(durable: Durable, local: str) -> None:
    """Of the step that failed; with --json the object says so, too."""
    done = durable("run", f"{HERE}:pay", "r1", "--store", local)
    assert (done.code, done.out) == (1, "")
    lines = done.err.splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["done", "look-up"], ["failed", "charge"]]
    assert lines[2] == "Error: run 'r1' failed at step 'charge': ConnectionError: the bank is closed"
    assert lines[3:] == ["Why, and what helps:", f"  durable why r1 --store {local}"]
    again = durable("run", f"{HERE}:pay", "r1", "--json", "--store", local)
    assert again.code == 1
    (run,) = again.objects
    assert (run["status"], run["failed"], run["error"]["message"]) == ("failed", ["charge"], "the bank is closed")


def test_a_crash_shows_the_traceback_from_the_program_on(durable: Durable, local: str) -> None:
    """And not how the command and the library got there; a time-out of the program is none of the command."""
    done = durable("run", f"{HERE}:crashes", "r1", "--store", local)
    assert (done.code, done.out) == (1, "")
    traceback = done.err[done.err.index("Traceback") :]
    assert re.findall(r"in (\w+)$", traceback, re.MULTILINE) == ["crashes", "_helper"]
    assert f"TimeoutError: of the program's own\nWhy, and what helps:\n  durable why r1 --store {local}\n" in traceback
    (run,) = durable("run", f"{HERE}:crashes", "r1", "--json", "--store", local).objects
    assert run["status"] == "crashed"


def test_a_child_is_told_apart(durable: Durable, local: str) -> None:
    """By its run's id."""
    done = durable("run", f"{HERE}:family", "r1", "--store", local)
    assert (done.code, done.out) == (0, '"charged"\n')
    assert re.search(r"^done +r1/child: look-up  ", done.err, re.MULTILINE)
    assert re.search(r"^done +child  ", done.err, re.MULTILINE)


def test_a_step_that_was_interrupted_names_the_commands_that_help(durable: Durable, local: str) -> None:
    """It is parked: somebody has to find out."""
    started = StepRecord(run_id="r1", step_id="look-up", status="started")
    on_url(local, lambda store: store.append(started))
    done = durable("run", f"{HERE}:once", "r1", "--json", "--store", local)
    assert done.code == 1
    assert [run["status"] for run in done.objects] == ["parked"]
    assert "durable resolve r1 look-up --value JSON --reason TEXT --store" in done.err
    assert "durable retry r1 look-up --store" in done.err


def test_a_command_to_type_next_can_be_pasted_and_tells_no_secret() -> None:
    """Names are quoted, dashes taken for what they are, and a URL that may hold a secret is left to the reader."""
    assert Asked("redis://app:hunter2@host/0", as_json=False).command("why", "r 1") == "durable why 'r 1' --store URL"
    assert Asked(None, as_json=False).command("retry", "-r", "a", options=["--by", "x"]) == "durable retry --by x -- -r a"


def test_ctrl_c_leaves_the_log_right(terminal: Start, local: str) -> None:
    """The step that was cut off is not recorded, the lock is free, the terminal is as it was, and the next run goes on."""
    seen = terminal("run", f"{HERE}:stubborn", "r1", "--store", local, cwd=ROOT)
    seen.expect("done +.*first")
    seen.expect("running +.*forever")
    seen.interrupt()
    assert seen.end(within=20) == 130
    assert f"continue with:\n  durable run {HERE}:stubborn r1 --store" in seen.plain
    assert seen.seen.rindex("\x1b[?25h") > seen.seen.rindex("\x1b[?25l")
    assert "Traceback" not in seen.seen
    run = on_url(local, lambda store: control.status(store, "r1"))
    assert (run.status, run.holder, run.steps) == ("interrupted", None, 1)


def test_a_function_that_nothing_interrupts_is_waited_for_once(terminal: Start, local: str) -> None:
    """Ctrl-C says so, lets it be recorded, and then leaves; a second one doesn't wait."""
    patient = terminal("run", f"{HERE}:deaf", "r1", "--input", '{"seconds": 1.5}', "--store", local, cwd=ROOT)
    patient.expect("running +.*deaf")
    patient.interrupt()
    patient.expect("can't be interrupted")
    assert patient.end(within=20) == 130
    assert on_url(local, lambda store: store.get("r1", "deaf")) is not None
    hasty = terminal("run", f"{HERE}:deaf", "r2", "--input", '{"seconds": 600}', "--store", local, cwd=ROOT)
    hasty.expect("running +.*deaf")
    hasty.interrupt()
    hasty.expect("can't be interrupted")
    hasty.interrupt()
    assert hasty.end(within=20) in (130, -signal.SIGINT)
    assert on_url(local, lambda store: store.get("r2", "deaf")) is None


def test_a_pipe_gets_plain_lines(local: str) -> None:
    """The progress goes to stderr without colour, the result to stdout."""
    command = [sys.executable, "-m", "durable_cli", "run", f"{HERE}:family", "r1", "--store", local]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == "charged"
    assert "\x1b" not in done.stdout + done.stderr


def test_hostile_content_is_harmless(durable: Durable, local: str) -> None:
    """In ids of runs and steps, errors, tracebacks and results."""
    for what in ("fails", "crashes", "returns"):
        input = json.dumps({"text": "\u202e\x1b[2J[red]\u2028", "what": what})
        done = durable("run", f"{HERE}:hostile", f"{what}\u202e", "--input", input, "--store", local)
        assert done.code == (0 if what == "returns" else 1)
        assert not set(done.out + done.err) & set("\u202e\x1b\u2028")
        if what == "returns":
            assert json.loads(done.out) == "\u202e\x1b[2J[red]\u2028"
