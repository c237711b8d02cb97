"""`serve` in a real process: it works until it is told to stop, and ends in good order."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from durable_core import Runner, control, flow, open_store
from durable_core.errors import DurableError
from durable_core.stores.memory import MemoryStore
from durable_worker import Worker

PROGRAM = """
import asyncio, sys
from durable_core import flow, open_store
from durable_worker import Worker

@flow
async def slow(runner, seconds):
    await runner.step("slow", asyncio.sleep, seconds)
    await runner.step("next", asyncio.sleep, 0)

async def main():
    async with open_store(sys.argv[1]) as store:
        print("begins", flush=True)
        await Worker(store, [slow], shutdown_timeout=30).serve()
        print("ends", flush=True)

asyncio.run(main())
"""


@flow
async def slow(runner: Runner, seconds: float) -> None:
    await runner.step("slow", asyncio.sleep, seconds)
    await runner.step("next", asyncio.sleep, 0)


async def until_begun(url: str, process: subprocess.Popen[str]) -> None:
    """Wait until the process drives the run."""
    async with asyncio.timeout(30), open_store(url) as store:
        while (await control.status(store, "run")).status != "running":
            assert process.poll() is None
            await asyncio.sleep(0.05)


@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("seconds", [1.0, 600.0])
async def test_a_signal_ends_it(tmp_path: Path, number: signal.Signals, seconds: float) -> None:
    """A step that runs may end; a second signal cancels one that takes too long. The run is left to others, not held."""
    url = f"sqlite:{tmp_path / 'runs.db'}"
    async with open_store(url) as store:
        await slow.start(store, "run", seconds=seconds)
    with subprocess.Popen([sys.executable, "-c", PROGRAM, url], stdout=subprocess.PIPE, text=True) as process:
        try:
            await until_begun(url, process)
            process.send_signal(number)
            if seconds > 1:
                with pytest.raises(subprocess.TimeoutExpired):
                    await asyncio.to_thread(process.wait, 1)
                process.send_signal(number)
            output, _ = await asyncio.to_thread(process.communicate, timeout=20)
        finally:
            process.kill()
    assert (process.returncode, output.split()) == (0, ["begins", "ends"])
    async with open_store(url) as store:
        assert (await control.status(store, "run")).status == "waiting"
        steps = [record.step_id for record in await store.list("run") if not record.step_id.startswith("$")]
        assert steps == (["slow"] if seconds == 1 else [])


async def test_it_serves_in_the_main_thread_only() -> None:
    """Elsewhere no signal arrives: the error says what to write."""
    errors: list[BaseException] = []

    def elsewhere() -> None:
        try:
            asyncio.run(Worker(MemoryStore(), [slow]).serve())
        except DurableError as error:
            errors.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert "serve() must run in the main thread" in str(errors[0])


@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
async def test_the_handlers_of_before_are_there_again() -> None:
    """Who calls `serve` gets back what it had."""
    before = signal.getsignal(signal.SIGTERM)
    task = asyncio.create_task(Worker(MemoryStore(), [slow]).serve())
    while signal.getsignal(signal.SIGTERM) is before:
        await asyncio.sleep(0)
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(10):
        await task
    assert signal.getsignal(signal.SIGTERM) is before
