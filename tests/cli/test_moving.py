"""`durable copy`, `export` and `import`: runs in other stores, and as lines of text."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from durable_core import Runner, StepRecord, Store, control, flow
from tests.cli.acting import asked, failed, on_url, wait_until_it_reads
from tests.cli.conftest import Durable
from tests.cli.terminal import Terminal

Start = Callable[..., Terminal]


@pytest.fixture
def local(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'durable.db'}"


@pytest.fixture
def other(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'other.db'}"


def entries(url: str, run_id: str) -> Sequence[StepRecord]:
    return [*on_url(url, lambda store: store.list(run_id))]


def test_moving_from_each_store_and_back(durable: Durable, url: str, other: str) -> None:
    """Entry for entry, by a copy or as lines; again it changes nothing."""
    on_url(url, lambda store: failed(store, "r1", "r2"))
    whole = entries(url, "r1")
    for _ in range(2):
        done = durable("copy", "r1", other, "--store", url)
        assert (done.code, done.out) == (0, f"r1: {len(whole)} entries\n")
    assert entries(other, "r1") == whole
    lines = durable("export", "r1", "r2", "--store", url)
    assert lines.code == 0
    assert lines.out.encode().splitlines() == [record.to_json() for run in ("r1", "r2") for record in entries(url, run)]
    both = {run: entries(url, run) for run in ("r1", "r2")}
    for run in both:
        on_url(url, lambda store, run=run: store.clear(run))
    done = durable("import", "--json", "--store", url, input=lines.out)
    assert done.code == 0
    assert done.objects == [{"run_id": run, "entries": len(both[run]), "dry_run": False} for run in both]
    assert {run: entries(url, run) for run in both} == both
    assert durable("import", "--store", url, input=lines.out).code == 0


def test_children_are_exported_with_their_run(durable: Durable, local: str, other: str) -> None:
    """Each once, also if its id is named too, and imported as runs of their own; the child of another run is none."""

    @flow
    async def child(runner: Runner) -> None: ...

    @flow
    async def parent(runner: Runner) -> None:
        await runner.flow("a", child)
        await runner.step("b", lambda: 1)

    async def fill(store: Store) -> None:
        await parent.run(store, run_id="r1")
        await control.fork(store, "r1", "r2", before="b")

    on_url(local, fill)
    lines = durable("export", "r2", "r1", "r1/a", "--store", local)
    runs = ("r2", "r1", "r1/a")
    assert lines.out.encode().splitlines() == [record.to_json() for run in runs for record in entries(local, run)]
    assert durable("export", "r1", "--store", local).out == "".join(lines.out.splitlines(True)[len(entries(local, "r2")) :])
    assert durable("export", "r2", "--store", local).out.count("\n") == len(entries(local, "r2"))
    done = durable("import", "--json", "--store", other, input=lines.out)
    assert {each["run_id"]: each["entries"] for each in done.objects} == {run: len(entries(local, run)) for run in runs}
    assert {run: entries(other, run) for run in runs} == {run: entries(local, run) for run in runs}


def test_many_runs_are_copied(durable: Durable, local: str, other: str) -> None:
    """Those that are named, or whose ids begin so; one that conflicts stops no other."""
    on_url(local, lambda store: failed(store, "a1", "a2", "a3", "b1"))
    on_url(other, lambda store: failed(store, "a2"))
    done = durable("copy", "--prefix", "a", other, "--json", "--store", local)
    assert done.code == 1
    assert [(each["run_id"], each["done"]) for each in done.objects] == [("a1", True), ("a2", False), ("a3", True)]
    assert "of run 'a2'; choose another run id" in done.err
    assert entries(other, "b1") == []
    assert durable("copy", "a1", "b1", other, "--store", local).out == "copied 2 of 2 runs\n"


def test_a_dry_run_writes_nothing(durable: Durable, local: str, other: str) -> None:
    """It says what would be, and refuses what would be refused."""
    on_url(local, lambda store: failed(store, "r1", "r2"))
    lines = durable("export", "--prefix", "", "--store", local).out
    assert durable("copy", "r1", other, "--dry-run", "--store", local).out == "r1: 4 entries, nothing was written\n"
    assert durable("copy", "r1", "r2", other, "--dry-run", "--store", local).out == "would copy 2 of 2 runs\n"
    assert durable("import", "--dry-run", "--store", other, input=lines).code == 0
    assert entries(other, "r1") == []
    on_url(other, lambda store: failed(store, "r2"))
    for command in (("copy", "r2", other, "--store", local), ("import", "--store", other)):
        done = durable(*command, "--dry-run", input=lines)
        assert done.code == 1
        assert "of run 'r2'; choose another run id" in done.err
    assert durable("import", "--store", other, input=lines).code == 1
    assert entries(other, "r1") == []  # all is checked before any run is begun


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda lines: [*lines[:2], "garbage", *lines[2:]], "line 3: not a step record"),
        (lambda lines: lines[1:], "line 3: revision 1 of step '$flow' of run 'r1', where revision 0 is next"),
        (lambda lines: [lines[0], *lines], "line 2: revision 0 of step '$flow' of run 'r1', where revision 1 is next"),
        (lambda lines: [lines[0].replace('"v":1', '"v":99')], "line 1: a record of format 99"),
        (lambda lines: [lines[0].replace('"r1"', '""')], "line 1: not a step record"),
        (lambda lines: [lines[0][:40]], "line 1: not a step record"),
        (lambda lines: ["\udcff"], "line 1: not a step record"),
    ],
    ids=["garbage", "missing", "doubled", "newer", "unnamed", "cut", "bytes"],
)
def test_lines_that_are_no_log_append_nothing(
    durable: Durable, local: str, tmp_path: Path, change: Callable[[list[str]], list[str]], match: str
) -> None:
    """The number of the line is told."""
    on_url(local, lambda store: failed(store, "r1"))
    lines = [record.to_json().decode() for record in entries(local, "r1")]
    file = tmp_path / "runs.jsonl"
    file.write_text("\n".join(change(lines)), encoding="utf-8", errors="surrogateescape")
    done = durable("import", file, "--store", f"sqlite:{tmp_path / 'new.db'}")
    assert (done.code, done.out) == (1, "")
    assert f"{file}, {match}" in done.err
    assert entries(f"sqlite:{tmp_path / 'new.db'}", "r1") == []


RUN_IDS = st.text("ab\u202e\u00e9/ ", min_size=1, max_size=4)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    runs=st.dictionaries(
        st.text("ab\u202e\u00e9/ ", min_size=1, max_size=4), st.lists(st.integers(0, 3), min_size=1), max_size=4
    ),
    text=st.text(max_size=20),
)
def test_whatever_is_exported_can_be_imported(durable: Durable, runs: dict[str, list[int]], text: str) -> None:
    """Any ids, in any order of entries, with any text in what was recorded."""

    async def fill(store: Store) -> None:
        await store.list("none")  # makes the store, also for no runs
        for run_id, steps in runs.items():
            revisions: dict[int, int] = {}
            for step in steps:
                revision = revisions[step] = revisions.get(step, -1) + 1
                result = json.dumps(text).encode()
                record = StepRecord(
                    run_id=run_id, step_id=f"{step}", revision=revision, status="waiting", result=result, note=text
                )
                await store.append(record)

    with TemporaryDirectory() as folder:
        there, back = f"sqlite:{folder}/there.db", f"sqlite:{folder}/back.db"
        on_url(there, fill)
        lines = durable("export", "--prefix", "", "--store", there)
        assert lines.code == 0
        assert durable("import", "--store", back, input=lines.out).code == 0
        assert {run: entries(back, run) for run in runs} == {run: entries(there, run) for run in runs}


def test_what_is_not_there_is_not_found(durable: Durable, local: str, other: str) -> None:
    """And who names nothing is told how to."""
    on_url(local, lambda store: asked(store, "r1"))
    for command in (("copy", "nobody", other), ("export", "nobody")):
        done = durable(*command, "--store", local)
        assert (done.code, done.out) == (3, "")
        assert "there is no run 'nobody'" in done.err
    for command in (("copy", other), ("export",), ("export", "r1", "--prefix", "r")):
        done = durable(*command, "--store", local)
        assert done.code == 2
        assert "--prefix" in done.err
    nothing = durable("import", "--store", local)
    assert (nothing.code, nothing.out) == (0, "")
    assert "nothing to import" in nothing.err
    assert durable("import", "nowhere.jsonl", "--store", local).code == 2


def test_lines_on_a_terminal_are_harmless(terminal: Start, local: str) -> None:
    """They mean the same JSON."""
    hostile = StepRecord(run_id="r1", step_id="a\u202e", name="n", result='"\u202e\u0085\U000e0041"'.encode())
    on_url(local, lambda store: store.append(hostile))
    seen = terminal("export", "r1", "--store", local, columns=140)
    assert seen.end() == 0
    assert not set(seen.seen) & set("\u202e\u0085\U000e0041")
    read = StepRecord.from_json(seen.seen.strip())
    assert (read.id, read.step_id, read.value()) == (hostile.id, hostile.step_id, hostile.value())


def test_a_pipe_that_closes_early_is_no_error(local: str) -> None:
    """`durable export | head` ends quietly, as other commands do."""

    async def fill(store: Store) -> None:
        for number in range(300):
            await store.append(StepRecord(run_id="r1", step_id=f"s{number}", result=b'"%s"' % (b"x" * 2000)))

    on_url(local, fill)
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "durable_cli", "export", "r1", "--store", local]
    with subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE) as process:
        os.close(writer)
        assert os.read(reader, 100).startswith(b'{"v":1,')
        os.close(reader)
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_long_work_shows_a_bar_on_a_terminal(terminal: Start, local: str, other: str) -> None:
    """It is gone when the work is done."""

    async def fill(store: Store) -> None:
        for number in range(300):
            await store.append(StepRecord(run_id="r1", step_id=f"s{number}"))

    on_url(local, fill)
    seen = terminal("copy", "r1", other, "--store", local)
    assert seen.end() == 0
    assert "copying" in seen.seen
    assert seen.seen.rstrip().endswith("r1: 300 entries")


def test_ctrl_c_half_way_is_made_good_by_the_same_again(terminal: Start, durable: Durable, local: str, other: str) -> None:
    """And it says so."""
    there = [StepRecord(run_id="r1", step_id=f"s{number}") for number in range(4000)]

    async def fill(store: Store) -> None:
        await asyncio.gather(*map(store.append, there))

    on_url(local, fill)
    seen = terminal("copy", "r1", other, "--store", local)
    seen.expect("copying")
    seen.interrupt()
    assert seen.end(within=20) == 130
    assert "Stopped half-way: the same command again completes it." in seen.seen
    assert "Traceback" not in seen.seen
    assert len(entries(other, "r1")) < len(there)
    assert durable("copy", "r1", other, "--store", local).code == 0
    assert len(entries(other, "r1")) == len(there)


def test_ctrl_c_while_lines_are_awaited_leaves_at_once(terminal: Start, local: str, tmp_path: Path) -> None:
    """Whoever was to write them may never do."""
    os.mkfifo(tmp_path / "lines")
    seen = terminal("import", tmp_path / "lines", "--store", local)
    with (tmp_path / "lines").open("wb"):  # once somebody opened it
        wait_until_it_reads(seen)
        seen.interrupt()
        assert seen.end(within=20) == 130
    assert "Traceback" not in seen.seen
