"""Play many histories: `python -m tests.worker.model.run [HOW MANY [FROM WHICH SEED]]`, or `… rules` for the table of rules."""

from __future__ import annotations

import logging
import sys
import time
import warnings

from tests.worker.model.model import Case, play
from tests.worker.model.rules import ALONE, CALM, RULES, SLOW, without

CASES = [
    Case(),
    ALONE,
    CALM,
    SLOW,
    Case(hides=False),
    Case(offers_wakeups=False),
    Case(workers=1, concurrency=(1,)),
    Case(runs=8, workers=3),
    Case(errors=0.03),
    Case(skew=70),
]


def histories(number: int, first: int) -> int:
    faults = 0
    for case in CASES:
        began = time.monotonic()
        for seed in range(first, first + number // len(CASES)):
            if wrong := play(seed, case).world.wrong:
                faults += 1
                print(f"seed {seed} of {case}: {wrong}", flush=True)
        print(f"{number // len(CASES)} histories of {case} in {time.monotonic() - began:.0f} s", flush=True)
    return faults


def rules() -> int:
    missed = 0
    for rule in RULES:
        with without(rule):
            worlds = ((seed, play(seed, rule.case).world) for seed in range(rule.budget))
            found = ((seed, wrong) for seed, world in worlds for wrong in world.wrong if wrong.startswith(rule.goes))
            seed, wrong = next(found, (None, "NOT FOUND"))
        missed += seed is None
        print(f"{rule.name:85} {seed!s:>4} {wrong}", flush=True)
    return missed


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    if sys.argv[1:] == ["rules"]:
        sys.exit(min(rules(), 1))
    number, first = [*map(int, sys.argv[1:]), 10_000, 0][:2] if len(sys.argv) != 2 else (int(sys.argv[1]), 0)
    sys.exit(min(histories(number, first), 1))
