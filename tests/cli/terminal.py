"""A program on a terminal, as a person has it; on POSIX only."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from typing import Self


class Terminal:
    """Runs a command on a pseudo-terminal of so many columns; `seen` is all that it wrote."""

    def __init__(
        self, command: Sequence[str], *, columns: int = 80, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        self.seen = ""
        self._from = 0
        self._fd, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))

        def take_terminal() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C reaches it

        environment = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "DURABLE_STORE")}
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**environment, "TERM": "xterm-256color", "PYTHONUNBUFFERED": "1", **(env or {})},
            cwd=cwd,
            preexec_fn=take_terminal,
        )
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.close(self._fd)

    def expect(self, pattern: str, *, within: float = 60) -> re.Match[str]:
        """Read until a pattern shows in what was written, and return the match; what comes next is searched from there on."""
        start, deadline = self._from, monotonic() + within
        while (found := re.compile(pattern, re.DOTALL).search(self.seen, start)) is None:
            assert self._read(deadline), f"{pattern!r} was not seen in:\n{self.seen[start:]}"
        self._from = found.end()
        return found

    @property
    def plain(self) -> str:
        """What was written, without colours and movements of the cursor."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.seen).replace("\r\n", "\n")

    def type(self, text: str) -> None:
        """Write text as a keyboard does."""
        os.write(self._fd, text.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.type("\x03")

    def end(self, *, within: float = 60) -> int:
        """Read to the end of the program, and return its exit code."""
        deadline = monotonic() + within
        while self._read(deadline):
            assert monotonic() < deadline, f"it did not end; it wrote:\n{self.seen}"
        return self.process.wait(within)

    def _read(self, deadline: float) -> bool:
        """Read what was written; tell whether there may be more."""
        if not select.select([self._fd], [], [], max(0, deadline - monotonic()))[0]:
            return False
        try:
            written = os.read(self._fd, 65_536)
        except OSError:  # Linux says so where the other side is closed
            return False
        self.seen += written.decode(errors="replace")
        return bool(written)


def until(condition: Callable[[], bool], *, within: float = 60) -> None:
    """Return once a condition holds; fail where it doesn't in time."""
    deadline = monotonic() + within
    while not condition():
        assert monotonic() < deadline, "it did not come about"
        sleep(0.01)
