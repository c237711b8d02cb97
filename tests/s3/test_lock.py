"""The lock of a run: a lease whose ages come from the server's clock alone."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from datetime import timedelta
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any
from uuid import uuid4

import pytest

from durable_core import RunBusy, Runner, StoreError
from durable_core.clock import SystemClock
from durable_core.errors import LockLost
from durable_core.stores.lease import RenewedLease
from durable_s3 import S3Store
from durable_s3._keys import Keys, number
from durable_s3._lease import RunLease
from tests.s3 import proxy as faults
from tests.s3.proxy import Line, Proxy
from tests.s3.support import client_of, open_at
from tests.servers.s3 import BUCKET, S3Server

pytestmark = pytest.mark.asyncio

SPAWN = multiprocessing.get_context("spawn")


class Ahead(SystemClock):
    """The clock that leases are kept by, some seconds ahead."""

    ahead = 0.0

    def monotonic(self) -> float:  # type: ignore[override]  # a function there, for speed
        return time.monotonic() + self.ahead


@pytest.fixture
def proxy(moto_server: S3Server) -> Iterator[Proxy]:
    with Proxy(moto_server.port) as running:
        yield running


@pytest.fixture
def prefix() -> str:
    return uuid4().hex


@pytest.fixture
async def store(proxy: Proxy, prefix: str) -> AsyncIterator[S3Store]:
    async with open_at(proxy.endpoint, prefix, read_timeout=0.5, probe=False) as opened:
        yield opened


@pytest.fixture
async def other(moto_server: S3Server, prefix: str) -> AsyncIterator[S3Store]:
    """A store on the same place that the proxy's faults don't reach."""
    async with open_at(moto_server.endpoint, prefix, probe=False) as opened:
        yield opened


def claims(server: S3Server, prefix: str, run_id: str = "run") -> dict[int, bytes]:
    """What the lock's objects hold, by number."""
    client = server.client()
    try:
        found = client.list_objects_v2(Bucket=BUCKET, Prefix=Keys(prefix).leases(run_id)).get("Contents", ())
        return {number(at["Key"]): client.get_object(Bucket=BUCKET, Key=at["Key"])["Body"].read() for at in found}
    finally:
        client.close()


async def test_only_creations_decide(store: S3Store, moto_server: S3Server, prefix: str) -> None:
    """Taking, renewing and giving back each create the next number; the highest object is never removed."""
    for turn in range(3):
        async with store.lock("run"):
            assert [*claims(moto_server, prefix)] == [2 * turn + 1]
        assert [*claims(moto_server, prefix)] == [2 * turn + 2]
    (last,) = claims(moto_server, prefix).values()
    assert b'"released":true' in last


async def test_clearing_a_run_leaves_its_lock(store: S3Store, other: S3Store) -> None:
    """A runner resets its run while it holds it, and holds it still."""
    async with store.lock("run") as lease:
        await store.clear("run")
        lease.check()
        with pytest.raises(RunBusy):
            async with other.lock("run"):
                pass


async def test_a_holder_whose_time_is_over_knows_it(store: S3Store, moto_server: S3Server, prefix: str) -> None:
    """It starts no further step, also if nobody has taken over yet, and never comes back."""
    clock = store._leases.clock = Ahead()
    async with store.lock("run") as lease, Runner(store, "another") as runner:
        await runner.step("first", int)
        clock.ahead = 120.0
        with pytest.raises(LockLost, match=r"not renewed within 120 s"):
            lease.check()
        with pytest.raises(LockLost):
            await runner.step("second", int)
        clock.ahead = 0.0
        with pytest.raises(LockLost):
            lease.check()
    assert [*claims(moto_server, prefix)] == [2]  # given back, for it was nobody else's yet


async def test_a_lease_counts_from_before_it_was_asked_for(store: S3Store, proxy: Proxy) -> None:
    """The server may have dated the object when the request was sent, however late its answer comes."""
    clock = store._leases.clock = Ahead()

    def slow(line: Line) -> None:
        answer = line.forward()
        clock.ahead = 115.0
        line.send(answer)

    proxy.once("PUT", slow)
    async with store.lock("run") as lease:
        lease.check()
        clock.ahead = 120.1
        with pytest.raises(LockLost):
            lease.check()


async def test_a_renewal_whose_answer_was_lost_counts_from_its_first_attempt(
    store: S3Store, proxy: Proxy, moto_server: S3Server, prefix: str
) -> None:
    """It is recognised as ours; the second attempt gives no time that the server doesn't know of."""
    clock = Ahead()
    lease = RunLease(store._bucket, Keys(prefix), "run", 30.0, clock)
    await lease.acquire()

    def lost(line: Line) -> None:
        line.forward()
        clock.ahead += 10.0
        line.hang_up(reset=True)

    proxy.once("PUT", lost)
    begun = clock.monotonic()
    counts_from = await lease.renew(20.0)
    assert 2 in claims(moto_server, prefix)
    assert counts_from is not None
    assert begun <= counts_from < begun + 1.0


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_a_forked_child_gives_nothing_back(moto_server: S3Server, prefix: str) -> None:
    """A child that leaves the lock's context leaves the lease to its parent."""
    async with S3Store.from_url(f"{moto_server.url(prefix)}&probe=false") as store:
        lock = store.lock("run")
        lease = await lock.__aenter__()
        pid = os.fork()
        if not pid:
            status = 1
            try:
                asyncio.run(asyncio.wait_for(lock.__aexit__(None, None, None), 30))
                with pytest.raises(LockLost, match="stays with the parent"):
                    lease.check()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert [*claims(moto_server, prefix)] == [1]
        lease.check()
        await lock.__aexit__(None, None, None)
        assert [*claims(moto_server, prefix)] == [2]


async def test_a_renewal_that_arrives_after_the_lease_is_void(
    other: S3Store, proxy: Proxy, moto_server: S3Server, prefix: str
) -> None:
    """Even where another took over, gave back and tidied up meanwhile, so that the number was free again."""
    loop = asyncio.get_running_loop()

    async def take_over() -> None:
        while True:
            try:
                async with other.lock("run"):
                    return
            except RunBusy:
                await asyncio.sleep(0.1)

    def held_up(line: Line) -> None:
        asyncio.run_coroutine_threadsafe(take_over(), loop).result()
        line.send(line.forward())

    clock = Ahead()
    async with open_at(proxy.endpoint, prefix, probe=False) as store:
        # Others may take over three seconds after the claim; the holder believes in a minute, which is over in 0.2 s.
        requests = RunLease(store._bucket, Keys(prefix), "run", 3.0, clock)
        lease = RenewedLease("run", requests, seconds=60.0, every=3600.0, clock=clock)
        taken: Future[None] = Future()
        life = asyncio.create_task(lease.live(taken))
        await asyncio.wrap_future(taken)
        clock.ahead = lease._deadline - clock.monotonic() - 0.2
        proxy.once("PUT", held_up)
        await lease._renew()
        with pytest.raises(LockLost, match="not renewed within 60 s"):
            lease.check()
        lease.end()
        await life
    found = claims(moto_server, prefix)
    assert max(found) >= 3
    assert b'"released":true' in found[max(found)]


async def test_an_acquisition_that_arrives_late_is_void(
    store: S3Store, other: S3Store, proxy: Proxy, moto_server: S3Server, prefix: str
) -> None:
    """A number that was taken, given back and removed while our PUT was on its way is not ours, though the PUT succeeds."""
    async with other.lock("run"):
        pass
    loop = asyncio.get_running_loop()

    async def come_and_go() -> None:
        async with other.lock("run"):
            pass
        async with other.lock("run"):
            pass

    def held_up(line: Line) -> None:
        asyncio.run_coroutine_threadsafe(come_and_go(), loop).result()
        line.send(line.forward())

    proxy.once("PUT", held_up)
    async with open_at(proxy.endpoint, prefix, probe=False) as late, late.lock("run"):
        found = claims(moto_server, prefix)
        assert max(found) == 7
        with pytest.raises(RunBusy):
            async with other.lock("run"):
                pass


async def test_a_store_that_stays_away_loses_the_lock_in_time(
    proxy: Proxy, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Renewals are tried until the lease has run out, and not afterwards; the log says so."""
    async with open_at(proxy.endpoint, prefix, read_timeout=0.2, probe=False, lease=1.0) as store, store.lock("run") as lease:
        proxy.fault = faults.refused(503, "SlowDown")
        while True:
            try:
                lease.check()
            except LockLost:
                break
            await asyncio.sleep(0.05)
        while "was not renewed" not in caplog.text:
            await asyncio.sleep(0.01)
    assert proxy.operations["PUT"] > 2


async def test_acquiring_that_is_cancelled_leaves_the_run_free(
    store: S3Store, other: S3Store, proxy: Proxy, moto_server: S3Server, prefix: str
) -> None:
    """Also where the object had been made by then: it is given back, and nobody waits for a lease that none holds."""
    made, go_on = threading.Event(), threading.Event()

    def held_up(line: Line) -> None:
        answer = line.forward()
        made.set()
        go_on.wait(30)
        line.send(answer)

    async def hold() -> None:
        async with store.lock("run"):
            raise AssertionError("it was cancelled before")

    proxy.once("PUT", held_up)
    taking = asyncio.create_task(hold())
    assert await asyncio.to_thread(made.wait, 30)
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    go_on.set()
    async with other.lock("run") as lease:
        lease.check()
    assert [*claims(moto_server, prefix)] == [4]


@pytest.mark.parametrize("held", [False, True], ids=["acquiring", "giving back"])
async def test_a_second_cancellation_leaves_the_run_free(store: S3Store, other: S3Store, proxy: Proxy, held: bool) -> None:
    """As of a task group inside a time limit: giving back goes on to its end, and the cancellation is passed on."""
    made, go_on, inside = threading.Event(), threading.Event(), asyncio.Event()

    def held_up(line: Line) -> None:
        made.set()
        go_on.wait(30)
        line.send(line.forward())

    async def hold() -> None:
        async with store.lock("run"):
            inside.set()
            await asyncio.Event().wait()

    if not held:
        proxy.once("PUT", held_up)
    taking = asyncio.create_task(hold())
    if held:
        await inside.wait()
        proxy.once("PUT", held_up)
        taking.cancel()
    assert await asyncio.to_thread(made.wait, 30)
    for _ in range(3):
        taking.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
    assert not taking.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await taking
    async with other.lock("run") as lease:
        lease.check()


async def test_acquiring_that_fails_half_way_leaves_the_run_free(store: S3Store, other: S3Store, proxy: Proxy) -> None:
    """What was made is given back when the store, or the rights, fail right after."""
    proxy.once("LIST", faults.refused(403, "AccessDenied"), skip=1)
    with pytest.raises(StoreError, match="s3:ListBucket is not allowed"):
        async with store.lock("run"):
            pass
    async with other.lock("run") as lease:
        lease.check()


async def test_a_renewal_that_is_refused_is_tried_again_with_pauses(proxy: Proxy, prefix: str) -> None:
    """Until the lease has run out; a right that was taken away is not asked for twenty times a second."""
    async with open_at(proxy.endpoint, prefix, probe=False, lease=3.0) as store, store.lock("run") as lease:
        proxy.operations.clear()
        proxy.fault = faults.refused(403, "AccessDenied")
        with pytest.raises(LockLost):
            while True:
                lease.check()
                await asyncio.sleep(0.05)
        assert 2 <= proxy.operations["PUT"] <= 6
        proxy.fault = None


async def test_objects_that_could_not_be_removed_are_by_the_next_holder(
    store: S3Store, proxy: Proxy, moto_server: S3Server, prefix: str
) -> None:
    """A DELETE that fails does no harm and is not tried again at once; it is made up for without a request of its own."""
    async with store.lock("run"):
        proxy.once("DELETE", faults.refused(503, "SlowDown"), times=2)
    assert [*claims(moto_server, prefix)] == [2, 1]
    async with store.lock("run"):
        assert [*claims(moto_server, prefix)] == [3, 2, 1]
    assert [*claims(moto_server, prefix)] == [4]
    proxy.once("DELETE", faults.refused(503, "SlowDown"))
    async with store.lock("run"):
        pass
    proxy.fault = None
    assert [*claims(moto_server, prefix)] == [6]


async def test_a_lock_object_that_cant_be_read_is_an_error(store: S3Store, moto_server: S3Server, prefix: str) -> None:
    """It is neither taken for free nor waited for without a word."""
    client = moto_server.client()
    client.put_object(Bucket=BUCKET, Key=Keys(prefix).lease("run", 1), Body=b"{")
    client.close()
    with pytest.raises(StoreError, match=r"the lock object .* can't be read"):
        async with store.lock("run"):
            pass


async def test_a_server_without_a_date_is_an_error(store: S3Store, other: S3Store, proxy: Proxy) -> None:
    def undated(line: Line) -> None:
        answer = line.forward()
        line.send(answer._replace(headers=[(name, value) for name, value in answer.headers if name != "Date"]))

    async with other.lock("run"):
        proxy.fault = undated
        with pytest.raises(StoreError, match="no Date header"):
            async with store.lock("run"):
                pass


def contend(connection: Connection, endpoint: str, prefix: str, ahead: float, times: int) -> None:
    """Hold the lock again and again on a machine whose clock is `ahead`; send when it was inside, by the true clock."""
    true_clock, true_ns = time.time, time.time_ns
    time.time, time.time_ns = lambda: true_clock() + ahead, lambda: true_ns() + int(ahead * 1e9)

    async def main() -> list[tuple[float, float]]:
        import botocore.auth

        shift = timedelta(seconds=ahead)
        signed = botocore.auth.get_current_datetime
        botocore.auth.get_current_datetime = lambda **options: signed(**options) + shift
        inside = []
        async with open_at(endpoint, prefix, probe=False, lease=5.0) as store:
            while len(inside) < times:
                try:
                    async with store.lock("run") as lease:
                        began = time.monotonic()
                        await asyncio.sleep(0.05)
                        ended = time.monotonic()
                        lease.check()  # of one that was held up for longer than its lease nothing is said
                        inside.append((began, ended))
                except (RunBusy, LockLost):
                    await asyncio.sleep(0.01)
        return inside

    connection.send(asyncio.run(main()))


async def test_holders_whose_clocks_differ_are_never_inside_together(moto_server: S3Server, prefix: str) -> None:
    """Neither five seconds nor an hour between the machines' clocks matter: no age is taken from them."""
    running = []
    for ahead in (-5.0, 0.0, 3600.0):
        mine, theirs = SPAWN.Pipe()
        process = SPAWN.Process(target=contend, args=(theirs, moto_server.endpoint, prefix, ahead, 4), daemon=True)
        process.start()
        running.append((process, mine))
    spans: list[tuple[float, float]] = []
    for process, mine in running:
        found: Any = await asyncio.to_thread(mine.recv)
        spans += found
        await asyncio.to_thread(process.join)
        process.close()
    spans.sort()
    assert len(spans) == 12
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


async def test_a_lost_machines_lock_is_taken_after_expiry_and_not_before(moto_server: S3Server, prefix: str) -> None:
    """By the server's clock: its age is at least the lease that the holder wrote, whatever the taker's own is set to."""
    async with open_at(moto_server.endpoint, prefix, probe=False, lease=1.0) as taker:
        lost = RunLease(taker._bucket, Keys(prefix), "run", 3.0, SystemClock())
        began = time.monotonic()
        await lost.acquire()
        with pytest.raises(RunBusy, match=r"held by process \d+ on .* since 20"):
            async with taker.lock("run"):
                pass
        while True:
            try:
                async with taker.lock("run"):
                    break
            except RunBusy:
                await asyncio.sleep(0.02)
        assert time.monotonic() - began >= 3.0


async def test_old_objects_of_a_long_hold_are_removed_together(
    store: S3Store, proxy: Proxy, moto_server: S3Server, prefix: str
) -> None:
    """A renewal is one PUT; the objects that it makes old are removed by one DELETE in twenty."""
    lease = RunLease(store._bucket, Keys(prefix), "run", 600.0, SystemClock(), batch=20)
    await lease.acquire()
    proxy.operations.clear()
    for _ in range(41):
        assert await lease.renew(20.0) is not None
    assert proxy.operations == {"PUT": 41, "DELETE": 2}
    assert max(claims(moto_server, prefix)) == 42
    await lease.release()
    assert [*claims(moto_server, prefix)] == [43]


async def test_a_lock_does_not_wait_behind_other_requests(moto_server: S3Server, prefix: str) -> None:
    """Requests that hang, as many as there are connections, cost no run its lease."""
    client = client_of(moto_server.endpoint, connections=1)
    go_on = threading.Event()
    async with S3Store(client, BUCKET, prefix, probe=False) as store:
        hanging = asyncio.create_task(store._connection.run(go_on.wait, 60))
        try:
            await asyncio.sleep(0)
            async with asyncio.timeout(20), store.lock("run") as lease:
                lease.check()
        finally:
            go_on.set()
            await hanging
    client.close()
