"""The nightly settlement is right, and survives being killed anywhere."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from decimal import ROUND_HALF_EVEN, Decimal
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from durable_core import MemoryStore, Runner, flow
from durable_core.testing import crash_everywhere

EXAMPLES = Path(__file__).parents[2] / "examples"
STEPS = [
    "fetch-rates",
    "read-orders",
    "report-rejects",
    *(f"post-batch-{number}" for number in (1, 2, 3, 4)),
    "write-invoices",
    "write-summary",
    "mail-summary",
]
RATES = {"EUR": Decimal(1), "GBP": Decimal("0.8642"), "SEK": Decimal("10.8455"), "USD": Decimal("1.0815")}
BAD_LINES = {
    52: "cut off",
    75: "no customer",
    83: "the same row again",
    108: "no amount",
    136: "30 February",
    158: "an order number used before",
    166: "a currency without a rate",
}


JOBS = ["settle_orders.py", "settle_orders_sync.py"]


@pytest.fixture
def job() -> ModuleType:
    spec = spec_from_file_location("settle_orders", EXAMPLES / "settle_orders.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def demo(*options: str | Path, temp: Path, script: Path = EXAMPLES / "settle_orders.py") -> subprocess.CompletedProcess[str]:
    temp.mkdir(exist_ok=True)
    places = {name: str(temp) for name in ("TMPDIR", "TEMP", "TMP")}
    environment = {**os.environ, **places, "PYTHONWARNINGS": "error", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, str(script), *map(str, options)]
    return subprocess.run(command, env=environment, cwd=temp, capture_output=True, encoding="utf-8", timeout=120, check=False)


def expected_cents() -> dict[str, tuple[str, int]]:
    """Settle the export again, in another way: each order's customer and its euro cents."""
    cents: dict[str, tuple[str, int]] = {}
    with (EXAMPLES / "orders.csv").open(encoding="utf-8-sig", newline="") as file:
        for line, row in enumerate(csv.reader(file), start=1):
            if line == 1 or line in BAD_LINES or not row:
                continue
            order, _, customer, _, currency, amount = row
            digits = "".join(character for character in amount if character.isdigit())
            in_cents = Decimal(f"-{digits}" if "-" in amount else digits) / RATES[currency.strip().upper()]
            cents[order] = customer.strip(), int(in_cents.quantize(Decimal(1), ROUND_HALF_EVEN))
    return cents


def assert_settled_once(folder: Path) -> None:
    """Every order is posted once and for the right amount, every customer invoiced once, and one summary mailed."""
    expected = expected_cents()
    with closing(sqlite3.connect(folder / "ledger.db")) as db:
        postings = db.execute("SELECT order_id, customer, cents FROM postings").fetchall()
        mails = db.execute("SELECT text FROM mail").fetchall()
    assert sorted(postings) == sorted((order, *rest) for order, rest in expected.items())

    totals: Counter[str] = Counter()
    for customer, cents in expected.values():
        totals[customer] += cents
    invoiced = {}
    for path in (folder / "invoices").iterdir():
        last = path.read_text(encoding="utf-8").splitlines()[-1]
        invoiced[path.name] = round(Decimal(last.split()[-1].replace(",", "")) * 100)
    assert invoiced == {f"2026-03-31-{customer}.txt": total for customer, total in totals.items()}

    total = Decimal(sum(totals.values())) / 100
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary == {
        "day": "2026-03-31",
        "orders": sum(cents > 0 for _, cents in expected.values()),
        "refunds": 3,
        "rejected": len(BAD_LINES),
        "invoices": len(totals),
        "total": str(total),
    }
    assert [text for (text,) in mails] == [f"192 orders, 3 refunds, 7 rejected: EUR {total:,}"]
    rejects = (folder / "rejects.txt").read_text(encoding="utf-8").splitlines()
    assert [int(line.split()[1].rstrip(":")) for line in rejects] == list(BAD_LINES)


@pytest.mark.parametrize("script", JOBS)
def test_demo_kills_resumes_and_proves(script: str, tmp_path: Path) -> None:
    """Without options two runs are killed, the third one ends, the proof holds, and no file is left behind.

    Without asyncio all of it comes out the same, step for step.
    """
    before = set(EXAMPLES.glob("*.*"))
    result = demo(temp=tmp_path, script=EXAMPLES / script)
    assert (result.returncode, result.stderr) == (0, "")
    runs: dict[str, list[str]] = {step: [] for step in STEPS}
    for line in result.stdout.splitlines():
        if line.startswith("  ") and (words := line.split())[0] in runs:
            runs[words[0]].append(" ".join(word for word in words[1:] if word[0].isalpha() and word != "ms"))
    assert runs["post-batch-2"] == ["ran", "replayed", "replayed"]
    assert runs["post-batch-3"] == ["ran", "replayed"]
    assert runs["post-batch-4"] == ["ran, no record", "ran again"]
    assert runs["write-invoices"] == ["ran"]
    assert all(runs.values())
    assert max(map(len, result.stdout.splitlines()[3:-3])) <= 80, "a terminal of 80 columns shows it"
    assert result.stdout.count("  ok    ") == 7
    assert "FAIL" not in result.stdout
    assert "\033" not in result.stdout, "colour is for terminals"
    assert list(tmp_path.iterdir()) == []
    assert set(EXAMPLES.glob("*.*")) == before


@pytest.mark.parametrize("kill", ["recorded:fetch-rates", "effect:read-orders", "effect:write-invoices", "recorded:mail-summary"])
def test_one_kill(kill: str, tmp_path: Path) -> None:
    """Wherever a run is killed, the next one completes it and every effect has happened once."""
    result = demo("--kill", kill, "--keep", tmp_path / "night", temp=tmp_path / "temp")
    assert (result.returncode, result.stderr) == (0, "")
    assert_settled_once(tmp_path / "night")


@pytest.mark.parametrize("script", JOBS)
def test_killed_at_every_point_of_one_night(script: str, tmp_path: Path) -> None:
    """A night killed before and after the record of each of its steps comes out as any other, without asyncio, too."""
    kills = [argument for step in STEPS for when in ("effect", "recorded") for argument in ("--kill", f"{when}:{step}")]
    result = demo(*kills, "--keep", tmp_path / "night", temp=tmp_path / "temp", script=EXAMPLES / script)
    assert (result.returncode, result.stderr) == (0, "")
    assert_settled_once(tmp_path / "night")
    with closing(sqlite3.connect(tmp_path / "night" / "ledger.db")) as db:
        assert db.execute("SELECT DISTINCT asked FROM postings").fetchall() == [(2,)], "no effect was really repeated"


def test_proof_fails_when_effects_are_doubled(tmp_path: Path) -> None:
    """The proof can tell: with a new key on every attempt, the batch that ran twice is in the ledger twice."""
    copy = tmp_path / "examples"
    shutil.copytree(EXAMPLES, copy, ignore=shutil.ignore_patterns("__pycache__"))
    script = copy / "settle_orders.py"
    source = script.read_text(encoding="utf-8")
    assert source.count("{step.idempotency_key}") == 1
    script.write_text(source.replace("{step.idempotency_key}", "{os.urandom(8).hex()}"), encoding="utf-8")
    result = demo(temp=tmp_path / "temp", script=script)
    assert result.returncode == 1
    assert "FAIL  195 orders accepted, 240 postings in the ledger" in result.stdout


def test_rows_appear_as_they_happen(tmp_path: Path) -> None:
    """What a step came to is shown while the next ones still run: here by a run that is frozen after its first step."""
    script = tmp_path / "frozen.py"
    script.write_text(
        "import os, sys\nfrom settle_orders import RUN_ID, settle\nfrom kill_and_resume import main\n"
        "async def slow(store, folder, report):\n"
        "    def told(event):\n"
        "        report(event)\n"
        "        if event.type == 'step:success':\n"
        "            sys.stdin.read()\n"
        "    await settle(store, folder, told)\n"
        "main(slow, RUN_ID)\n",
        encoding="utf-8",
    )
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES), "PYTHONIOENCODING": "utf-8"}
    with subprocess.Popen([sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout is not None
        assert any("fetch-rates" in line for line in iter(process.stdout.readline, "read-orders"))
        assert process.poll() is None
        process.kill()


def test_the_last_lines_are_commands_that_work(tmp_path: Path) -> None:
    """What the demo says to type next keeps the night; a night that was kept names its folder."""
    result = demo(temp=tmp_path / "temp")
    (command,) = re.findall(r"^    python (.*) --keep night$", result.stdout, re.MULTILINE)
    kept = demo("--keep", "night", temp=tmp_path / "temp", script=Path(command))
    assert (kept.returncode, kept.stderr) == (0, "")
    assert_settled_once(tmp_path / "temp" / "night")
    assert f"durable show settle-2026-03-31 --store file:{tmp_path / 'temp' / 'night' / 'runs'}" in kept.stdout


def test_kill_that_never_comes_is_an_error(tmp_path: Path) -> None:
    """A step that no run reaches is named, rather than the demo passing without its kill."""
    result = demo("--kill", "recorded:post-batch-9", temp=tmp_path)
    assert result.returncode == 2
    assert "recorded:post-batch-9 never came" in result.stderr


def test_existing_folder_is_refused(tmp_path: Path) -> None:
    """`--keep` overwrites nothing."""
    result = demo("--keep", tmp_path, temp=tmp_path)
    assert result.returncode == 2
    assert "is there already" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_settlement_is_right(job: ModuleType, tmp_path: Path) -> None:
    """Postings, invoices, summary and rejects are what an independent calculation from the export gives."""
    summary = asyncio.run(job.settle(MemoryStore(), tmp_path))
    assert_settled_once(tmp_path)
    assert len(expected_cents()) == summary.orders + summary.refunds == 195


def test_death_in_the_middle_of_an_effect(job: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that dies between two invoices, leaving one half written, is completed by the next."""

    class Died(BaseException):
        pass

    replace_file = job.replace_file

    def die_at_the_fifth(path: Path, text: str) -> None:
        if path.parent.name == "invoices" and len(list(path.parent.glob("*.txt"))) == 4:
            path.with_suffix(".draft").write_text(text[:10], encoding="utf-8")
            raise Died
        replace_file(path, text)

    async def two_runs() -> None:
        store = MemoryStore()
        with monkeypatch.context() as patch:
            patch.setattr(job, "replace_file", die_at_the_fifth)
            with pytest.raises(Died):
                await job.settle(store, tmp_path)
        await job.settle(store, tmp_path)

    asyncio.run(two_runs())
    assert_settled_once(tmp_path)


@pytest.mark.timeout(600)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_crashed_everywhere(job: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at every point of the night, each run settles every order once."""
    # Who is killed loses nothing that it wrote.
    monkeypatch.setattr(os, "fsync", lambda fd: None)

    def folder_of(run_id: str) -> dict[str, str]:
        (tmp_path / run_id).mkdir()
        return {"folder": str(tmp_path / run_id)}

    def effects(run_id: str) -> list[tuple[str, ...]]:
        with closing(sqlite3.connect(tmp_path / run_id / "ledger.db")) as db:
            posted = db.execute("SELECT order_id, customer, CAST(cents AS TEXT) FROM postings").fetchall()
            mailed = db.execute("SELECT text FROM mail").fetchall()
        return [*posted, *mailed, *((path.name,) for path in (tmp_path / run_id / "invoices").iterdir())]

    @flow
    async def night(runner: Runner, folder: str) -> job.Summary:  # type: ignore[name-defined]
        return await job.settle_by(runner, Path(folder))

    report = crash_everywhere(night, open_store=f"sqlite:{tmp_path / 'runs.db'}", input=folder_of, effects=effects)
    assert {f"as '{step}' begins" for step in STEPS} < {point.place for point in report.points if point.killed}
    for point in report.points:
        assert_settled_once(tmp_path / point.run_id)


@pytest.mark.parametrize(
    ("text", "amount"), [("1249.00", "1249"), ("1.249,00", "1249"), ("1,249.00", "1249"), ("-24.42", "-24.42"), ("0,05", "0.05")]
)
def test_amounts_as_exports_write_them(job: ModuleType, text: str, amount: str) -> None:
    """Either mark may stand before the decimals, and the other between thousands."""
    assert job.parse_amount(text) == Decimal(amount)


@pytest.mark.parametrize("text", ["", "n/a", "12", "1,249", "12.5", "1e3.00", "--1.00", "٣.٠٠€"])
def test_other_amounts_are_refused(job: ModuleType, text: str) -> None:
    """What could be read in two ways is set aside, not guessed."""
    with pytest.raises(ValueError, match="no amount with two decimals"):
        job.parse_amount(text)
