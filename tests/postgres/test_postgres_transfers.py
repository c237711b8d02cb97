"""Money moves exactly once, whoever is killed."""

import asyncio
import random
import sys

import asyncpg
import pytest

from durable_postgres import PostgresStore

pytestmark = pytest.mark.asyncio

TRANSFERS, PROCESSES, KILLS, ACCOUNTS = 400, 4, 8, 20

WORKER = """
import asyncio, random, sys
from durable_core import Runner
from durable_postgres import PostgresStore

url, accounts, transfers, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

def move(number):
    source, target = random.Random(number).sample(range(count), 2)

    async def fn(connection):
        await connection.execute("set local deadlock_timeout = '5ms'")  # there will be many
        for account, amount in ((source, -1), (target, 1)):
            await connection.execute(
                f"update {accounts} set balance = balance + $2, moves = moves || $3::int where id = $1", account, amount, number
            )

    return fn

async def main():
    numbers = list(range(transfers))
    random.shuffle(numbers)
    async with PostgresStore.from_url(url) as store:
        async def work():
            while numbers:
                number = numbers.pop()
                await Runner(store, f"transfer-{number}").transaction("move", move(number))
        await asyncio.gather(*(work() for _ in range(4)))

asyncio.run(main())
"""


async def test_transfers_by_processes_that_are_killed(postgres_server_url: str, postgres_url: str) -> None:
    """Transfers by four processes under random SIGKILL: the sum is unchanged, and each was made exactly once."""
    schema = postgres_url.rpartition("schema=")[2]
    accounts = f"{schema}.accounts"
    observer = await asyncpg.connect(postgres_server_url)
    async with PostgresStore.from_url(postgres_url) as store:
        await store.list("run")
    await observer.execute(
        f"create table {accounts} (id int primary key, balance bigint default 100, moves int[] default '{{}}')"
    )
    await observer.execute(f"insert into {accounts} (id) select generate_series(0, {ACCOUNTS - 1})")

    async def spawn() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-c", WORKER, postgres_url, accounts, f"{TRANSFERS}", f"{ACCOUNTS}"
        )

    async def progress(made: int) -> None:
        while await observer.fetchval(f"select count(*) from {schema}.steps") < made:
            await asyncio.sleep(0.005)

    processes = [await spawn() for _ in range(PROCESSES)]
    for made in sorted(random.sample(range(1, TRANSFERS * 9 // 10), KILLS)):
        await progress(made)
        victim = processes.pop(random.randrange(PROCESSES))
        victim.kill()
        await victim.wait()
        processes.append(await spawn())
    assert [await process.wait() for process in processes] == [0] * PROCESSES

    rows = await observer.fetch(f"select balance, moves from {accounts}")
    assert sum(row["balance"] for row in rows) == 100 * ACCOUNTS
    moves = sorted(number for row in rows for number in row["moves"])
    assert moves == sorted([*range(TRANSFERS)] * 2), "each transfer once on either side"
    assert await observer.fetchval(f"select count(*) from {schema}.steps") == TRANSFERS
    await observer.close()
