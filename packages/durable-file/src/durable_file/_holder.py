"""Who holds a lock, written down for those who find it taken."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Final

import msgspec

# The table lies in front of the locks. A slot is shared by chance only, and then the holder is not known: 4 MiB at most.
_SLOTS: Final = 16 * 1024
_SIZE: Final = 256
TABLE: Final = _SLOTS * _SIZE


class Holder(msgspec.Struct, frozen=True):
    """A process that took the lock at `position`."""

    position: int
    pid: int
    host: str
    program: str
    since: datetime

    @classmethod
    def here(cls, position: int) -> Holder:
        return cls(position, os.getpid(), *_program(), datetime.now(UTC))

    def __str__(self) -> str:
        if self.pid == os.getpid() and self.host == _program()[0]:
            return f"another runner in this process ({self.pid})"
        return f"process {self.pid} on {self.host} ({self.program})"


_decode: Final = msgspec.json.Decoder(Holder).decode


@cache
def _program() -> tuple[str, str]:
    argv = getattr(sys, "argv", None) or [""]
    program = Path(argv[0]).name or "python"
    return _clip(platform.node()), _clip(program)


def _clip(text: str) -> str:
    return "".join(character for character in text if character.isascii() and character.isprintable())[:40]


def write_holder(fd: int, holder: Holder) -> None:
    """Write down who took the lock."""
    os.lseek(fd, holder.position % _SLOTS * _SIZE, os.SEEK_SET)
    os.write(fd, msgspec.json.encode(holder).ljust(_SIZE - 1) + b"\n")


def read_holder(fd: int, position: int) -> Holder | None:
    """Return who took the lock, if that can still be read."""
    os.lseek(fd, position % _SLOTS * _SIZE, os.SEEK_SET)
    try:
        holder = _decode(os.read(fd, _SIZE))
    except msgspec.DecodeError:
        return None
    return holder if holder.position == position else None
