"""What is on the disk before the next step begins: every sync is traced with strace, and made to take 20 ms more.

A system that waits for its record has a sync between the end of a step's function and the start of the next one. A system that
writes behind the steps' backs starts the next one meanwhile, and with a disk that slow it is caught.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

DELAY = 20_000  # microseconds
OPTIONS = ["-f", "-qq", "-ttt", "-T", "-e", "trace=fsync,fdatasync", "-e", "signal=none"]
SLOW = ["-e", f"inject=fsync,fdatasync:delay_enter={DELAY}"]
_WHOLE = re.compile(r"^\d+ +(\d+\.\d+) f\w+\(.*\) += 0.*<(\d+\.\d+)>$")
_RESUMED = re.compile(r"^\d+ +(\d+\.\d+) <\.\.\. f\w+ resumed>.*= 0")


def command(output: Path) -> list[str]:
    """Return what to put before a command whose syncs are traced."""
    return ["strace", *OPTIONS, *SLOW, "--seccomp-bpf", "-o", str(output)]


@contextmanager
def attached(process: int, output: Path) -> Iterator[None]:
    """Trace a process that is running, its threads, and those that it starts from now on."""
    tracer = subprocess.Popen(["strace", *OPTIONS, *SLOW, "-o", str(output), "-p", str(process)])
    try:
        while "TracerPid:\t0\n" in Path(f"/proc/{process}/status").read_text(encoding="utf-8"):
            if tracer.poll() is not None:
                raise RuntimeError(f"strace cannot trace process {process}")
            time.sleep(0.02)
        yield
    finally:
        tracer.terminate()
        tracer.wait()


def ends(output: Path) -> list[float]:
    """Return when each sync had returned."""
    found = []
    for line in output.read_text(encoding="utf-8", errors="replace").splitlines():
        if whole := _WHOLE.match(line):
            found.append(float(whole[1]) + float(whole[2]))
        elif resumed := _RESUMED.match(line):
            found.append(float(resumed[1]))
    return found


def between(steps: list[tuple[float, float]], synced: list[float]) -> list[int]:
    """Return how many syncs returned between the end of each step's function and the start of the next one."""
    return [sum(ended < sync < began for sync in synced) for (_, ended), (began, _) in pairwise(steps)]
