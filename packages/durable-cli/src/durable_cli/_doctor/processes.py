"""Starts other processes that use the same store, and sends commands to them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE
from contextlib import suppress
from typing import Any, Final, Self

from durable_core import StepRecord, StoreError

from .child import wire

_LINE: Final = 2**24  # bytes
_PATIENCE: Final = 5.0  # seconds to end by itself


class OtherProcess:
    """A new interpreter that runs `child.py`. It opens the store, and does one command at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process: Final = process
        self._asked: Final = process.stdin
        self._answers: Final = process.stdout
        self._turn: Final = asyncio.Lock()

    @classmethod
    async def start(cls, url: str) -> Self:
        """Start a process, and wait until it has opened the store."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", f"{__package__}.child"),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},  # so that it imports from the same places
            limit=_LINE,
            start_new_session=True,  # Ctrl-C reaches only this process, which then ends the others
        )
        other = cls(process)
        try:
            await other.ask("open", url=url)  # not an argument on the command line: it may contain a password
        except BaseException:
            await other.kill()
            raise
        return other

    async def append(self, *records: StepRecord, together: bool = True) -> list[StepRecord]:
        """Append records, together or one by one. Return the holders of their slots."""
        return read(await self.ask("append", records=wire(records), together=together))

    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        """Return the newest entry of a step."""
        return next(iter(read(await self.ask("get", run_id=run_id, step_id=step_id))), None)

    async def list(self, run_id: str) -> list[StepRecord]:
        """Return all entries of a run."""
        return read(await self.ask("list", run_id=run_id))

    async def ask(self, do: str, **given: Any) -> Any:
        """Have the process call a method of `Child`, and return the result."""
        async with self._turn:
            self._asked.write(json.dumps([do, given]).encode() + b"\n")
            with suppress(ConnectionError):  # the missing answer raises the better error
                await self._asked.drain()
            line = await self._answers.readline()
        if not line:
            raise StoreError(f"another process that used the store ended, with exit code {await self._process.wait()}")
        failed, answer = json.loads(line)
        if failed:
            raise StoreError(f"in another process: {answer}")
        return answer

    async def kill(self) -> None:
        """End the process as a crash does."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.communicate()  # read its pipes to the end

    async def end(self) -> None:
        """Let the process give back its locks and end."""
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._process.communicate()
        finally:
            await self.kill()

    @property
    def is_alive(self) -> bool:
        return self._process.returncode is None


def read(lines: list[str]) -> list[StepRecord]:
    """Decode records from another process."""
    return [StepRecord.from_json(line) for line in lines]
