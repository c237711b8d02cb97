"""What the tests of durable-sqlite share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

# What only POSIX has: signals that can't be caught, fork, limits on files, modes.
collect_ignore_glob = ["test_sqlite_posix*.py"] if sys.platform == "win32" else []

Child = Callable[..., "subprocess.Popen[str]"]

_PREAMBLE = """
import asyncio, os, sys
from durable_core import Runner, StepRecord, StoreError
from durable_sqlite import SqliteStore
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of a database that doesn't exist yet."""
    return tmp_path / "runs.db"


@pytest.fixture
def child() -> Iterator[Child]:
    """Start `python -c` with the names above imported; what is left at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(script: str, *args: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "error", "-c", _PREAMBLE + dedent(script), *map(str, args)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
