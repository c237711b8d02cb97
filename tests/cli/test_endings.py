"""How the command ends."""

import os
import signal
import subprocess
import sys

import pytest

from tests.cli.acting import asked, on_url
from tests.cli.conftest import Durable

COMMAND = [sys.executable, "-m", "durable_cli"]


def test_a_run_that_is_not_there_is_exit_code_3(durable: Durable, url: str) -> None:
    """Each store is opened by its URL, and a run that it doesn't hold is not found."""
    on_url(url, lambda store: asked(store, "r1"))
    done = durable("why", "nobody", "--store", url)
    assert (done.code, done.out) == (3, "")
    assert "there is no run 'nobody'" in done.err


@pytest.mark.parametrize("args", [("--help",), ("runs", "--help"), ("stores",)])
def test_nobody_reads_what_is_printed(args: tuple[str, ...]) -> None:
    """`durable … | true` ends quietly, as any program does there; help is no exception."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([*COMMAND, *args], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_a_terminal_of_ascii_shows_bars(seeded: str) -> None:
    """Where a letter can't be written there is a plainer one: a timeline stays one."""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    command = [*COMMAND, "show", "refund-1", "--store", seeded]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="ascii", check=True).stdout
    assert "?" not in shown
    assert "#" in shown
