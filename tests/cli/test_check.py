"""`durable check`: today's code against recorded runs, from a store or from files, as a gate before a deploy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from tests.cli.conftest import Durable
from tests.cli.terminal import Terminal

YESTERDAY = """
    from durable_core import flow

    def work(item):
        with open("called.txt", "a") as file:
            file.write(item)
        return item

    @flow(name="order", wait_limit=0)
    async def order(runner, item):
        print("the flow's own code runs")
        await runner.step("charge", work, item)
        if item == "table":
            await runner.approval("ok")
        return await runner.step("ship", work, item)
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: Durable) -> str:
    """The URL of a store with a run that has ended and one that waits, in a folder with the module that ran them."""
    monkeypatch.chdir(tmp_path)
    code(tmp_path, "yesterday", YESTERDAY)
    code(tmp_path, "today", YESTERDAY.replace('"charge"', '"charge-2"'))
    code(tmp_path, "later", YESTERDAY.replace('return await runner.step("ship", work, item)', "return item"))
    url = "sqlite:runs.db"
    for item in ("chair", "table"):
        durable("run", "yesterday:order", f"run-{item}", "--input", json.dumps({"item": item}), "--store", url)
    Path("called.txt").unlink()
    return url


def code(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(dedent(text))


def test_code_that_fits(durable: Durable, shop: str) -> None:
    """Exit code 0, and no step was called; what the flow prints goes to stderr."""
    done = durable("check", "yesterday:order", "--store", shop)
    assert (done.code, done.out) == (0, "2 of 2 runs of flow order fit.\n")
    assert done.err.count("the flow's own code runs") == 2
    assert not Path("called.txt").exists()


def test_code_that_does_not_fit(durable: Durable, shop: str) -> None:
    """Exit code 1, and for each run what is different."""
    done = durable("check", "today:order", "--store", shop)
    assert done.code == 1
    assert done.out.splitlines() == [
        "run-table does not fit:",
        "  anew       'charge-2' would run anew, before what is recorded: 'charge', 'ok'",
        "run-chair does not fit:",
        "  anew       'charge-2' would run anew, before what is recorded: 'charge', 'ship'",
        "0 of 2 runs of flow order fit.",
    ]
    assert not Path("called.txt").exists()


def test_json_is_a_line_for_each_run(durable: Durable, shop: str) -> None:
    done = durable("check", "later:order", "--json", "--store", shop)
    assert done.code == 1
    waits, ended = done.objects
    assert waits == {
        "run_id": "run-table",
        "flow": "order",
        "ended": False,
        "fits": True,
        "replayed": 2,
        "stops_at": ["ok"],
        "differences": [],
    }
    assert ended == {
        "run_id": "run-chair",
        "flow": "order",
        "ended": True,
        "fits": False,
        "replayed": 1,
        "stops_at": [],
        "differences": [{"what": "unasked", "step_id": "ship", "why": "'ship' is recorded, and not asked for"}],
    }


def test_runs_are_chosen(durable: Durable, shop: str) -> None:
    assert durable("check", "later:order", "run-table", "--store", shop).code == 0
    assert durable("check", "later:order", "--status", "waiting", "--store", shop).code == 0
    assert durable("check", "later:order", "--status", "succeeded", "--store", shop).code == 1
    assert durable("check", "later:order", "--since", "1h", "--expect", "ship", "--store", shop).code == 0
    none = durable("check", "later:order", "--since", "2100-01-01", "--store", shop)
    since = "2100-01-01 00:00:00"
    assert (none.code, none.out) == (0, "")
    assert none.err == f"There is no run of flow order that began since {since} in sqlite:runs.db: nothing was checked.\n"
    absent = durable("check", "later:order", "--status", "failed", "--status", "crashed", "--store", f"{shop}?lock_timeout=5")
    assert (absent.code, absent.out) == (0, "")
    assert absent.err == (
        "There is no run of flow order with status failed or crashed in sqlite:…?lock_timeout=…: nothing was checked.\n"
    )
    absent = durable("check", "later:order", "run-sofa", "--store", shop)
    assert absent.code == 3
    assert "there is no run 'run-sofa'" in absent.err
    assert durable("check", "later:order", "run-table", "--status", "waiting", "--store", shop).code == 2


def test_a_renamed_flow_has_no_runs(durable: Durable, tmp_path: Path, shop: str) -> None:
    """A gate that checks nothing shows the flows of the store, of which one may be the flow's former name."""
    code(tmp_path, "renamed", YESTERDAY.replace('"order"', '"purchase"'))
    none = durable("check", "renamed:order", "--store", shop)
    assert (none.code, none.out) == (0, "")
    assert none.err == "There is no run of flow purchase in sqlite:runs.db, which has runs of order: nothing was checked.\n"


def test_exported_runs_are_fixtures(durable: Durable, shop: str) -> None:
    """Files that export wrote need no store; without a run of the flow they are exit code 3, damaged ones 1."""
    for item in ("chair", "table"):
        Path(f"{item}.jsonl").write_text(durable("export", f"run-{item}", "--store", shop).out)
    files = ("--from", "chair.jsonl", "--from", "table.jsonl")
    assert durable("check", "yesterday:order", *files).out == "2 of 2 runs of flow order fit.\n"
    assert durable("check", "today:order", *files).code == 1
    assert durable("check", "yesterday:order", "run-chair", *files).out == "1 of 1 run of flow order fit.\n"
    Path("empty.jsonl").touch()
    empty = durable("check", "yesterday:order", "--from", "empty.jsonl")
    assert empty.code == 3
    assert empty.err == "There is no run of flow order in empty.jsonl: nothing was checked.\n"
    Path("damaged.jsonl").write_text(Path("chair.jsonl").read_text().replace("success", "sucess"))
    damaged = durable("check", "yesterday:order", "--from", "damaged.jsonl")
    assert damaged.code == 1
    assert "damaged.jsonl, line" in damaged.err
    assert durable("check", "yesterday:order", "--from", "absent.jsonl").code == 2


def test_a_damaged_run_hides_no_other(durable: Durable, tmp_path: Path, shop: str) -> None:
    durable("copy", "--prefix", "", f"file:{tmp_path / 'runs'}", "--store", shop)
    (log,) = (path for path in (tmp_path / "runs").glob("*table*.jsonl"))
    log.write_text(log.read_text().replace("charge", "chargé", 1))
    done = durable("check", "yesterday:order", "--store", f"file:{tmp_path / 'runs'}")
    assert done.code == 1
    assert done.out == "1 of 1 run of flow order fit.\n"
    assert "chargé" not in done.out
    assert "table" in done.err


def test_runs_in_every_state_fit_the_code_that_wrote_them(durable: Durable, seeded: str) -> None:
    """Whatever state they are in; of the one whose code raises it is said where."""
    for flow in ("refund", "order", "charge"):
        done = durable("check", f"tests.cli.seeds:{flow}", "--json", "--store", seeded)
        misfits = {run["run_id"]: [each["what"] for each in run["differences"]] for run in done.objects if not run["fits"]}
        assert misfits == ({"refund-2": ["raises"]} if flow == "refund" else {})
    raises = durable("check", "tests.cli.seeds:refund", "refund-2", "--store", seeded)
    assert "the flow's own code raised NameError: no such name, in " in raises.out
    assert "seeds.py, line " in raises.out


def test_a_bar_is_drawn_on_a_terminal_alone(terminal: Callable[..., Terminal], durable: Durable, shop: str) -> None:
    assert "replaying" not in durable("check", "yesterday:order", "--store", shop).err
    code(Path.cwd(), "slow", YESTERDAY.replace("print(", "import time; time.sleep(0.3); print("))
    screen = terminal("check", "slow:order", "--store", shop, cwd=Path.cwd())
    screen.expect("replaying")
    screen.expect("2 of 2 runs of flow order fit")
