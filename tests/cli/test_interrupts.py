"""Ctrl-C, whatever a command waits for."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator

import psutil
import pytest

from durable_cli._asked import Asked
from durable_core import Store, StoreError
from tests.cli.terminal import Terminal, until


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        yield server


@pytest.mark.parametrize("command", ["runs", "show r", "watch r", "wait r", "why r", "pending"])
def test_ctrl_c_ends_a_command_that_looks(terminal: Callable[..., Terminal], silent: socket.socket, command: str) -> None:
    """At once, with exit code 130 and no traceback, also while a store does not answer."""
    screen = terminal(*command.split(), "--store", f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
    connection, _ = silent.accept()
    with connection:
        assert connection.recv(1)  # it has asked
        until(lambda: psutil.Process(screen.process.pid).status() == psutil.STATUS_SLEEPING)  # and waits for the answer
        screen.interrupt()
        assert screen.end(within=10) == 130, screen.plain
    assert "Traceback" not in screen.seen


def test_a_driver_that_takes_ctrl_c_for_a_timeout() -> None:
    """Some do: what they raise then is no answer to whoever pressed Ctrl-C."""

    async def work(store: Store) -> None:
        signal.raise_signal(signal.SIGINT)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise StoreError("no answer") from None

    with pytest.raises(KeyboardInterrupt):
        Asked("memory:", as_json=False).run(work)
