"""Processes of the tests' own: one that has imported everything forks each of them, and they import nothing again."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any

CONTEXT: Any = multiprocessing.get_context("forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn")
CONTEXT.set_forkserver_preload(
    [
        *("tests.every_store.programs", "tests.every_store.stopping"),
        *("durable_file", "durable_postgres", "durable_redis", "durable_s3", "durable_sqlite"),
    ]
)


async def exit_code(process: Any, seconds: float) -> int | None:
    """Wait for the end of a process, and return its exit code; None where it goes on for longer.

    It is asked for in this thread alone. `multiprocessing` looks at all its processes whenever it starts one, and of two threads
    that look at one at the same time the second reads that its code is 255.
    """
    deadline = monotonic() + seconds
    while process.exitcode is None and monotonic() < deadline:
        await asyncio.sleep(0.01)
    code: int | None = process.exitcode
    return code


def answer_of_fork(act: Callable[[], Coroutine[Any, Any, str]]) -> str:
    """Let a fork of this process act; return what it returned, or how it ended."""
    theirs, mine = os.pipe()
    if not (child := os.fork()):
        answer = "failed"
        try:
            answer = asyncio.run(act())
        finally:
            os.write(mine, answer.encode())
            os._exit(0)
    os.close(mine)
    with os.fdopen(theirs) as pipe:
        answer = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return answer if code == 0 else f"exit code {code}"
