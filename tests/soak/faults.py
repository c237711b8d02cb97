"""Bring old faults back, and see a soak find them: `python -m tests.soak.faults [PART OF A NAME…]`.

The library once had each of these faults. Rows of `tests/broken/patches.py`, and patches below, bring it back in a copy of the
checkout. Then a soak runs on a store, with the flows that can meet the fault, until it finds a broken promise: up to some rounds,
each with another seed. A line for each fault says how long that took, and what was found. The status is 1 if one was not found.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Final, NamedTuple

from tests.broken.patches import CORE, PATCHES, Patch
from tests.broken.run import copy_to

_ROUNDS: Final = 8
_OFTEN: Final = {"every": 2, "freeze_every": 1, "cut_off_every": 1, "lease": 3, "visibility_timeout": 5}
_VIOLATION: Final = re.compile(r"^  ([\w/-]*\d[\w/-]*): (.*)$", re.MULTILINE)


class Fault(NamedTuple):
    """A fault, what brings it back, and a soak that can meet it."""

    name: str
    store: str
    patches: tuple[str | Patch, ...]
    """Rows of the table by name, and others."""
    says: str = ""
    """A part of the violation by which it is found."""
    flows: str = ""
    """The flows that can meet it, with commas; all where none is named."""
    seconds: int = 30
    runs: int = 120
    options: Mapping[str, float | str] = MappingProxyType({})
    """Others of the soak's, in place of those that make most things happen often."""


_THREADS: Final = (
    "an intent is recorded before a thread is free",
    Patch("a thread doesn't look once more", f"{CORE}/_running/attempt.py", "    check(run, call)\n    try:", "    try:", ()),
)
_LAST_LOOK: Final = ("the lock is not looked at once more when all waiting is over", _THREADS[1])
# Freezes begin while a claim is under way, and little else happens, so that another worker runs the step meanwhile. A lock of
# PostgreSQL outlives a freeze, and is lost only with the server.
_CLAIMS: Final = {"aims": "0", "every": 10, "freeze_every": 0.3, "cut_off_every": 10, "restart_every": 200}
_LATE: Final[Mapping[str, Mapping[str, float | str]]] = {
    "redis": {**_CLAIMS, "visibility_timeout": 6},
    "postgres": {**_CLAIMS, "restart_every": 6, "lease": 8, "visibility_timeout": 2},
    "s3": {**_CLAIMS, "visibility_timeout": 6},
}
_TWICE: Final = "happened twice"
_RAW: Final = (
    "postgres: the driver's confusion is no lost connection",
    "postgres: the driver's confusion is no error of the store",
)

FAULTS: Final = [
    *(
        Fault(
            "an acknowledgement that comes after the lock was lost starts the step",
            *(store, _LAST_LOOK, _TWICE, "once"),
            seconds=60 if store == "postgres" else 45,
            runs=80 if store == "s3" else 240,
            options=options,
        )
        for store, options in _LATE.items()
    ),
    *(
        Fault("steps that wait for a thread start after the lock was lost", *(store, _THREADS), _TWICE, "crowd", runs=24)
        for store in ("redis", "postgres")
    ),
    Fault(
        "steps that wait for a thread start after the cancellation",
        *("sqlite", _THREADS),
        "had cancelled",
        "crowd",
        runs=24,
    ),
    Fault("steps that wait for a thread are recorded", *("sqlite", _THREADS[:1]), "had not begun", "crowd", runs=24),
    Fault("a step that runs is resolved by hand", "sqlite", ("a step that runs is decided by hand",), "by hand while it ran"),
    Fault("a task that somebody else cancelled", "sqlite", ("a CancelledError of another task is taken for one's own",)),
    Fault("one bad run stops the others: listing them", "sqlite", ("a damaged run hides others",)),
    Fault("one bad run stops the others: a folder", "file", ("worker: a damaged log in a folder hides all other runs",)),
    Fault("one bad run stops the others: an index", "redis", ("redis: one damaged run hides the others",)),
    Fault(
        "the driver's own error at a restart",
        *("postgres", _RAW, "InternalClientError", "once,books"),
        seconds=40,
        runs=800,
        options={"every": 10, "restart_every": 2},
    ),
    Fault("a recorded step runs again", "sqlite", ("a step that was recorded runs again",), _TWICE),
    Fault("a lock is taken from its holder", "redis", ("redis: a lock is taken from its holder",)),
    Fault("a step starts though the lock was lost", "redis", ("a step starts though the lock was lost",), _TWICE),
]


def apply(fault: Fault, tree: Path) -> None:
    """Bring a fault back in a copy of the checkout."""
    rows = {patch.name: patch for patch in PATCHES}
    for each in fault.patches:
        patch = rows[each] if isinstance(each, str) else each
        text = (tree / patch.file).read_text(encoding="utf-8")
        if (times := text.count(patch.old)) != 1:
            raise SystemExit(f"{patch.name}: its old text stands {times} times in {patch.file}, expected once")
        (tree / patch.file).write_text(text.replace(patch.old, patch.new), encoding="utf-8", newline="\n")


def found(fault: Fault, tree: Path, seed: int, patience: float) -> tuple[list[str], str]:
    """Let a soak run; return the violations that tell of the fault, and what it printed."""
    sources = os.pathsep.join(str(path) for path in sorted(tree.glob("packages/*/src")))
    options = {"seconds": fault.seconds, "runs": fault.runs, "seed": seed, "patience": patience, **_OFTEN, **fault.options}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.soak", fault.store, "--flows", fault.flows),
            *(word for option, value in options.items() for word in (f"--{option.replace('_', '-')}", str(value))),
        ],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": sources, "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    violations = [": ".join(each) for each in _VIOLATION.findall(done.stdout)]
    return [each for each in violations if fault.says in each], done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.faults", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="part", help="a part of the names of faults, or a store; all unless given")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help=f"how many soaks at most for a fault ({_ROUNDS})")
    parser.add_argument("--seed", type=int, default=1, help="of the first round (1)")
    parser.add_argument("--patience", type=float, default=40, help="seconds without any run's end, after which none comes (40)")
    given = parser.parse_args()
    status = 0
    for fault in FAULTS:
        if given.parts and not any(part in f"{fault.name} {fault.store}" for part in given.parts):
            continue
        with TemporaryDirectory(prefix="durable-faults-") as folder:
            tree = Path(folder).resolve()
            copy_to(tree)
            apply(fault, tree)
            began, violations, output = time.monotonic(), list[str](), ""
            for seed in range(given.seed, given.seed + given.rounds):
                violations, output = found(fault, tree, seed, given.patience)
                if violations:
                    break
            others = f", and {len(violations) - 1} more" if len(violations) > 1 else ""
            what = f"{violations[0]}{others}" if violations else f"NOT FOUND\n{output[-2000:]}"
            print(f"{time.monotonic() - began:5.0f} s  {fault.store:<8}  {fault.name}: {what}", flush=True)
            status |= not violations
    return status


if __name__ == "__main__":
    sys.exit(main())
