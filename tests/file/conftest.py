"""What the tests of durable-file share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from tests.file.support import Child

# What only POSIX has: signals that can't be caught, fork, limits on files, modes.
collect_ignore_glob = ["test_posix_*.py"] if sys.platform == "win32" else []

_PREAMBLE = """
import asyncio, os, sys
from durable_core import StepRecord
from durable_file import FileStore
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The path of one log, in a folder that doesn't exist yet."""
    return tmp_path / "logs" / "all.jsonl"


@pytest.fixture(params=["folder", "one log"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A path of each kind."""
    return tmp_path / ("runs" if request.param == "folder" else "runs.jsonl")


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
