"""Compare a run whose process was killed with undisturbed ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from durable_core._log.chain import FLOW, decided
from durable_core._system.text import short
from durable_core.record import StepRecord

from .moments import Step
from .visits import Followed


class Slot(NamedTuple):
    """One outcome of a step; a step that publishes has several."""

    step: Step
    number: int

    def __str__(self) -> str:
        return f"{self.step}, entry {self.number + 1}," if self.number else str(self.step)


FACTS: Final = ("kind", "outcome", "value", "error", "arguments")
"""What is compared of each outcome."""
Facts = dict[Slot, dict[str, str | None]]


def facts_of(followed: Followed) -> Facts:
    """Return what a run and its children recorded as outcomes. Entries of tries, waits and visits are left out."""
    found: Facts = {}
    numbers: Counter[Step] = Counter()
    run_id = followed.plan.run_id
    for record in followed.entries:
        if decided(record):
            step = Step.of(run_id, record)
            facts = zip(FACTS, _facts(record), strict=True)
            found[Slot(step, numbers[step])] = {what: fact and fact.replace(run_id, "RUN") for what, fact in facts}
            numbers[step] += 1
    return found


def _facts(record: StepRecord) -> Iterable[str | None]:
    value = None if record.result is None else record.result.decode()
    error = None if record.error is None else str(record.error)
    return record.kind, record.status, value, error, record.fingerprint


class Undisturbed:
    """What a run does if nobody disturbs it, learned from two runs."""

    def __init__(self, first: Followed, second: Followed) -> None:
        self.first: Final = first
        self.facts: Final = facts_of(first)
        other = facts_of(second)
        self.varying: Final = {
            (slot, what) for slot, facts in self.facts.items() for what in FACTS if facts[what] != other.get(slot, facts)[what]
        }
        """The facts that differ between undisturbed runs, such as a number that a service gave."""

    def difference(self, followed: Followed) -> str | None:
        """Return how a run differs from an undisturbed one; None if it doesn't."""
        last = followed.last
        if last.trouble:
            return last.trouble.strip()
        expected = self.first.last.stand
        if last.stand is None or expected is None or last.stand.state != expected.state:
            state, error = ("gone", "") if last.stand is None else (last.stand.state, last.stand.error)
            return f"the run is {state}{': ' if error else ''}{error}"
        return next((found for found in self._differences(followed) if found), None)

    def _differences(self, followed: Followed) -> Iterable[str | None]:
        yield from self._in_hand(followed)
        yield from self._logged(facts_of(followed))
        yield from self._begun(followed)
        yield from self._effects(followed)

    def _in_hand(self, followed: Followed) -> Iterable[str]:
        """Compare what the killed process was about to record with what was recorded in the end.

        The value of a step whose function begins again may differ.
        """
        for visit in followed.visits:
            if (before := visit.in_hand) is None:
                continue
            outcomes = [each for each in followed.entries if _step(each) == _step(before) and decided(each)]
            after = next((each for each in outcomes if each.revision == before.revision), outcomes[-1] if outcomes else None)
            if after is None or after.kind != before.kind:
                continue
            step = Step.of(followed.plan.run_id, before)
            if before.fingerprint != after.fingerprint:
                yield f"{step} was called with other arguments by the process that was killed than by the next one"
            is_computed = before.step_id == FLOW or before.kind == "published"
            if is_computed and decided(before) and (before.result, before.status) != (after.result, after.status):
                yield (
                    f"the value of {step} was {_shown(before)} in the process that was killed, and is {_shown(after)} in the next"
                    " one, though the same steps were recorded"
                )

    def _logged(self, facts: Facts) -> Iterable[str]:
        """Compare the recorded outcomes."""
        unknown = next((f", and {slot} was recorded instead" for slot in facts if slot not in self.facts), "")
        for slot, expected in self.facts.items():
            if (found := facts.get(slot)) is None:
                yield f"{slot} was not recorded{unknown}"
                continue
            for what in FACTS:
                if expected[what] != found[what] and (slot, what) not in self.varying:
                    yield f"the {what} of {slot} is {short(str(found[what]))} instead of {short(str(expected[what]))}"
        for slot in facts:
            if slot not in self.facts:
                yield f"{slot} was recorded, which it is not in an undisturbed run"

    def _begun(self, followed: Followed) -> Iterable[str]:
        """Look for functions that began again, though they had not begun, or had an outcome, when the process was killed."""
        intents = Counter(Step.of(followed.plan.run_id, each) for each in followed.entries if each.status == "started")
        before, in_flight = _at_kill(followed)
        for step, times in followed.began.items():
            expected = self.first.began[step]
            at_most = expected + (before[step] if step in in_flight else 0)
            if times > at_most:
                yield f"the function of {step} began {times} times instead of {expected}, though its outcome was recorded"
            if 0 < intents[step] < times:
                yield f"the function of {step}, an at-most-once step, began {times} times after {intents[step]} recorded intents"

    def _effects(self, followed: Followed) -> Iterable[str]:
        """Look for effects that are missing, or that happened again more often than functions of steps began again."""
        again = (followed.began - self.first.began).total()
        for effect in {**self.first.effects, **followed.effects}:
            times, expected = followed.effects[effect], self.first.effects[effect]
            if times < expected:
                yield f"effect {effect!r} happened {times} times instead of {expected}"
            if times > expected and (expected == 0 or times > expected + again):
                yield (
                    f"effect {effect!r} happened {times} times instead of {expected}, while steps began again {again}"
                    " times: is it outside of a step?"
                )


def _at_kill(followed: Followed) -> tuple[Counter[Step], set[Step]]:
    """Return how often each function had begun when a process was killed, and the steps that it had begun without an outcome."""
    before: Counter[Step] = Counter()
    for visit, after in zip(followed.visits, followed.visits[1:], strict=False):
        before.update(visit.began)
        if visit.killed:
            return before, {*visit.began} - {*visit.ended} - after.recorded
    return before, set()


def began_again(followed: Followed, undisturbed: Followed) -> Sequence[Step]:
    return [*(followed.began - undisturbed.began)]


def _step(record: StepRecord) -> tuple[str, str]:
    return record.run_id, record.step_id


def _shown(record: StepRecord) -> str:
    return short(record.result.decode() if record.result is not None else str(record.error))
