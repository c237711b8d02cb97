"""The floor on SQLite: ten inserts by hand in one thread, each committed by itself, and nothing else."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from harness import STEPS, Peer, Settled, flows, main, work

TABLE = "create table if not exists floor (run text, step text, result text, primary key (run, step))"


class Runs(Settled):
    def __init__(self, path: str) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1)

    def connect(self) -> None:
        self._connection = sqlite3.connect(self._path, isolation_level=None)
        self._connection.executescript(f"pragma journal_mode=wal; pragma synchronous=full; {TABLE}")

    async def call(self, function: object, *arguments: object) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)  # type: ignore[arg-type]

    def _insert(self, *values: str) -> None:
        self._connection.execute("insert into floor values (?, ?, ?)", values)

    async def _one(self, name: str) -> None:
        flows.begin(name)
        for number in range(STEPS):
            await self.call(self._insert, name, f"step-{number}", await work(number))
        flows.end(name)

    async def run(self, names: Sequence[str]) -> None:
        await asyncio.gather(*map(self._one, names))

    async def resume(self, names: Sequence[str]) -> None:
        raise NotImplementedError("inserts by hand resume nothing")


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Peer]:
    runs = Runs(url.removeprefix("sqlite:"))
    await runs.call(runs.connect)
    yield runs


if __name__ == "__main__":
    main(opened)
