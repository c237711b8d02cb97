"""A line on the terminal that counts runs."""

from __future__ import annotations

import sys
from shutil import get_terminal_size
from typing import Final, Self


class Progress:
    """Shows how many runs have ended, and erases the line at the end of the block. Does nothing if stderr is not a terminal."""

    def __init__(self, name: str, *, total: int) -> None:
        self._name: Final = name
        self._shows: Final = sys.stderr.isatty()
        self._done = 0
        self.total = total

    def advance(self) -> None:
        """Count one more run that has ended."""
        self._done += 1
        self._write(f"crash_everywhere: {self._done} of {self.total} runs of {self._name!r}")

    def _write(self, text: str) -> None:
        if self._shows:
            width = get_terminal_size().columns - 1  # a full line would make the terminal begin another one
            sys.stderr.write(f"\r{text[:width]:<{width}}\r")
            sys.stderr.flush()

    def __enter__(self) -> Self:
        self._write(f"crash_everywhere: 0 of {self.total} runs of {self._name!r}")
        return self

    def __exit__(self, *_: object) -> None:
        self._write("")
