"""Thousands of interleavings of workers and those who act on runs, on a simulated store: no run is lost.

Each history follows from its seed alone. Plain seeds are taken and not Hypothesis: what happens hangs on thousands of draws at
the calls of the store, so a history that is cut down is another one, and shrinking finds nothing.
`python -m tests.worker.model.run` plays as many as are asked for.
"""

from __future__ import annotations

import pytest

from .model.model import Case, play
from .model.rules import ALONE, CALM, RULES, Rule, without

CASES = {
    "all that may happen": (Case(), 50),
    "no sweep": (ALONE, 50),
    "nobody dies, and all go on within a second": (CALM, 40),
    "a store that hides no wake-ups": (Case(hides=False), 20),
    "a store without wake-ups": (Case(offers_wakeups=False), 20),
    "a worker with one place": (Case(workers=1, concurrency=(1,)), 20),
}
"""What histories are made of, and how many of them."""


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_no_run_is_lost(name: str) -> None:
    """Each run ends, or waits for what nobody gave; no effect is doubled; no wake-up is left, and nobody works without end."""
    case, histories = CASES[name]
    for seed in range(histories):
        history = play(seed, case)
        assert not history.world.wrong, "\n".join([f"seed {seed}", *history.world.wrong, *history.world.story])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.filterwarnings("ignore")
def test_each_rule_is_needed(rule: Rule) -> None:
    """Where a rule is taken out, a history within the budget goes wrong as one expects."""
    with without(rule):
        for seed in range(rule.budget):
            if any(wrong.startswith(rule.goes) for wrong in play(seed, rule.case).world.wrong):
                return
    pytest.fail(f"{rule.budget} histories went well without it")


def test_a_history_follows_from_its_seed() -> None:
    """Whatever happens in one, happens again."""
    assert play(7, Case()).world.story == play(7, Case()).world.story
