"""Three workers, many runs, and SIGKILL: `python -m tests.soak sqlite --seconds 120 --runs 500 --seed 1`.

Workers, and the people who ask for runs and decide, are processes of their own. They are killed at random and started again,
now and then with SIGTERM; servers of the tests' own are killed and started, too. When the time is over nothing is killed any
more, and every run has to end. A table says what came of it; where a promise was broken, the status is 1, the runs are named,
and everything that was written down stays in a folder.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, Final, Protocol
from urllib.parse import urlsplit
from uuid import uuid4

import msgspec

from durable_core import open_store
from tests.servers.postgres import start_postgres
from tests.servers.redis import KEEPING, redis_server
from tests.servers.s3 import BUCKET, ministack

from .flows import TABLE, chosen, crashes
from .judging import Verdict, judge_effects, judge_limit, judge_runs, judge_waits, outages_in
from .processes import Plan
from .side import Side, begin_life

STORES: Final = ("file", "sqlite", "redis", "postgres", "s3")
WORKERS: Final = 3
_PATIENCE: Final = 150.0
"""Seconds without any run's end after which the others never will: twice what the slowest net takes, a wake-up a minute ahead."""


class Server(Protocol):
    """A server that can be killed and started again."""

    def start(self) -> None: ...
    def kill(self) -> None: ...


class Life:
    """A process that is started again whenever it died."""

    def __init__(self, role: str, name: str, folder: Path, side: Side) -> None:
        self._role, self._name, self._folder, self._side = role, name, folder, side
        self._lives = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.broke: list[str] = []
        """How it ended by itself, which it never should."""

    @property
    def who(self) -> str:
        return f"{self._name}-{self._lives}"

    def see_to(self) -> None:
        """Start it unless it lives."""
        if self._process is not None:
            if (code := self._process.poll()) is None:
                return
            if code != -9:  # which is how a run of `interrupted` ends it
                self.broke.append(f"{self.who} ended with status {code}")
        self._lives += 1
        with (self._folder / f"{self.who}.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.soak.processes", self._role, self.who, str(self._folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},
            )

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._side.note("killed", who=self.who)
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """End it as a deploy does."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                code = self._process.wait(30)
            except subprocess.TimeoutExpired:
                code = None
                self.kill()
            if code not in (0, -9, -signal.SIGTERM):  # by SIGTERM where it hadn't begun to work
                self.broke.append(f"{self.who} ended with status {code} after SIGTERM")
            self._process = None


@contextmanager
def place(name: str, folder: Path, lease: float) -> Iterator[tuple[str, Server | None]]:
    """Make a clean place on a store; yield its URL, and its server if there is one."""
    if name == "file":
        yield f"file:{folder / 'runs'}", None
    elif name == "sqlite":
        yield f"sqlite:{folder / 'runs.db'}", None
    elif name == "redis":
        with redis_server(*KEEPING) as redis:
            yield f"{redis.url}?prefix=soak&lease={lease:g}", redis
    elif name == "postgres":
        for postgres in start_postgres():
            yield f"{postgres.url}?schema=soak", postgres
    else:
        os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
        with ministack() as s3:
            s3.client().put_object(Bucket=BUCKET, Key="kept")  # it forgets an empty bucket when it is killed
            yield f"{s3.url(uuid4().hex)}&lease={lease:g}", s3


class Soak(msgspec.Struct, frozen=True):
    """What is asked for on the command line."""

    store: str
    runs: int = 500
    seconds: float = 120.0
    seed: int = 1
    every: float = 1.5
    """Seconds between two kills, in the middle."""
    visibility_timeout: float = 5.0
    lease: float = 4.0
    poll: float = 0.2
    patience: float = _PATIENCE


def soak(asked: Soak, folder: Path) -> Verdict:
    """Let it happen in an empty folder, and judge it."""
    (folder / "mended").mkdir()
    side = begin_life(folder / "side.jsonl", "soak")
    with place(asked.store, folder, asked.lease) as (url, server):
        _prepare(asked.store, url)
        plan = Plan(
            url=url,
            runs=asked.runs,
            seed=asked.seed,
            seconds=asked.seconds,
            began=time.monotonic(),
            visibility_timeout=asked.visibility_timeout,
            poll=asked.poll,
        )
        (folder / "plan.json").write_bytes(msgspec.json.encode(plan))
        lives = [Life("worker", f"worker-{number}", folder, side) for number in range(WORKERS)]
        lives.append(Life("people", "people", folder, side))
        try:
            _disturb(asked, plan, lives, server, side)
            _wait_for_the_end(asked, lives, side)
        finally:
            for life in lives:
                life.stop() if life.who.startswith("worker") else life.kill()
        verdict = asyncio.run(_judge(asked, url, folder))
    for life in lives:
        verdict.wrong |= {text.split()[0]: text for text in life.broke}
    return verdict


def _disturb(asked: Soak, plan: Plan, lives: list[Life], server: Server | None, side: Side) -> None:
    """Kill and stop processes at random, and the server four times, until the time is over."""
    random = Random(asked.seed)
    until = plan.began + asked.seconds
    next_kill = plan.began + 2  # so long do processes take to begin
    outages = [plan.began + asked.seconds * (number + 0.5) / 4 for number in range(4)] if server else []
    while (now := time.monotonic()) < until:
        for life in lives:
            life.see_to()
        if now >= next_kill:
            next_kill = now + random.uniform(0.5, 1.5) * asked.every
            victim = random.choice(lives)
            if random.random() < 0.2 and victim is not lives[-1]:
                victim.stop()
            else:
                victim.kill()
        if server is not None and outages and now >= outages[0]:
            del outages[0]
            side.note("server-killed")
            server.kill()
            time.sleep(random.uniform(0, 1))
            server.start()
            side.note("server-started")
        time.sleep(0.02)


def _wait_for_the_end(asked: Soak, lives: list[Life], side: Side) -> None:
    """Wait until all runs have ended by what the processes say, or none has for a while."""
    over, entered, seen = set[str](), set[str](), Side(side.path, "reader")
    parents = {run_id for run_id, _ in chosen(asked.runs, asked.seed)}
    until = time.monotonic() + asked.patience
    while time.monotonic() < until:
        for life in lives:
            life.see_to()
        for line in seen.news():
            if line.what in ("ended", "parked") or (line.what == "crashed" and line.run.startswith(crashes.name)):
                over.add(line.run)
                until = time.monotonic() + asked.patience
            elif line.what == "enter":
                entered.add(line.run)
                over.discard(line.run)
        if (parents | entered) <= over:
            return
        time.sleep(0.2)


async def _judge(asked: Soak, url: str, folder: Path) -> Verdict:
    verdict = Verdict()
    lines = Side(folder / "side.jsonl", "judge").news()
    verdict.kills = sum(line.what == "killed" for line in lines)
    verdict.outages = len(outages_in(lines))
    judge_effects(lines, verdict)
    judge_limit(lines, verdict)
    judge_waits(lines, verdict)
    async with open_store(url) as store:
        await judge_runs(store, [run_id for run_id, _ in chosen(asked.runs, asked.seed)], verdict)
        for run_id in verdict.broken:
            log = b"\n".join([record.to_json() for record in await store.list(run_id)])
            (folder / f"{run_id.replace('/', '_')}.jsonl").write_bytes(log)
    for run_id, times in (await _booked(asked.store, url)).items():
        if times != 1:
            verdict.wrong[run_id] = f"its row was written {times} times"
    return verdict


def _prepare(store: str, url: str) -> None:
    """Make the table that the flow `books` writes to."""
    create = f"create table {TABLE} (run_id text)"
    if store == "sqlite":
        with sqlite3.connect(urlsplit(url).path) as connection:
            connection.execute(create)
        connection.close()
    elif store == "postgres":
        asyncio.run(_query(url, create))


async def _booked(store: str, url: str) -> dict[str, int]:
    """Return how often each run has written its row."""
    select = f"select run_id, count(*) from {TABLE} group by run_id"
    if store == "sqlite":
        connection = sqlite3.connect(urlsplit(url).path)
        found = dict(connection.execute(select).fetchall())
        connection.close()
        return found
    return dict(await _query(url, select)) if store == "postgres" else {}


async def _query(url: str, sql: str) -> list[Any]:
    import asyncpg

    connection = await asyncpg.connect(urlsplit(url)._replace(query="").geturl())
    try:
        return [tuple(row) for row in await connection.fetch(sql)]
    finally:
        await connection.close()


HEAD: Final = (
    f"{'store':<9}{'begun':>7}{'ended':>7}{'parked':>8}{'kills':>7}{'outages':>9}{'twice, in flight':>18}{'else':>6}"
    f"{'never ended':>13}{'wrong':>7}{'longest s':>11}{'seed':>6}"
)


def row(asked: Soak, verdict: Verdict) -> str:
    """Return the line of the table."""
    return (
        f"{asked.store:<9}{verdict.begun:>7}{verdict.ended:>7}{verdict.parked:>8}{verdict.kills:>7}{verdict.outages:>9}"
        f"{verdict.doubled_in_flight:>18}{len(verdict.doubled):>6}{len(verdict.never_ended):>13}{len(verdict.wrong):>7}"
        f"{verdict.longest:>11.1f}{asked.seed:>6}"
    )


def waits(verdict: Verdict) -> str:
    """Return how long it took until runs went on, by what let them."""
    parts = [f"{what} {median(times):.2f}/{max(times):.1f}" for what, times in sorted(verdict.waits.items())]
    return "  could go on to went on, median/longest s: " + ", ".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "stores", nargs="*", choices=[*STORES, []], metavar="store", help=f"{', '.join(STORES)}; all unless given"
    )
    for field in msgspec.structs.fields(Soak):
        if field.name != "store":
            parser.add_argument(
                f"--{field.name.replace('_', '-')}", type=field.type, default=field.default, help=f"({field.default})"
            )
    given = vars(parser.parse_args())
    stores = given.pop("stores") or STORES
    status = 0
    print(HEAD, flush=True)
    for store in stores:
        asked = Soak(store, **given)
        folder = Path(tempfile.mkdtemp(prefix=f"durable-soak-{store}-{asked.seed}-"))
        verdict = soak(asked, folder)
        print(row(asked, verdict), waits(verdict), sep="\n", flush=True)
        for run_id in verdict.broken:
            print(f"  {run_id}: {verdict.wrong.get(run_id, '')}")
        if verdict.broken:
            status = 1
            print(f"  lines, logs and what the processes said: {folder}", flush=True)
        else:
            shutil.rmtree(folder)
    return status


if __name__ == "__main__":
    sys.exit(main())
