"""What really happened, written down beside the store: a line for each thing that a process did, with its name and the time."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Final

import msgspec

_encode: Final = msgspec.json.encode


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that happened."""

    at: float
    """The machine's monotonic clock, which all its processes share."""
    who: str
    """The name of one life of a process."""
    what: str
    run: str = ""
    step: str = ""
    attempt: int = 0
    kind: str = ""
    until: float = 0


_decode: Final = msgspec.json.Decoder(Line).decode


class Side:
    """The file of these lines; every process of a soak appends to it."""

    def __init__(self, path: Path, who: str) -> None:
        self.who: Final = who
        self.path: Final = path
        self._file: Final = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._read = 0

    def note(self, what: str, run: str = "", step: str = "", *, who: str = "", **more: Any) -> None:
        """Append a line; one write, so that it is there as a whole or not at all, whenever the process is killed."""
        os.write(self._file, _encode(Line(time.monotonic(), who or self.who, what, run, step, **more)) + b"\n")

    def news(self) -> list[Line]:
        """Return the lines that were not read here before."""
        with self.path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]
        self._read += len(data)
        return [_decode(line) for line in data.splitlines()]


_sides: Final[list[Side]] = []


def begin_life(path: Path, who: str) -> Side:
    """Have this process note what it does under a name."""
    side = Side(path, who)
    _sides[:] = [side]
    return side


def note(what: str, run: str = "", step: str = "", **more: Any) -> None:
    """Append a line under the name of this process."""
    _sides[0].note(what, run, step, **more)
