"""`durable doctor` finds that our stores are right, and what is wrong with others."""

from __future__ import annotations

import asyncio
import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from durable_cli._doctor.examining import CHECKS, examine
from durable_cli._doctor.finding import Finding
from durable_core import StepRecord, open_store
from durable_core.store import runs_of
from tests.cli import broken_stores
from tests.cli.conftest import Durable
from tests.cli.terminal import Terminal
from tests.s3.proxy import Proxy, careless
from tests.servers.redis import redis_server
from tests.servers.s3 import S3Server

KEYS = [check.key for check in CHECKS]
FAULTS = {
    each.__name__.lower(): each
    for each in vars(broken_stores).values()
    if inspect.isclass(each) and issubclass(each, broken_stores.Broken)
}

FOUND = [
    (broken_stores.WritesLate, "kept", r"40 of 41 confirmed writes are missing for"),
    (broken_stores.ForgetsAtClosing, "kept", r"1 of 41 confirmed writes are missing for a connection"),
    (broken_stores.ChangesWrites, "kept", r"1 of 41 confirmed writes are changed"),
    (broken_stores.TwoWinners, "race", r"\d processes each won the slot 'step "),
    (broken_stores.LastWins, "slot", r"a slot that was taken was given to another record"),
    (broken_stores.LastWins, "race", r"4 processes each won the slot"),
    (broken_stores.StaleReads, "fresh", r"missing or out of place when another \w+ read the log right after it"),
    (broken_stores.StaleSteps, "fresh", r"a write was missing when another \w+ read its step right after it"),
    (broken_stores.ClearsNothing, "clear", r"10 of 10 entries are still there after their run was cleared"),
    (broken_stores.ClearsTooMuch, "clear", r"clearing one run removed entries of another run"),
    (broken_stores.OverlooksARun, "runs", r"1 of 5 runs are not in the list"),
    (broken_stores.WrongStates, "index", r"\d runs are waiting in their logs, but 0 in the index"),
    (broken_stores.OldStates, "index", r"the index shows older entries than the logs"),
    (broken_stores.SamePage, "index", r"page by page, the index shows \d+ runs of 12"),
    (broken_stores.LockOfAProcess, "lock", r"4 of 4 processes got the lock of one run"),
    (broken_stores.LockInTwoSteps, "lock", r"[2-4] of 4 processes got the lock of one run"),
    (broken_stores.LockInTwoSteps, "dead-lock", r"the lock of a process that was killed is still taken"),
    (broken_stores.TellsNoHolder, "lock", r"a lock that is held is reported as free"),
    (broken_stores.LosesWakeups, "wakeups", r"\d+ of 40 wake-ups that were set never came"),
    (broken_stores.DoublesWakeups, "wakeups", r"\d+ of 40 wake-ups came twice"),
    (broken_stores.DoublesWakeups, "wakeups-again", r"a wake-up that was hidden for 500 ms came again after"),
    (broken_stores.TakesWakeupsForGood, "wakeups-again", r"taken and not cleared did not come again"),
    (broken_stores.ClearsNoWakeups, "wakeups-again", r"a wake-up that was cleared came again"),
    (broken_stores.EarlyWakeups, "wakeups-again", r"a wake-up came 1\.\d+ s before it was due"),
    (broken_stores.AnotherTime, "clock", r"the store's clock is 2 h ahead of this machine's"),
]
"""A fault, the check that has to find it, and what that says."""


@pytest.fixture(scope="module")
def _installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Install the broken stores as pip would, for this process and those that it starts."""
    info = tmp_path_factory.mktemp("site") / "broken_stores-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-stores\nVersion: 1.0\n", encoding="utf-8")
    points = "".join(f"{scheme} = {each.__module__}:{each.__name__}\n" for scheme, each in FAULTS.items())
    (info / "entry_points.txt").write_text(f"[durable_core.stores]\n{points}", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(info.parent)
        yield


@pytest.fixture
def broken(_installed: None, tmp_path: Path) -> Callable[[type], str]:
    """Return the URL of a broken store."""
    return lambda fault: f"{fault.__name__.lower()}:{tmp_path / 'runs.db'}"


def look(url: str, *keys: str, seconds: float = 20.0) -> Mapping[str, Finding]:
    """Make some of the checks; return what they found."""
    found: dict[str, Finding] = {}
    checks = [check for check in CHECKS if check.key in keys]
    assert len(checks) == len(keys)

    async def main() -> None:
        left = await examine(
            url,
            begin=lambda check: None,
            tell=lambda check, finding: found.__setitem__(check.key, finding),
            rivals=4,
            checks=checks,
            seconds=seconds,
        )
        assert not left

    asyncio.run(main())
    return found


def test_our_stores_are_safe(durable: Durable, url: str) -> None:
    """Each check is made on each store, none finds a fault, and nothing is left behind; other runs stay as they were."""
    other = StepRecord(run_id="doctor-other", step_id="step")

    async def prepare() -> None:
        async with open_store(url) as store:
            await store.append(other)

    async def left() -> tuple[list[str], list[StepRecord]]:
        async with open_store(url) as store:
            listing = runs_of(store)
            assert listing
            return [run_id async for run_id in listing.runs()], [*await store.list(other.run_id)]

    asyncio.run(prepare())
    done = durable("doctor", url, "--json", "--processes", 2)
    found = {each["check"]: each for each in done.objects}
    assert [*found] == KEYS
    assert {key: each for key, each in found.items() if each["verdict"] == "unsafe"} == {}
    assert (done.code, done.err) == (0, "")
    notes = {key for key, each in found.items() if each["verdict"] == "note"}
    is_file = url.startswith("file:")
    assert notes == ({"index", "wakeups", "wakeups-again", "clock", "time-wakeup"} if is_file else set())
    figures = found["time-append"]["figures"]
    assert 0 < figures["median"] <= figures["p99"]
    assert asyncio.run(left()) == ([other.run_id], [other])


def test_a_store_in_memory(durable: Durable) -> None:
    """It is said to live in its process alone, and nothing else is tried."""
    done = durable("doctor", "memory:")
    assert done.code == 1
    assert "NOT SAFE  Memory" in done.out
    assert "a store in memory exists in one process only" in done.out
    assert "A race" not in done.out


@pytest.mark.parametrize(("fault", "key", "says"), FOUND, ids=[f"{fault.__name__}-{key}" for fault, key, _ in FOUND])
def test_each_fault_is_found(broken: Callable[[type], str], fault: type, key: str, says: str) -> None:
    """A store that breaks a promise is told to be unsafe, in words that say which one."""
    finding = look(broken(fault), key)[key]
    assert finding.verdict == "unsafe"
    assert re.search(says, finding.says), finding.says


def test_what_is_not_safe_is_said_in_words(broken: Callable[[type], str], durable: Durable) -> None:
    """The command makes all checks, says what each found, what that means, and ends with 1; what is right it says, too."""
    done = durable("doctor", "--processes", "4", "--store", broken(broken_stores.Worst))
    assert (done.code, done.err) == (1, "")
    lines = done.out.splitlines()
    assert {line[10:29].strip() for line in lines if line.startswith("NOT SAFE")} == {
        *("Clearing", "Index of flows", "Lock", "Wake-ups", "Wake-ups, in time", "Clock", "Warnings")
    }
    safe, unsafe = lines.index("Safe:"), lines.index("Not safe:")
    assert "-  a step has one outcome, however many processes write it" in lines[safe:unsafe]
    assert "-  one process at a time drives a run" not in lines
    assert [line for line in lines[unsafe:] if line.endswith("; so two processes could drive one run, and run its steps twice")]
    assert "-  this store keeps nothing; so runs could be lost" in lines[unsafe:]
    assert "\x1b" not in done.out


def test_an_s3_that_ignores_conditions_is_found(ministack_server: S3Server, s3_credentials: None) -> None:
    """The store itself refuses it at first use; where it is told not to look, the doctor finds it."""
    with Proxy(ministack_server.port) as proxy:
        proxy.fault = careless
        refused = look(proxy.url("careless"), "opens", "slot")
        assert [*refused] == ["opens"]
        assert "ignores If-None-Match" in refused["opens"].says
        found = look(f"{proxy.url('careless')}&probe=false", "slot")
    assert found["slot"].verdict == "unsafe"
    assert "given to another record" in found["slot"].says


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--appendonly", "no", "--save", ""), "keeps nothing on disk, so a restart loses every run"),
        (("--appendonly", "yes", "--maxmemory-policy", "allkeys-lru"), "may evict runs when it is full"),
    ],
    ids=["keeps nothing", "evicts"],
)
def test_a_redis_that_would_lose_runs_is_found(options: tuple[str, ...], says: str) -> None:
    """What the store warns of is not safe."""
    with redis_server(*options) as server:
        found = look(server.url, "slot", "warnings")
    assert found["slot"].verdict == "safe"
    assert found["warnings"].verdict == "unsafe"
    assert says in found["warnings"].says


def test_what_a_store_logs_is_noted(broken: Callable[[type], str]) -> None:
    """A warning in its log is shown, and is no fault by itself."""
    found = look(broken(broken_stores.Logs), "fresh", "warnings")["warnings"]
    assert (found.verdict, found.says) == ("note", "it logged: the file is strange")


def test_a_store_that_never_answers_ends(broken: Callable[[type], str]) -> None:
    """No check takes longer than it may, nor do all together: those that come too late are not made."""
    found = look(broken(broken_stores.Hangs), "fresh", "time-get", "time-append", seconds=2)
    assert found["fresh"].says == found["time-get"].says == "it took longer than 2 s"
    assert found["time-append"].verdict == "safe"
    late = look(broken(broken_stores.Hangs), "slot", seconds=0)["slot"]
    assert (late.verdict, late.says) == ("unsafe", "not looked at: the checks before it took too long")


def test_an_error_moves_no_terminal(broken: Callable[[type], str], durable: Durable) -> None:
    """What a store says is shown harmlessly, and cut; where it doesn't open, nothing else is tried."""
    done = durable("doctor", broken(broken_stores.Raises))
    assert done.code == 1
    assert "NOT SAFE  Opening              it failed: gone \\x1b[31mred\\u202e xxx" in done.out
    assert done.out.isprintable() or not {"\x1b", "\u202e"} & {*done.out}
    assert "Writes" not in done.out
    assert max(map(len, done.out.splitlines())) < 1_200


def test_no_url(durable: Durable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no store is named, that is wrong usage; where a URL is none, the error says what is."""
    monkeypatch.chdir(tmp_path)
    done = durable("doctor")
    assert done.code == 2
    assert "which store?" in done.err
    done = durable("doctor", "nosuch://user:SECRET@host/db")
    assert (done.code, done.out) == (1, "")
    assert "no store is installed for the scheme 'nosuch'" in done.err
    assert "SECRET" not in done.out + done.err


def test_a_password_is_shown_nowhere(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in what is found nor in the list of processes, where other processes get the URL."""
    seen: list[object] = []
    start = asyncio.create_subprocess_exec

    def note(*args: Any, **options: Any) -> Any:
        seen.extend([args, options["env"]])
        return start(*args, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", note)
    found = look(redis_url.replace("redis://", "redis://default:open-sesame@"), "slot")
    assert len(seen) == 2
    assert "open-sesame" not in f"{seen} {found}"


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal of POSIX")
def test_ctrl_c_leaves_nothing_behind(terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    """Checks show as they happen, in lines that fit; Ctrl-C ends at once, with 130: runs are removed, and processes end."""
    path = tmp_path / "runs.db"
    screen = terminal("doctor", f"sqlite:{path}", "--processes", 4, columns=80)
    screen.expect("\x1b\\[32msafe .*A slot, taken twice.*A race")
    children = psutil.Process(screen.process.pid).children()
    assert len(children) >= 3
    screen.interrupt()
    assert screen.end(within=10) == 130
    assert "Traceback" not in screen.seen
    assert screen.seen.rindex("\x1b[?25h") > screen.seen.rindex("\x1b[?25l")  # the cursor is back
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.seen)
    assert max(len(line.rstrip()) for line in re.split(r"[\r\n]+", plain)) <= 80
    assert psutil.wait_procs(children, timeout=10)[1] == []

    async def left() -> list[str]:
        async with open_store(f"sqlite:{path}") as store:
            listing = runs_of(store)
            assert listing
            return [run_id async for run_id in listing.runs()]

    assert asyncio.run(left()) == []


def test_a_pipe_that_is_closed_early(tmp_path: Path) -> None:
    """The doctor ends without a traceback when nobody reads any more."""
    command = [sys.executable, "-m", "durable_cli", "doctor", f"file:{tmp_path}", "--json", "--processes", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode
