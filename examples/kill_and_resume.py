"""The demonstration around `settle_orders.py`: start it, kill it, start it again, and prove what happened.

The job runs in a child process that tells each event over a pipe, and freezes where it is to be killed, so that the kill comes
at exactly that point on every machine.
"""

import argparse
import asyncio
import json
import os
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from inspect import iscoroutinefunction
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, NoReturn, cast

from durable_core import Runner, StepEvent, StepRecord, Store, open_store, sync
from durable_core.engine import asynchronous

Flow = Callable[[Store, Path, Callable[[StepEvent], None]], Awaitable[object]]
BlockingFlow = Callable[[Store, Path, Callable[[StepEvent], None]], object]

WIDTH = 20
RED, GREEN, YELLOW, DIM, BOLD = 31, 32, 33, 2, 1


@dataclass(frozen=True)
class Kill:
    """Where a process is killed: `recorded:STEP`, right after the step's record, or `effect:STEP`, between effect and record."""

    when: str
    step_id: str

    @classmethod
    def parse(cls, text: str) -> "Kill":
        when, _, step_id = text.partition(":")
        if when not in ("recorded", "effect") or not step_id:
            raise argparse.ArgumentTypeError(f"{text!r}: expected recorded:STEP or effect:STEP")
        return cls(when, step_id)

    def __str__(self) -> str:
        return f"{self.when}:{self.step_id}"


DEFAULT_KILLS = [Kill("recorded", "post-batch-2"), Kill("effect", "post-batch-4")]


@dataclass
class Process:
    """What one process told before it ended."""

    kill: Kill | None
    pid: int
    killed: bool = False
    code: int = 0
    seconds: float = 0.0
    started: Counter[str] = field(default_factory=Counter)
    replayed: set[str] = field(default_factory=set)


def main(settle: Flow | BlockingFlow, run_id: str) -> None:
    parser = argparse.ArgumentParser(description="Settle a day's orders, be killed half-way, resume, and prove the result.")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep ledger, invoices and log in this new folder")
    parser.add_argument(
        "--kill",
        type=Kill.parse,
        action="append",
        metavar="WHEN:STEP",
        help="kill a run right after the record of a step (recorded:STEP), or between its effect and its record (effect:STEP);"
        f" may be repeated; default: {' '.join(map(str, DEFAULT_KILLS))}",
    )
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kill = options.kill[0] if options.kill else None
        if iscoroutinefunction(settle):
            asyncio.run(child(settle, options.child, kill))
        else:
            blocking_child(settle, options.child, kill)
        return
    if options.keep:
        if options.keep.exists():
            parser.error(f"{options.keep} is there already; the demo settles into a new folder")
        options.keep.mkdir(parents=True)
        sys.exit(demonstrate(options.keep.resolve(), run_id, options.kill or DEFAULT_KILLS, kept=True))
    with TemporaryDirectory(prefix="settle-orders-") as folder:
        sys.exit(demonstrate(Path(folder).resolve(), run_id, options.kill or DEFAULT_KILLS, kept=False))


async def child(settle: Flow, folder: Path, kill: Kill | None) -> None:
    """Run the job in this process, tell its events, and freeze where it is to be killed."""
    async with open_store((folder / "runs").as_uri()) as store:
        await settle(freezing(store, kill), folder, partial(report, kill))


def blocking_child(settle: BlockingFlow, folder: Path, kill: Kill | None) -> None:
    """Do the same for a job without asyncio."""
    with sync.open_store((folder / "runs").as_uri()) as store:
        settle(freezing(asynchronous(store), kill), folder, partial(report, kill))


def report(kill: Kill | None, event: StepEvent) -> None:
    record = event.record
    took = (record.ended_at - record.started_at).total_seconds() * 1000 if record else 0.0
    print(event.type, event.step_id, took, sep="\t", flush=True)
    if kill == Kill("recorded", event.step_id) and event.type == "step:success":
        freeze()


def freezing(store: Store, kill: Kill | None) -> Store:
    """Return the store, or one that freezes before the record of the step at which the process is to be killed."""
    return cast(Store, FreezesBeforeRecording(store, kill.step_id)) if kill and kill.when == "effect" else store


class FreezesBeforeRecording:
    """A store that freezes the process when the outcome of one step is about to be appended: its effect has happened."""

    def __init__(self, store: Store, step_id: str) -> None:
        self._store, self._step_id = store, step_id

    async def append(self, record: StepRecord) -> StepRecord:
        if record.step_id == self._step_id:
            freeze()
        return await self._store.append(record)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def freeze() -> NoReturn:
    print("frozen", "", 0.0, sep="\t", flush=True)
    sys.stdin.read()  # until the parent kills this process, or is gone itself
    os._exit(1)


def demonstrate(folder: Path, run_id: str, kills: list[Kill], *, kept: bool) -> int:
    """Run the job until no kill is left, show what happens as it happens, and return the exit status."""
    print(f"Settling orders.csv in {folder}\nThe job is killed, and started again with the same command.")
    processes: list[Process] = []
    for kill in [*kills, None]:
        print(f"\n{paint(BOLD, f'run {len(processes) + 1}')}")
        process = run(folder, kill, {step_id for earlier in processes for step_id in earlier.started})
        processes.append(process)
        if kill and not process.killed:
            print(f"{kill} never came: either no step has that name, or an earlier run recorded it.", file=sys.stderr)
            return 2
    if processes[-1].code:
        return 1
    print(f"\n{paint(BOLD, 'proof')}, from the ledger, the files and the log")
    results = list(proof(folder, run_id, processes))
    for good, text in results:
        print(f"  {paint(GREEN, 'ok  ') if good else paint(RED, 'FAIL')}  {text}")
    print_what_is_next(folder, run_id, kept=kept)
    return 0 if all(good for good, _ in results) else 1


def run(folder: Path, kill: Kill | None, begun: set[str]) -> Process:
    """Run the job in a process of its own, show each step as it ends, and kill the process when it freezes."""
    command = [sys.executable, sys.argv[0], "--child", str(folder), *(["--kill", str(kill)] if kill else [])]
    began = perf_counter()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        told = Process(kill, process.pid)
        for line in process.stdout or ():
            what, step_id, took = line.rstrip("\n").split("\t")
            if what == "frozen":
                process.kill()  # SIGKILL; on Windows TerminateProcess
                told.killed = True
                if kill and kill.when == "effect":
                    print_step(kill.step_id, YELLOW, "ran, no record")
            elif what == "step:start":
                told.started[step_id] += 1
            elif what == "step:replay":
                told.replayed.add(step_id)
                print_step(step_id, DIM, "replayed")
            elif what == "step:success":
                again = step_id in begun
                print_step(step_id, YELLOW if again else GREEN, f"{'ran again' if again else 'ran':<9} {float(took):6.1f} ms")
    told.code, told.seconds = process.returncode, perf_counter() - began
    print(f"  {ending(told)}")
    return told


def print_step(step_id: str, color: int, what: str) -> None:
    print(f"  {step_id:<{WIDTH}}{paint(color, what)}", flush=True)


def ending(process: Process) -> str:
    if process.kill and process.killed:
        where = "right after its record" if process.kill.when == "recorded" else "before its record"
        how = f"{paint(RED, 'KILLED')}{' by SIGKILL' if process.code == -9 else ''} {where}"
    else:
        how = f"exited with status {process.code}"
    return f"process {process.pid} {how}, after {process.seconds:.2f} s"


def print_what_is_next(folder: Path, run_id: str, *, kept: bool) -> None:
    """Print the commands that show more, as they are typed."""
    print(f"\n{paint(BOLD, 'next')}")
    if kept:
        print(f"  The ledger, the invoices and the log are in {folder}. To see the run, with durable-cli:")
        print(f"    durable show {run_id} --store file:{folder / 'runs'}")
    else:
        # `nox -s demo` has the packages, and the Python that it was called from may not.
        command = os.environ.get("DEMO_COMMAND") or f"python {sys.argv[0]}"
        print(f"  To look at the ledger, the invoices and the log, keep them:\n    {command} --keep night")
    print(f"  The job, in 150 lines: {Path(sys.argv[0])}\n  Your own, in fifteen minutes: docs/tutorial.md")


def proof(folder: Path, run_id: str, processes: list[Process]) -> Iterator[tuple[bool, str]]:
    """Hold the ledger and the files against the log, and against what the processes told."""
    log = asyncio.run(read_log(folder, run_id))
    records = {record.step_id: record for record in log}
    starts: Counter[str] = sum((process.started for process in processes), Counter())
    repeated = [step_id for step_id, count in starts.items() if count > 1]
    cut_off = {process.kill.step_id for process in processes if process.kill and process.kill.when == "effect"}
    recorded_once = len(log) == len(records) == len(starts) and all(record.status == "success" for record in log)
    yield recorded_once, f"{len(records)} steps, each recorded once"
    again = f"only what died before its record ran again: {', '.join(repeated) or 'nothing'}"
    yield set(repeated) == cut_off, again

    intake = records["read-orders"].value()
    accepted = sorted(order["id"] for order in intake["orders"])
    with closing(sqlite3.connect(folder / "ledger.db")) as db:
        postings = db.execute("SELECT order_id, customer, step, cents, asked FROM postings ORDER BY order_id").fetchall()
        mails = db.execute("SELECT asked FROM mail").fetchall()
    posted = [order_id for order_id, *_ in postings]
    yield posted == accepted, f"{len(accepted)} orders accepted, {len(posted)} postings in the ledger, one per order"
    more = sum(asked > 1 for *_, asked in postings)
    seen = f"{more or 'no'} postings were asked for again{', by the same key, and none made again' if more else ''}"
    yield all(asked == starts[step] for _, _, step, _, asked in postings), seen

    euros = Decimal(sum(cents for _, _, _, cents, _ in postings)) / 100
    customers = {customer for _, customer, *_ in postings}
    invoices = [path.read_text(encoding="utf-8") for path in (folder / "invoices").iterdir()]
    invoiced = sum(Decimal(text.split()[-1].replace(",", "")) for text in invoices)
    billed = len(invoices) == len(customers) and invoiced == euros
    yield billed, f"{len(customers)} customers, {len(invoices)} invoices, which add up to the ledger: EUR {euros:,}"
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    mailed_once = [asked for (asked,) in mails] == [starts["mail-summary"]]
    yield Decimal(summary["total"]) == euros and mailed_once, "1 summary of the same total, in 1 mail"
    rejects = len((folder / "rejects.txt").read_text(encoding="utf-8").splitlines())
    yield rejects == len(intake["rejects"]), f"{rejects} bad rows set aside in rejects.txt"


async def read_log(folder: Path, run_id: str) -> list[StepRecord]:
    async with open_store((folder / "runs").as_uri()) as store:
        return list(await Runner(store, run_id).history())


def paint(color: int, text: str) -> str:
    plain = not sys.stdout.isatty() or os.environ.get("NO_COLOR") or (os.name == "nt" and "WT_SESSION" not in os.environ)
    return text if plain or not text.strip() else f"\033[{color}m{text}\033[0m"
