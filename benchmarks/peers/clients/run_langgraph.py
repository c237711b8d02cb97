"""LangGraph's functional API: an entrypoint of ten tasks with a checkpointer; `?durability=` is put after the URL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from harness import STEPS, Peer, Settled, flows, main, work
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.func import entrypoint, task
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

step = task(work)


class Killed(Exception):
    """Ends an entrypoint whose tasks are recorded: LangGraph saves them by the time that it raises this."""


class Runs(Settled):
    def __init__(self, saver: Any, durability: str) -> None:
        @entrypoint(checkpointer=saver)
        async def ten(name: str) -> None:
            flows.begin(name)
            for number in range(STEPS):
                await step(number)
            if flows.holding:
                raise Killed
            flows.end(name)

        self._ten = ten
        self._durability = durability

    async def _one(self, name: str, *, resuming: bool = False) -> None:
        config = {"configurable": {"thread_id": name}}
        with suppress(Killed):
            await self._ten.ainvoke(None if resuming else name, config, durability=self._durability)
        flows.hold()

    async def run(self, names: Sequence[str]) -> None:
        await asyncio.gather(*map(self._one, names))

    async def resume(self, names: Sequence[str]) -> None:
        await asyncio.gather(*(self._one(name, resuming=True) for name in names))


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Peer]:
    url, _, durability = url.partition("?durability=")
    if url.startswith("sqlite:"):
        async with AsyncSqliteSaver.from_conn_string(url.removeprefix("sqlite:")) as saver:
            yield Runs(saver, durability)
        return
    options = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    async with AsyncConnectionPool(url, max_size=20, kwargs=options) as pool:
        postgres = AsyncPostgresSaver(pool)  # type: ignore[arg-type]
        await postgres.setup()
        yield Runs(postgres, durability)


if __name__ == "__main__":
    main(opened)
