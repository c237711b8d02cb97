"""The flow that every system runs, when it is timed, and the modes of a client program; the standard library alone.

A client is started as `python CLIENT URL MODE ROUND`, opens its system as its own documentation says, and prints lines of JSON.
All clocks run from the call that asks for the runs until the function of the last flow returns: what a system does after that,
such as recording the result of the whole flow, is not counted for anybody.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from statistics import median
from time import perf_counter, time
from typing import Protocol

STEPS = 10
VALUE = "x" * 200
ALONE = 15
MANY = (50, 200)
RESUMED = 200


class Peer(Protocol):
    """A system that is ready to run flows."""

    async def run(self, names: Sequence[str]) -> None:
        """Run the flow under each of these names, all at once, until all have ended."""

    async def settle(self) -> None:
        """Return once the runs whose steps are recorded are as their process can be killed, if the system needs that."""

    async def resume(self, names: Sequence[str]) -> None:
        """Continue runs whose ten steps another process recorded, until all have ended."""


class Settled:
    """A system whose runs can be killed at any time."""

    async def settle(self) -> None:
        return


class Flows:
    """When the flows of this process began and ended, and their steps' functions."""

    def __init__(self) -> None:
        self.holding = False
        self.expect(0)

    def expect(self, runs: int) -> None:
        self._runs = runs
        self._at_the_end = 0
        self.began: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self.steps: list[tuple[float, float]] = []
        self.all_ended = asyncio.Event()
        self.all_held = asyncio.Event()

    def begin(self, name: str) -> None:
        self.began[name] = perf_counter()

    def hold(self) -> bool:
        """Tell whether a flow whose steps are recorded stops here, because its process will be killed."""
        self._at_the_end += 1
        if self._at_the_end == self._runs:
            self.all_held.set()
        return self.holding

    def end(self, name: str) -> None:
        self.ended[name] = perf_counter()
        if len(self.ended) == self._runs:
            self.all_ended.set()


flows = Flows()


async def work(number: int) -> str:
    """The function of every step."""
    began = time()
    flows.steps.append((began, time()))
    return VALUE


async def held() -> None:
    """Wait for the end of the process, in a flow that is to be resumed."""
    await asyncio.Event().wait()


def tell(found: dict[str, object]) -> None:
    """Print what the command that started this program reads."""
    print(json.dumps(found), flush=True)


async def timed(peer: Peer, names: Sequence[str]) -> float:
    flows.expect(len(names))
    gc.collect()
    began = perf_counter()
    await peer.run(names)
    return max(flows.ended.values()) - began


async def measure(peer: Peer, prefix: str) -> None:
    """Tell the seconds of one run alone, from its function's start to its end, and of 50 and 200 at once."""
    await timed(peer, [f"{prefix}-warm-{number}" for number in range(20)])
    alone = []
    for number in range(ALONE):
        name = f"{prefix}-1-{number}"
        await timed(peer, [name])
        alone.append(flows.ended[name] - flows.began[name])
    tell({"1": median(alone)})
    for runs in MANY:
        tell({str(runs): await timed(peer, [f"{prefix}-{runs}-{number}" for number in range(runs)])})


async def record(peer: Peer, names: Sequence[str]) -> None:
    """Record the steps of runs, tell when all have, and wait to be killed."""
    flows.holding = True
    flows.expect(len(names))
    running = asyncio.ensure_future(peer.run(names))
    await asyncio.wait([running, asyncio.ensure_future(flows.all_held.wait())], return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()
    await peer.settle()
    tell({"held": len(names)})
    await held()


async def trace(peer: Peer) -> None:
    """Tell when the steps of one run began and ended, by the clock that strace reads."""
    await timed(peer, ["trace-warm-1"])
    await timed(peer, ["trace-warm-2"])
    await timed(peer, ["trace"])
    tell({"steps": flows.steps})


async def client(opening: Callable[[str], AbstractAsyncContextManager[Peer]], url: str, mode: str, round_: str) -> None:
    names = [f"resumed-{round_}-{number}" for number in range(RESUMED)]
    if mode == "resume":
        flows.expect(RESUMED)
    async with opening(url) as peer:
        if mode == "measure":
            await measure(peer, f"round-{round_}")
        elif mode == "trace":
            await trace(peer)
        elif mode == "record":
            await record(peer, names)
        elif mode == "resume":
            await peer.resume(names)
            if flows.steps:
                raise SystemExit(f"{len(flows.steps)} steps ran again")
            tell({"resumed": max(flows.ended.values()) - min(flows.began.values())})
        else:
            raise SystemExit(f"unknown mode {mode!r}")


def main(opening: Callable[[str], AbstractAsyncContextManager[Peer]]) -> None:
    url, mode, round_ = sys.argv[1:4]
    asyncio.run(client(opening, url, mode, round_))
