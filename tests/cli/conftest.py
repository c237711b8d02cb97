"""What the tests of the command share: every store, the command in this process, and on a terminal."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from typing import Any, NamedTuple

import pytest

from durable_cli.main import main
from tests.cli.seeds import filled
from tests.cli.terminal import Terminal
from tests.every_store.conftest import (
    ministack_server,
    postgres_server_url,
    postgres_url,
    redis_server_url,
    redis_url,
    s3_credentials,
    s3_url,
    url,
)

__all__ = [
    "ministack_server",
    "postgres_server_url",
    "postgres_url",
    "redis_server_url",
    "redis_url",
    "s3_credentials",
    "s3_url",
    "url",
]


class Done(NamedTuple):
    """What came of a command."""

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[Any]:
        """What `--json` printed: one object a line."""
        return [json.loads(line) for line in self.out.splitlines()]


Durable = Callable[..., Done]


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with a run in each state, to be looked at."""
    return filled(f"sqlite:{tmp_path_factory.mktemp('seeded') / 'runs.db'}")


@pytest.fixture
def durable(monkeypatch: pytest.MonkeyPatch) -> Durable:
    """Call the command in this process, as a pipe would see it: `durable("runs", "--store", url)`."""
    monkeypatch.delenv("DURABLE_STORE", raising=False)

    def call(*args: object, input: str = "") -> Done:
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
        code = 0
        with monkeypatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(input.encode()), encoding="utf-8"))
            try:
                main([str(arg) for arg in args])
            except SystemExit as left:
                code = left.code if isinstance(left.code, int) else 1
        return Done(code, *(each.buffer.getvalue().decode() for each in (out, err)))  # type: ignore[attr-defined]

    return call


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    """Start the command on a terminal of its own: `terminal("show", "r1", columns=80)`."""
    with ExitStack() as stack:

        def start(*args: object, **options: Any) -> Terminal:
            command = [sys.executable, "-m", "durable_cli", *map(str, args)]
            return stack.enter_context(Terminal(command, **options))

        yield start
