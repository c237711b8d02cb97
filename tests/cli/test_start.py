"""What it costs to start the command."""

from __future__ import annotations

import subprocess
import sys

import pytest

LATE = ("asyncio", "durable_core", "rich", "msgspec")


def imported_by(*args: str) -> set[str]:
    """Return the modules that a command has imported when it ends, in a process of its own."""
    program = (
        "import sys\nfrom durable_cli.main import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "sys.stderr.write(' '.join(sys.modules))"
    )
    command = [sys.executable, "-c", program, *args]
    return {*subprocess.run(command, capture_output=True, text=True, check=True).stderr.split()}


@pytest.mark.parametrize("args", [["--help"], ["runs", "--help"], ["--version"]])
def test_help_imports_neither_the_library_nor_what_draws(args: list[str]) -> None:
    """It shows as soon as click is there."""
    assert not imported_by(*args) & {*LATE}


def test_json_imports_nothing_that_draws() -> None:
    """A program that reads it does not wait for that."""
    modules = imported_by("runs", "--json", "--store", "memory:")
    assert "durable_core" in modules
    assert "rich" not in modules
