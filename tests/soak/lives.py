"""A process of a soak that is started again whenever it died, and what is done to it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from tests.servers.proxy import Proxy

from .side import Side

AIM_SECONDS: Final = 3.0
"""For how long a freeze waits for a worker in the middle of steps, and a cut-off for the request that it begins with."""
_STOP_SECONDS: Final = 45.0
"""For how long a worker may stop: its steps get 5 s, and a runner whose store is away tries for 30 s to record what they did."""
_LAST_REQUESTS: Final = 0.3
"""Seconds for which the requests of a worker that is cut off still reach the server."""
_ALL_ANSWERS: Final = 1_000_000_000


class Life:
    """A process that is started again whenever it died."""

    def __init__(self, role: str, name: str, folder: Path, side: Side) -> None:
        self._role, self._name, self._folder, self._side = role, name, folder, side
        self._lives = 0
        self.proxy: Proxy | None = None
        """Its way to the server."""
        self._process: subprocess.Popen[bytes] | None = None
        # When each thing is to happen, by the monotonic clock; 0 if it isn't.
        self._kill_at = self._thaw_at = self._back_at = self._reset_at = self._cut_off_by = 0.0
        self._cut_off_for = 0.0
        self._cut_off = ""
        """Who was cut off, while that lasts."""
        self.broke: list[str] = []
        """How it ended by itself, which it never should."""

    @property
    def name(self) -> str:
        return self._name

    @property
    def who(self) -> str:
        """The name of the process that lives now, or lived last."""
        return f"{self._name}-{self._lives}"

    @property
    def is_worker(self) -> bool:
        """Whether it is a worker, and not the people."""
        return self._role == "worker"

    @property
    def is_frozen(self) -> bool:
        return self._thaw_at > 0

    @property
    def is_cut_off(self) -> bool:
        return self._back_at > 0 or self._cut_off_for > 0

    @property
    def is_stopping(self) -> bool:
        return self._kill_at > 0

    def see_to(self) -> None:
        """Start it unless it lives; thaw it, cut it off or bring it back when it is time."""
        if self.is_frozen and time.monotonic() >= self._thaw_at:
            self.thaw()
        if self._back_at and time.monotonic() >= self._back_at:
            self.come_back()
        if self._cut_off_for and self.proxy and (self.proxy.fired.is_set() or time.monotonic() >= self._cut_off_by):
            self._begin_cut_off(self.proxy)
        if self._reset_at and time.monotonic() >= self._reset_at and self.proxy:
            self.proxy.cut()
            self._reset_at = 0.0
        if self._running() is None:
            self._lives += 1
            with (self._folder / f"{self.who}.log").open("wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "tests.soak.processes", self._role, self.who, str(self._folder)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},
                )

    def kill(self) -> None:
        if process := self._running():
            self._side.note("killed", who=self.who)
            process.kill()
            process.wait()
            self._forget()

    def stop(self) -> None:
        """Ask it to end, as a deploy does."""
        if (process := self._running()) and not self._kill_at:
            self._side.note("stopped", who=self.who)
            process.terminate()
            self._kill_at = time.monotonic() + _STOP_SECONDS

    def wait(self) -> None:
        """Wait until it has ended after `stop`."""
        while self._running():
            time.sleep(0.02)

    def freeze(self, seconds: float) -> None:
        """Stop it where it is, as a machine that sleeps does."""
        if process := self._running():
            process.send_signal(signal.SIGSTOP)
            self._side.note("frozen", who=self.who)
            self._thaw_at = time.monotonic() + seconds

    def thaw(self) -> None:
        if self.is_frozen and (process := self._running()):
            self._side.note("thawed", who=self.who)
            process.send_signal(signal.SIGCONT)
        self._thaw_at = 0.0

    def cut_off(self, seconds: float, after: bytes) -> None:
        """Lose all answers of the server, from that to its next request that holds `after`; at the latest after `AIM_SECONDS`.

        A little later, all its connections are reset.
        """
        if self._running() and self.proxy:
            self.proxy.cut_after(after, lose=_ALL_ANSWERS)
            self._cut_off_for, self._cut_off_by = seconds, time.monotonic() + AIM_SECONDS

    def _begin_cut_off(self, proxy: Proxy) -> None:
        self._cut_off = self.who
        self._side.note("cut-off", who=self.who)
        proxy.cut_after(b"")
        proxy.lose_answers(_ALL_ANSWERS)
        self._reset_at = time.monotonic() + _LAST_REQUESTS
        self._back_at = time.monotonic() + self._cut_off_for
        self._cut_off_for = 0.0

    def come_back(self) -> None:
        """Let answers reach it again."""
        if self.proxy:
            self.proxy.cut_after(b"")
            self.proxy.lose_answers(0)
        if self._back_at:
            self._side.note("back", who=self._cut_off)
        self._back_at = self._cut_off_for = self._reset_at = 0.0

    def _running(self) -> subprocess.Popen[bytes] | None:
        """Return the process while it lives; note how it ended where that is wrong, and kill it where it doesn't stop."""
        if self._process is None:
            return None
        if (code := self._process.poll()) is None:
            if not self._kill_at or time.monotonic() < self._kill_at:
                return self._process
            self._process.kill()
            code = self._process.wait()
            self.broke.append(f"{self.who} was still there {_STOP_SECONDS:g} s after SIGTERM")
        # A run of `interrupted` kills its process; SIGTERM does where it hadn't begun to work.
        elif code not in (-signal.SIGKILL, *((0, -signal.SIGTERM) if self._kill_at else ())):
            self.broke.append(f"{self.who} ended with status {code}: {self._last_words()}")
        self._forget()
        return None

    def _last_words(self) -> str:
        """Return the last line in which it said something: its error, if it raised one."""
        lines = (self._folder / f"{self.who}.log").read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.strip(" |") for line in reversed(lines) if re.search("[a-z]", line)), "it said nothing")

    def _forget(self) -> None:
        self._process, self._kill_at, self._thaw_at = None, 0.0, 0.0
