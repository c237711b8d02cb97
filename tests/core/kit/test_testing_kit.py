"""The kit for authors of stores: it passes what is right, catches what is broken, and can break things on purpose."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

import durable_core.testing
from durable_core.errors import StoreError
from durable_core.record import StepRecord
from durable_core.store import lock_of, runs_of, scan_of
from durable_core.stores.memory import MemoryStore
from durable_core.testing import CrashingStore, InjectedFault, StoreTests

from .author_stores import BROKEN

CAUGHT_BY = {f"Test{store.__name__}": test for store, test in BROKEN.items()}
ROOMS = {class_.__name__: class_ for class_ in StoreTests.__mro__}
ABILITIES = {
    "TestTellsHolders": ("LockTests", "HolderTests"),
    "TestPolls": ("PollingTests",),
    "TestMarks": ("MarksTests",),
    "TestFindsFlows": ("FlowsTests",),
}
MORE = {
    class_: [name for room in rooms for name in vars(ROOMS[room]) if name.startswith("test_")]
    for class_, rooms in ABILITIES.items()
}
"""The tests of the abilities that `TestNamesRuns`, which runs all tests, doesn't have."""


def record(number: int) -> StepRecord:
    return StepRecord(run_id="run", step_id=f"step {number}", result=b"1")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[str, str]]:
    """Run the authors' tests in a place of their own; for each test "passed", "skipped" or "failed", and why."""
    place = tmp_path_factory.mktemp("author")
    shutil.copy(Path(__file__).with_name("author_stores.py"), place / "test_stores.py")
    (place / "pytest.ini").write_text(
        "[pytest]\nfilterwarnings = error\nasyncio_default_fixture_loop_scope = function\n", encoding="utf-8"
    )
    wanted = [f"test_stores.py::{class_}::{test}" for class_, test in CAUGHT_BY.items()]
    wanted += ["test_stores.py::TestNamesRuns"]
    wanted += [f"test_stores.py::{class_}::{test}" for class_, tests in MORE.items() for test in tests]
    wanted += ["test_stores.py::TestForgotten::test_an_empty_store_holds_nothing"]
    wanted += ["test_stores.py::TestUnpicklable::test_processes_race_for_slots"]
    wanted += ["test_stores.py::TestDeclaresNothing::test_a_lock_keeps_others_out"]
    wanted += ["test_stores.py::TestMisspellsLock::test_a_lock_keeps_others_out"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--asyncio-mode=strict", "--tb=short"]
    command += ["--junitxml=report.xml", *wanted]
    ran = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=250, check=False)
    assert (place / "report.xml").exists(), ran.stdout + ran.stderr
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for case in ElementTree.parse(place / "report.xml").iter("testcase"):
        key = case.attrib["classname"].rpartition(".")[2], case.attrib["name"].partition("[")[0]
        outcome = "passed", ""
        for element in case:
            if element.tag == "skipped":
                outcome = "skipped", element.attrib["message"]
            elif element.tag in ("failure", "error"):
                outcome = "failed", element.text or ""
        if found.get(key, ("passed", ""))[0] != "failed":
            found[key] = outcome
    return found


def test_a_store_that_keeps_the_contract_passes(outcomes: dict[tuple[str, str], tuple[str, str]]) -> None:
    """A whole store in forty lines passes every test but those of the abilities that it doesn't declare, which are skipped."""
    results = {test: outcome for (class_, test), outcome in outcomes.items() if class_ == "TestNamesRuns"}
    assert [test for test, (outcome, _) in results.items() if outcome == "failed"] == []
    assert sum(outcome == "passed" for outcome, _ in results.values()) > 30
    reasons = {why for outcome, why in results.values() if outcome == "skipped"}
    others = ("scan", "lock", "holder", "polling", "marks", "flows", "wakeups", "watch")
    assert reasons == {f"TestNamesRuns.abilities has no {name!r}" for name in others}


@pytest.mark.parametrize("class_", MORE)
def test_an_ability_that_keeps_the_contract_passes(outcomes: dict[tuple[str, str], tuple[str, str]], class_: str) -> None:
    """Right abilities pass their tests; a lock in one process fails only those with another process."""
    results = {test: outcomes[class_, test] for test in MORE[class_]}
    between_processes = {
        "test_processes_keep_each_other_out",
        "test_a_killed_process_frees_its_lock",
        "test_a_process_that_holds_a_lock_is_told",
    }
    failed = {test for test, (outcome, _) in results.items() if outcome == "failed"}
    assert failed <= (between_processes if class_ == "TestTellsHolders" else set())
    reasons = {why for outcome, why in results.values() if outcome == "skipped"}
    assert reasons <= {"lock_expiry is 0: this lock never expires"}


def test_abilities_that_are_not_declared(outcomes: dict[tuple[str, str], tuple[str, str]]) -> None:
    """An author who declares none is told how, by every test of an ability; a misspelled method is named."""
    outcome, why = outcomes["TestDeclaresNothing", "test_a_lock_keeps_others_out"]
    assert outcome == "failed"
    assert "TestDeclaresNothing needs `abilities`" in why
    outcome, why = outcomes["TestDeclaresNothing", "test_the_store_has_the_abilities_that_are_declared"]
    assert "abilities = frozenset({'runs'})" in why
    outcome, why = outcomes["TestMisspellsLock", "test_a_lock_keeps_others_out"]
    assert outcome == "failed"
    assert "declares 'lock', and the store has no method lock" in why
    outcome, why = outcomes["TestNamesWhatIsNoAbility", "test_the_store_has_the_abilities_that_are_declared"]
    assert "'locks'" in why


@pytest.mark.parametrize(("class_", "test"), CAUGHT_BY.items(), ids=CAUGHT_BY.keys())
def test_a_broken_store_is_caught(outcomes: dict[tuple[str, str], tuple[str, str]], class_: str, test: str) -> None:
    """A store that breaks the contract in one way fails the test of that promise, with a comparison to read."""
    outcome, _ = outcomes[class_, test]
    assert outcome == "failed", f"{class_} {outcome} {test}"


def test_failures_show_what_was_compared(outcomes: dict[tuple[str, str], tuple[str, str]]) -> None:
    """The kit's asserts are rewritten by pytest: a failure shows both sides."""
    outcome, trouble = outcomes["TestGetsTheLowest", "test_revisions_chain"]
    assert outcome == "failed"
    assert "assert 0 == 1" in trouble


def test_a_function_that_cannot_reach_another_process(outcomes: dict[tuple[str, str], tuple[str, str]]) -> None:
    """The error says what the fixture should return, or how to leave the test out."""
    outcome, trouble = outcomes["TestUnpicklable", "test_processes_race_for_slots"]
    assert outcome == "failed"
    assert "functools.partial(durable_core.open_store, url)" in trouble
    assert "override this test" in trouble


def test_a_forgotten_fixture(outcomes: dict[tuple[str, str], tuple[str, str]]) -> None:
    """The error names the class and the fixture that is missing."""
    outcome, trouble = outcomes["TestForgotten", "test_an_empty_store_holds_nothing"]
    assert outcome == "failed"
    assert "TestForgotten needs a fixture `open_store`" in trouble


@pytest.mark.parametrize("module", ["durable_core", "durable_core.testing", "durable_core.testing._processes"])
def test_pytest_is_imported_for_the_tests_only(module: str) -> None:
    """Programs, and processes that a test starts, don't load pytest; `CrashingStore` works without it."""
    code = f"import sys, {module}; sys.exit(any(name.partition('.')[0] in ('pytest', '_pytest') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_names() -> None:
    """All that is public is there, sorted, and nothing else is promised."""
    assert durable_core.testing.__all__ == sorted(durable_core.testing.__all__, key=lambda name: (not name.isupper(), name))
    for name in durable_core.testing.__all__:
        assert getattr(durable_core.testing, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Stories'"):
        durable_core.testing.Stories  # noqa: B018


class TestCrashingStore:
    async def test_it_fails_before_the_record_is_stored(self) -> None:
        """The n-th append fails, once, and leaves nothing; the same append again succeeds."""
        inner = MemoryStore()
        store = CrashingStore(inner, at=2)
        await store.append(record(1))
        second = record(2)
        with pytest.raises(InjectedFault, match=r"append 2 failed as asked, before 'step 2' .revision 0. was stored"):
            await store.append(second)
        assert len(await inner.list("run")) == 1
        assert await store.append(second) == second
        assert await store.append(record(3))
        assert store.appends == 4

    async def test_it_fails_after_the_record_is_stored(self) -> None:
        """Only the acknowledgement is lost: the record is there."""
        inner = MemoryStore()
        store = CrashingStore(inner, at=1, when="after")
        first = record(1)
        with pytest.raises(StoreError, match="after 'step 1'"):
            await store.append(first)
        assert await inner.list("run") == (first,)
        assert await store.append(first) == first

    @pytest.mark.parametrize(("when", "left"), [("before", 1), ("after", 2)])
    def test_it_kills(self, tmp_path: Path, when: str, left: int) -> None:
        """The process is gone on the spot: nothing after the append runs, no handler and no `finally`."""
        code = f"""if True:
            import asyncio, atexit, sys
            from durable_core.stores.memory import MemoryStore
            from durable_core.record import StepRecord
            from durable_core.testing import CrashingStore

            class Printing(MemoryStore):
                async def append(self, record):
                    print("stored", record.step_id, flush=True)
                    return await super().append(record)

            async def main():
                store = CrashingStore(Printing(), at=2, when={when!r}, how="kill")
                try:
                    for number in (1, 2, 3):
                        await store.append(StepRecord(run_id="run", step_id=str(number)))
                finally:
                    print("finally", flush=True)

            atexit.register(print, "at exit", flush=True)
            asyncio.run(main())
        """
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        assert ended.stdout.split("\n")[:-1] == [f"stored {number + 1}" for number in range(left)]
        assert ended.stderr == ""
        assert ended.returncode == (signal.SIGTERM if os.name == "nt" else -signal.SIGKILL)

    async def test_it_passes_everything_else_on(self) -> None:
        """Reading, clearing, opening and closing, and each ability, offered or not, are the store's own."""

        class Whole(MemoryStore):
            entered = left = False

            async def __aenter__(self) -> "Whole":
                self.entered = True
                return self

            async def __aexit__(self, *error: object) -> None:
                self.left = True

            def transaction(self) -> str:
                return "transaction"

        inner = Whole()
        async with CrashingStore(inner, at=9) as store:
            assert isinstance(store, CrashingStore)
            assert inner.entered
            first = await store.append(record(1))
            assert await store.get("run", "step 1") == first
            assert await store.list("run") == (first,)
            assert runs_of(store)
            assert lock_of(store)
            assert not scan_of(store)
            assert [run_id async for run_id in store.runs("r")] == ["run"]
            async with store.lock("run") as lease:
                lease.check()
            assert store.transaction() == "transaction"
            await store.clear("run")
            assert await inner.list("run") == ()
        assert inner.left

    async def test_it_wraps_a_store_that_needs_no_opening(self) -> None:
        """The four methods are enough."""

        class Bare:
            append = MemoryStore.append

            def __init__(self) -> None:
                self._runs: dict[str, object] = {}

        async with CrashingStore(Bare(), at=1) as store:  # type: ignore[arg-type]
            assert not runs_of(store)
            assert repr(store).startswith("CrashingStore(<")

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            ({"at": 0}, "counted from 1"),
            ({"at": 1.5}, "the number of an append"),
            ({"at": "1"}, "the number of an append"),
            ({"when": "on"}, "'before' or 'after'"),
            ({"how": "x"}, "'fail' or 'kill'"),
        ],
    )
    def test_bad_arguments(self, options: dict[str, object], complaint: str) -> None:
        """Each wrong argument says what was expected."""
        with pytest.raises((TypeError, ValueError), match=complaint):
            CrashingStore(MemoryStore(), **{"at": 1, **options})  # type: ignore[arg-type]

    async def test_concurrent_appends_are_counted_as_they_begin(self) -> None:
        """Exactly one of many concurrent appends is hit."""
        store = CrashingStore(MemoryStore(), at=7)
        outcomes = await asyncio.gather(*(store.append(record(number)) for number in range(20)), return_exceptions=True)
        assert [number for number, outcome in enumerate(outcomes) if isinstance(outcome, InjectedFault)] == [6]
