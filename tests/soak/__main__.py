"""Three workers, many runs, and SIGKILL: `python -m tests.soak sqlite --seconds 120 --runs 500 --seed 1`.

Workers, and the people who ask for runs and decide, are processes of their own. They are killed at random and started again,
now and then with SIGTERM, and workers are frozen for longer than a lease lasts. Servers of the tests' own are killed, or told to
end, and started again, and connections to them are cut; a worker is cut off from its server for longer than a lease lasts, and no
answer to what it had asked arrives. Some runs can't be read. When the time is over nothing is broken any more, and every run has
to end. A table says what came of it; where a promise was broken, the status is 1, the runs are named, and everything that was
written down stays in a folder.

To read it: `flows.py`, `processes.py`, `lives.py`, this file, `judging.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from statistics import median
from typing import Annotated, Any, Final, Protocol, get_args
from urllib.parse import urlsplit
from uuid import uuid4

import msgspec

from durable_core import Flow, open_store
from durable_core.stores.flows import has_ended, is_parked
from tests.servers.postgres import start_postgres
from tests.servers.proxy import Proxy, proxied
from tests.servers.redis import KEEPING, redis_server
from tests.servers.s3 import BUCKET, ministack

from .flows import MIX, TABLE, chosen, crashes, is_mended, steps, with_forks
from .judging import (
    Losses,
    Verdict,
    judge_crashes,
    judge_effects,
    judge_hands,
    judge_limit,
    judge_runs,
    judge_threads,
    judge_waits,
)
from .lives import AIM_SECONDS, Life
from .processes import Plan
from .side import Side, begin_life
from .spoiling import SPOILT, SPOILT_RUNS, spoil

STORES: Final = ("file", "sqlite", "redis", "postgres", "s3")
WORKERS: Final = 3
_PATIENCE: Final = 150.0
"""Twice what the slowest wake-up takes, which is a minute ahead."""
_QUIET_SECONDS: Final = 10.0
"""Seconds without any run's end, after which the store is asked too."""
_CLAIM: Final = b'"status":"started"'
_CLAIM_IN_POSTGRES: Final = b"started"
"""Bytes of the request that records that a run or an at-most-once step begins."""
_OUTCOME: Final = b"success"
_CLAIM_SECONDS: Final = 1.0
"""For how long a freeze waits for such a request."""
_POLL_S3: Final = 2.0


class Server(Protocol):
    """A server that can be killed, or told to end, and started again."""

    @property
    def port(self) -> int: ...

    def start(self) -> None: ...
    def kill(self) -> None: ...
    def stop(self) -> None: ...


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


def _option(what: str) -> msgspec.Meta:
    return msgspec.Meta(description=what)


class Soak(msgspec.Struct, frozen=True):
    """What is asked for on the command line."""

    store: str
    runs: Annotated[int, _option("how many runs are asked for")] = 500
    seconds: Annotated[float, _option("seconds in which things break; every run has to end after them")] = 120.0
    seed: Annotated[int, _option("the seed of all that happens at random")] = 1
    flows: Annotated[str, _option("the names of the flows, with commas; all unless given")] = ""
    every: Annotated[float, _option("seconds between two kills, in the middle")] = 1.5
    freeze_every: Annotated[float, _option("kills for each freeze of a worker, in the middle")] = 6.0
    cut_every: Annotated[float, _option("kills for each cut of connections, in the middle")] = 4.0
    cut_off_every: Annotated[float, _option("kills for each worker that is cut off from its server, in the middle")] = 8.0
    restart_every: Annotated[float, _option("seconds between two restarts of the server")] = 15.0
    aims: Annotated[
        str,
        _option(
            "numbers with commas, of which chance takes one for each freeze: it strikes a worker that has begun so many steps,"
            " or for 0 the first that has asked its server to record that an at-most-once step begins"
        ),
    ] = "0,1,1,10"
    visibility_timeout: Annotated[float, _option("seconds after which another worker looks at a run whose worker is silent")] = (
        5.0
    )
    lease: Annotated[float, _option("seconds of a lease, on Redis and S3; freezes last twice the longer of the two")] = 4.0
    poll: Annotated[float, _option(f"seconds between two looks of a worker; {_POLL_S3:g} at least on S3")] = 0.2
    patience: Annotated[float, _option("seconds without any run's end, after which no other run ends")] = _PATIENCE

    @property
    def chosen(self) -> list[tuple[str, Flow[..., Any]]]:
        """The ids and flows of the runs."""
        return chosen(self.runs, self.seed, self.names)

    @property
    def names(self) -> Sequence[str]:
        return [name for name in self.flows.split(",") if name]


def soak(asked: Soak, folder: Path) -> Verdict:
    """Run a soak in an empty folder, and judge it."""
    (folder / "mended").mkdir()
    side = begin_life(folder / "side.jsonl", "soak")
    with ExitStack() as stack:
        url, server = stack.enter_context(place(asked.store, folder, asked.lease))
        _prepare(asked.store, url)
        lives = [Life("worker", f"worker-{number}", folder, side) for number in range(WORKERS)]
        lives.append(Life("people", "people", folder, side))
        urls = {life.name: url for life in lives}
        for life in lives if server else ():
            assert server
            life.proxy = stack.enter_context(proxied(server.port))
            urls[life.name] = re.sub(rf"(127\.0\.0\.1(?::|%3A)){server.port}", rf"\g<1>{life.proxy.port}", url)
        plan = Plan(
            urls=urls,
            runs=asked.runs,
            seed=asked.seed,
            flows=asked.names,
            seconds=asked.seconds,
            began=time.monotonic(),
            visibility_timeout=asked.visibility_timeout,
            # A look lists a folder for each flow: more of them than the server of the tests answers.
            poll=max(asked.poll, _POLL_S3) if asked.store == "s3" else asked.poll,
        )
        (folder / "plan.json").write_bytes(msgspec.json.encode(plan))
        try:
            _disturb(asked, plan, lives, server, side)
            _wait_for_the_end(asked, url, lives, side)
        finally:
            for life in lives:
                life.thaw()
                life.come_back()
                life.stop() if life.is_worker else life.kill()
            for life in lives:
                life.wait()
        verdict = asyncio.run(_judge(asked, url, folder))
    for life in lives:
        verdict.wrong |= {text.split()[0]: text for text in life.broke}
    return verdict


def _disturb(asked: Soak, plan: Plan, lives: list[Life], server: Server | None, side: Side) -> None:
    """Kill, stop and freeze processes at random, cut connections and workers off, and restart the server, until the time is over.

    No kill strikes a process that is still starting, and most strike one that has done something. Most freezes strike a worker in
    the middle of steps, because there another worker takes its runs over; some as the record of a step's beginning is under way,
    whose acknowledgement then comes when another worker has the run. A worker is cut off as it waits for the answer to a
    claim or to an outcome.
    """
    random, seen = Random(asked.seed), Side(side.path, "reader")
    aims = [int(number) for number in asked.aims.split(",")]
    aim = random.choice(aims)
    proxies = [life.proxy for life in lives if life.proxy]
    ready, busy = set[str](), set[str]()
    claim = _CLAIM_IN_POSTGRES if asked.store == "postgres" else _CLAIM
    may_be_idle = False  # whether the next kill may strike a process that has done nothing yet
    has_killed = False  # the time goes on until one was: a table without a kill shows nothing
    until = plan.began + asked.seconds
    next_kill, next_freeze, next_cut, next_cut_off = (plan.began + seconds for seconds in (2, 3, 4, 5))
    restarts = round(asked.seconds / asked.restart_every) if server else 0
    outages = [plan.began + asked.seconds * (number + 0.5) / restarts for number in range(restarts)]
    while (now := time.monotonic()) < until or (not has_killed and now < until + asked.patience):
        for life in lives:
            life.see_to()
        news = seen.news()
        ready |= {line.who for line in news if line.what == "ready"}
        busy |= {line.who for line in news if line.what in ("enter", "asked", "decided")}
        begun = Counter(line.who for line in news if line.what == "begin")
        at_work = [life for life in lives if life.who in ready and not (life.is_frozen or life.is_stopping or life.is_cut_off)]
        targets = [life for life in at_work if may_be_idle or life.who in busy]
        if targets and now >= next_kill:
            next_kill = now + random.uniform(0.5, 1.5) * asked.every
            victim, may_be_idle = random.choice(targets), random.random() < 0.1
            if random.random() < 0.2 and victim.is_worker:
                victim.stop()
            else:
                victim.kill()
                has_killed = True
        workers = [life for life in at_work if life.is_worker]
        victims = [life for life in workers if begun[life.who] >= aim or now > next_freeze + AIM_SECONDS]
        if victims and now >= next_freeze and not any(life.is_frozen for life in lives):
            seconds = random.uniform(1.5, 2.5) * max(asked.lease, asked.visibility_timeout)
            with _claiming([] if aim else victims, claim) as claimer:
                (claimer or random.choice(victims)).freeze(seconds)
            next_freeze = now + seconds + random.uniform(0.5, 1.5) * asked.every * asked.freeze_every
            aim = random.choice(aims)
        victims = [life for life in workers if not life.is_frozen]
        if proxies and victims and now >= next_cut_off and not any(life.is_cut_off for life in lives):
            seconds = random.uniform(1.5, 2.5) * max(asked.lease, asked.visibility_timeout)
            random.choice(victims).cut_off(seconds, random.choice((claim, _OUTCOME)))
            next_cut_off = now + seconds + random.uniform(0.5, 1.5) * asked.every * asked.cut_off_every
        if proxies and now >= next_cut:
            next_cut = now + random.uniform(0.5, 1.5) * asked.every * asked.cut_every
            _cut([life.proxy for life in lives if life.proxy and not life.is_cut_off], random, side)
        if server is not None and outages and now >= outages[0]:
            del outages[0]
            side.note("server-killed")
            server.kill() if random.random() < 0.5 else server.stop()
            time.sleep(random.uniform(0, 1))
            server.start()
            side.note("server-started")
        time.sleep(0.02)


@contextmanager
def _claiming(lives: Sequence[Life], claim: bytes) -> Iterator[Life | None]:
    """Yield the first whose claim of a step is under way, or None. The server gets that claim after the context."""
    proxies = {life.proxy: life for life in lives if life.proxy}
    for proxy in proxies:
        proxy.hold(claim, without=b"$flow")
    held: list[Proxy] = []
    deadline = time.monotonic() + (_CLAIM_SECONDS if proxies else 0)
    while not held and time.monotonic() < deadline:
        time.sleep(0.001)
        held = [proxy for proxy in proxies if proxy.fired.is_set()]
    try:
        yield proxies[held[0]] if held else None
    finally:
        for proxy in proxies:
            proxy.release()


def _cut(proxies: Sequence[Proxy], random: Random, side: Side) -> None:
    """Lose some answers with their connections, or cut all connections; refuse new ones for a while in some cases."""
    side.note("cut")
    if random.random() < 0.5:
        proxy = random.choice(proxies)
        wanted = proxy.lost_answers + (count := random.randint(1, 5))
        proxy.lose_answers(count)
        deadline = time.monotonic() + 1
        while proxy.lost_answers < wanted and time.monotonic() < deadline:
            time.sleep(0.001)
        proxy.lose_answers(0)
    else:
        refuses = random.random() < 0.5
        for proxy in proxies:
            proxy.refusing = refuses
            proxy.cut()
        time.sleep(random.uniform(0, 0.5))
        for proxy in proxies:
            proxy.refusing = False
    side.note("cut-over")


def _wait_for_the_end(asked: Soak, url: str, lives: list[Life], side: Side) -> None:
    """Wait until all runs have ended, as the processes say or the store does, or until none has for a while."""
    over, entered, went_on, seen = set[str](), set[str](), set[str](), Side(side.path, "reader")
    parents = with_forks(run_id for run_id, _ in asked.chosen)
    until, look_at = time.monotonic() + asked.patience, time.monotonic() + _QUIET_SECONDS
    while time.monotonic() < until:
        for life in lives:
            life.see_to()
        for line in seen.news():
            crashed_again = line.run.startswith(crashes.name)
            if line.what == "on":
                went_on.add(line.run)
            elif line.what == "ended" and is_mended(line.run) and line.run not in went_on:
                pass  # somebody mends it soon
            elif line.what in ("ended", "parked") or (line.what == "crashed" and crashed_again):
                over.add(line.run)
                if not crashed_again:
                    until, look_at = time.monotonic() + asked.patience, time.monotonic() + _QUIET_SECONDS
            elif line.what == "enter":
                entered.add(line.run)
                over.discard(line.run)
        left = (parents | entered) - over
        if left and time.monotonic() > look_at:  # a process that was killed may have told nothing of a run's end
            look_at = time.monotonic() + _QUIET_SECONDS
            over |= asyncio.run(_ended(url, left))
        elif not left:
            return
        time.sleep(0.2)


async def _ended(url: str, run_ids: Collection[str]) -> set[str]:
    async with open_store(url) as store:
        found = {run_id: await store.get(run_id, "$flow") for run_id in run_ids}
    return {
        run_id
        for run_id, flow in found.items()
        if flow is not None and (is_parked(flow) or flow.status == "success" or (has_ended(flow) and not is_mended(run_id)))
    }


async def _judge(asked: Soak, url: str, folder: Path) -> Verdict:
    verdict = Verdict()
    lines = Side(folder / "side.jsonl", "judge").news()
    for line in lines:
        verdict.counts[line.what] += 1
    losses = Losses(lines, asked.store)
    judge_effects(lines, losses, verdict)
    judge_limit(lines, losses, verdict)
    judge_threads(lines, verdict)
    judge_hands(lines, losses, verdict)
    judge_crashes(lines, verdict)
    judge_waits(lines, verdict)
    async with open_store(url) as store:
        await judge_runs(store, [run_id for run_id, _ in asked.chosen], verdict)
        for run_id in verdict.broken:
            log = b"\n".join([record.to_json() for record in await store.list(run_id)])
            (folder / f"{run_id.replace('/', '_')}.jsonl").write_bytes(log)
    for run_id, times in (await _booked(asked.store, url)).items():
        if times != 1:
            verdict.wrong[run_id] = f"its row was written {times} times"
    return verdict


def _prepare(store: str, url: str) -> None:
    """Make the table that the flow `books` writes to, and runs that can't be read."""
    create = f"create table {TABLE} (run_id text)"
    if store == "sqlite":
        with sqlite3.connect(urlsplit(url).path) as connection:
            connection.execute(create)
        connection.close()
    elif store == "postgres":
        asyncio.run(_query(url, create))
    for number, (field, value) in enumerate(SPOILT):
        asyncio.run(spoil(url, steps, f"{SPOILT_RUNS}-{number}", field, value))


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


def table(asked: Soak, verdict: Verdict) -> dict[str, object]:
    """Return the columns of a store's row, by their titles."""
    count = verdict.counts
    return {
        "store": f"{asked.store:<8}",
        "runs": verdict.begun,
        "ended": verdict.ended,
        "parked": verdict.parked,
        "steps": count["recorded"],
        "kills": count["killed"],
        "stops": count["stopped"],
        "freezes": count["frozen"],
        "restarts": count["server-killed"],
        "cuts": count["cut"],
        "cut off": count["cut-off"],
        "twice, in flight": verdict.doubled_in_flight,
        "violations": len(verdict.broken),
        "longest s": f"{verdict.longest:.1f}",
        "seed": asked.seed,
    }


def row(columns: Mapping[str, object]) -> str:
    return "  ".join(f"{value!s:>{len(title)}}" for title, value in columns.items())


def waits(verdict: Verdict) -> str:
    """Return how long runs took to continue, by what let them."""
    parts = [f"{what} {median(times):.2f}/{max(times):.1f}" for what, times in sorted(verdict.waits.items())]
    return "  seconds until runs continued, median/longest, after: " + ", ".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "stores", nargs="*", choices=[*STORES, []], metavar="store", help=f"{', '.join(STORES)}; all unless given"
    )
    for field in msgspec.structs.fields(Soak):
        if field.name != "store":
            type_, meta = get_args(field.type)
            help_ = meta.description if field.default == "" else f"{meta.description} ({field.default})"
            parser.add_argument(f"--{field.name.replace('_', '-')}", type=type_, default=field.default, help=help_)
    given = vars(parser.parse_args())
    known = [flow.name for flow in MIX]
    if unknown := [name for name in Soak("store", flows=given["flows"]).names if name not in known]:
        parser.error(f"there is no flow {', '.join(unknown)}; there are {', '.join(known)}")
    stores = given.pop("stores") or STORES
    logging.basicConfig(
        level=logging.ERROR
    )  # the judge passes over the runs that were spoilt on purpose, with a warning for each
    status = 0
    columns = table(Soak("store"), Verdict())
    print(row({title: title for title in columns} | {"store": f"{'store':<8}"}), flush=True)
    for store in stores:
        asked = Soak(store, **given)
        folder = Path(tempfile.mkdtemp(prefix=f"durable-soak-{store}-{asked.seed}-"))
        verdict = soak(asked, folder)
        print(row(table(asked, verdict)), waits(verdict), sep="\n", flush=True)
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
