"""The floor on PostgreSQL: ten inserts by hand on held connections, each committed by itself, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import asyncpg
from harness import STEPS, Peer, Settled, flows, main, work

CONNECTIONS = 20
TABLE = "create table if not exists floor (run text, step text, result text, primary key (run, step))"


class Runs(Settled):
    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def _one(self, name: str) -> None:
        flows.begin(name)
        for number in range(STEPS):
            value = await work(number)
            await self._pool.execute("insert into floor values ($1, $2, $3)", name, f"step-{number}", value)
        flows.end(name)

    async def run(self, names: Sequence[str]) -> None:
        await asyncio.gather(*map(self._one, names))

    async def resume(self, names: Sequence[str]) -> None:
        raise NotImplementedError("inserts by hand resume nothing")


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Peer]:
    async with asyncpg.create_pool(url, min_size=CONNECTIONS, max_size=CONNECTIONS) as pool:
        await pool.execute(TABLE)
        yield Runs(pool)


if __name__ == "__main__":
    main(opened)
