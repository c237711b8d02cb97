"""What an MCP server lists and does is recorded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="one process that has imported everything forks the others")
def test_calls_of_a_server_are_steps(tmp_path: Path) -> None:
    """A call that was under way at SIGKILL is made again as its metadata says, one that had ended is not; nor is a server asked
    for its tools again, or started where nothing is called."""
    ledger = tmp_path / "ledger"
    acts = ["call", "", "retry", "request", "", ""]
    command = [sys.executable, "-m", "tests.pydantic_ai.programs", f"sqlite:{tmp_path / 'runs.db'}", str(ledger), *acts]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=270)
    killed, said = "exit code -9", "It is sunny in Rome."
    assert json.loads(done.stdout) == [killed, "interrupted", "retried", killed, said, said]
    assert ledger.read_text().split() == ["started", "Rome", "started", "Rome"]
