"""Programs that the tests kill: `python programs.py COMMAND URL LEDGER KILL_AFTER`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from durable_core import Runner, flow, open_store

ITEMS = 5_000
LIMIT = 20
_KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has one way to kill
KILLED = _KILL if sys.platform == "win32" else -_KILL
"""How a process exits that killed itself."""


class Ledger:
    """A file with a line for each effect, which is there at once, whatever becomes of the process."""

    left = 0
    """How many effects until the process kills itself; 0 for never."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def add(self, line: str) -> None:
        os.write(self._fd, f"{line}\n".encode())
        Ledger.left -= 1
        if Ledger.left == 0:
            os.kill(os.getpid(), _KILL)


@flow
async def total(runner: Runner, *, ledger: str) -> int:
    """Add up many numbers, each in a step of its own."""
    book = Ledger(ledger)

    async def work(number: int) -> int:
        await asyncio.sleep(0)
        book.add(str(number))
        return number

    return sum(await runner.map("work", work, range(ITEMS), limit=LIMIT))


@flow
async def trip(runner: Runner, *, ledger: str) -> str:
    """Book whatever is there first."""
    book = Ledger(ledger)

    async def reserve(what: str) -> str:
        book.add(what)
        return what

    async def air() -> str:
        await runner.sleep("queue", 0.05)
        return await runner.step("air", reserve, "air")

    async def rail() -> str:
        await runner.sleep("desk", 0.05)
        return await runner.step("rail", reserve, "rail")

    name, _ = await runner.first("quickest", air=air, rail=rail, boss=lambda: runner.approval("boss"))
    await runner.sleep("afterwards", 0.05)
    return name


async def main(command: str, url: str, ledger: str, kill_after: str) -> None:
    Ledger.left = int(kill_after)
    async with open_store(url) as store:
        print(await (total if command == "total" else trip).run(store, "run", ledger=ledger))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
