"""What a worker and an outsider must do, each taken out in turn: a history then goes wrong that is right with it."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from durable_core._log import wakeups
from durable_core._running import driving
from durable_worker._loop import Loop
from durable_worker._memory import Memory
from durable_worker._sweep import Sweep
from durable_worker._visit import Visit

from .model import Case


class Cut(NamedTuple):
    """One place in the code, and what stands there instead."""

    function: Callable[..., Any]
    old: str
    new: str


class Rule(NamedTuple):
    """A rule, how it is taken out, and the histories in which that shows."""

    name: str
    case: Case
    cuts: tuple[Cut, ...]
    goes: str = "lost"
    """What goes wrong then."""
    budget: int = 1000
    """Within how many histories."""


ALONE: Final = Case(sweeps=False)
"""No sweep mends what wake-ups miss."""
CALM: Final = Case(
    sweeps=False, kills=False, errors=0, skew=0, prompt=1.3, slow=0, latency=0.03, concurrency=(20,), poll=0.5, near=True
)
"""Nobody dies, and each run goes on within a second."""

SLOW: Final = Case(
    sweeps=False,
    kills=False,
    errors=0,
    skew=0,
    prompt=15,
    slow=0.3,
    concurrency=(20,),
    poll=0.2,
    near=True,
    visible=60,
    names=("gets", "boss", "both"),
)
"""The same, on a store that takes its time: what is hidden for a minute is late."""

RULES: Final = [
    Rule(
        "1: an act sets a wake-up ahead, before it appends",
        Case(sweeps=False, kills=False, deadly=0.8, names=("gets", "asks", "boss")),
        (Cut(wakeups.waking, "(flow := await store.get(run_id, FLOW)) is not None", "False"),),
    ),
    Rule(
        "1: an act sets a wake-up for now, after it appended",
        ALONE,
        (Cut(wakeups.waking, "await wakeups.set_wakeup(*target, now)", "pass"),),
    ),
    Rule(
        "1: an act looks for the flow after it appended",
        Case(sweeps=False, kills=False, runs=12, names=("gets",), slow=0.3, poll=0.2, near=True),
        (Cut(wakeups.waking, "await store.get(each, FLOW)) for each", "flow) for each"),),
    ),
    Rule(
        "1: who asks for a run sets a wake-up ahead, before it appends",
        ALONE,
        (
            Cut(wakeups.asking, "net = await wakeups.set_wakeup(run_id, flow, now + NET)", "net = None"),
            Cut(wakeups.asking, "net.now if at <= now else at", "at"),
            Cut(wakeups.asking, "await wakeups.clear_wakeups([net])", "pass"),
        ),
    ),
    Rule(
        "1: who asks for a run sets a wake-up for then, after it appended",
        ALONE,
        (Cut(wakeups.asking, "await wakeups.set_wakeup(run_id, flow, net.now if at <= now else at)", "pass"),),
    ),
    Rule(
        "1: a run that is suspended, or crashed, sets one for its time",
        ALONE,
        (Cut(driving._recorded, 'await run.driver.suspends(run.store, latest, fields["until"])', "pass"),),
    ),
    Rule(
        "1: a run that ends, or is cancelled before it began, wakes its parent",
        ALONE,
        (Cut(wakeups.whom_to_wake, "None if above is None or decided(above) else await _driver_of(store, above)", "None"),),
    ),
    Rule(
        "1: of a child that is driven the topmost parent is woken",
        ALONE,
        (
            Cut(wakeups._driver_of, "return root\n", "return flow.run_id, flow.name\n"),
            Cut(Visit._pass, "await self._loop.wakeups.set_wakeup(*root, self.wakeup.now)", "pass"),
        ),
    ),
    Rule(
        "2: nothing is cleared after RunBusy",
        Case(sweeps=False, names=("plain",)),
        (
            Cut(Visit._pass, 'self.state = "busy"\n        return False\n', "return True\n"),
            Cut(Visit._pass, 'self.state = "busy"\n    return False\n', "return True\n"),
        ),
    ),
    Rule(
        "2: nothing is cleared after LockLost or StoreError",
        Case(sweeps=False, errors=0.02),
        (Cut(Visit.go, "_logger.warning(", "await self._loop.wakeups.clear_wakeups([*self.taken.values()]); _logger.warning("),),
    ),
    Rule(
        "2: what was set, or taken, after a pass began is not cleared by it",
        Case(sweeps=False, workers=1, kills=False, names=("gets", "asks", "timer"), slow=0.2, poll=0.1, near=True),
        (Cut(Visit._clear, "noted])", "self.taken])"), Cut(Visit._clear, "for token in noted:", "for token in [*self.taken]:")),
    ),
    Rule(
        "2: who finds that a run is not due yet sets one for its time",
        ALONE,
        (Cut(Visit._set_for, "flow.until is not None and", "False and"),),
    ),
    Rule(
        "2: where nothing is there, it is cleared",
        ALONE,
        (Cut(Visit._pass, "if flow is None:\n        return True", "if flow is None:\n        return False"),),
        "left",
    ),
    Rule(
        "2: a wake-up is cleared once it is known how the run stands",
        ALONE,
        (Cut(Visit._clear, "await self._loop.wakeups.clear_wakeups([self.taken[token] for token in noted])", "pass"),),
        "left",
    ),
    Rule(
        "3: a worker looks once more after it has let a run go",
        CALM,
        (Cut(Visit._came_meanwhile, "flow is not None and", "False and"),),
        "late",
    ),
    Rule(
        "3: a wake-up of a run that is driven here is kept for its visit",
        SLOW,
        (Cut(Loop._take, "visit.taken.setdefault(wakeup.token, wakeup)", "pass"),),
        "late",
    ),
    Rule(
        "4: a run that is woken too early is left alone a little longer each time",
        Case(sweeps=False, kills=False, names=("timer",), slow=0, latency=0.005, poll=0.5),
        (Cut(Memory.later_each_time, "_next_try(times)", "0"),),
        "hot",
    ),
    Rule(
        "6: the sweep takes what a process left that died",
        Case(),
        (Cut(Sweep.due, "if flow.run_id not in holders and age <= self._adopt:", "if False:"),),
    ),
    Rule(
        "6: the sweep looks at what runs wait for",
        Case(names=("gets", "both", "asks")),
        (Cut(Sweep.due, "elif able[flow.run_id] or self._tries_once_more(flow):", "elif flow.revision == 0:"),),
    ),
    Rule(
        "6: the sweep finds what was asked for",
        Case(),
        (Cut(Sweep.due, "elif able[flow.run_id] or self._tries_once_more(flow):", "elif flow.revision and able[flow.run_id]:"),),
    ),
    Rule(
        "6: a child whose parent has ended goes on by itself",
        Case(names=("torn",)),
        (Cut(Sweep._independent, "or decided(top)", ""), Cut(wakeups._driver_of, "not decided(top)", "True")),
    ),
    Rule(
        "6: a store without wake-ups is swept all the time",
        Case(offers_wakeups=False),
        (Cut(Loop._sweep, "_SWEEP_SECONDS if shared else _SWEEP_SECONDS_ALONE", "1e9"),),
    ),
]


@contextmanager
def without(rule: Rule) -> Iterator[None]:
    """Take a rule out, for as long as the context lasts."""
    before = [(cut.function, _plain(cut.function).__code__) for cut in rule.cuts]
    try:
        for cut in rule.cuts:
            _cut(cut)
        yield
    finally:
        for function, code in reversed(before):
            _plain(function).__code__ = code


_texts: Final[dict[Any, str]] = {}


def _cut(cut: Cut) -> None:
    plain = _plain(cut.function)
    text = _texts.get(plain.__code__) or textwrap.dedent(inspect.getsource(cut.function))
    assert text.count(cut.old) == 1, f"{cut.old!r} stands {text.count(cut.old)} times in {plain.__qualname__}:\n{text}"
    text = text.replace(cut.old, cut.new)
    made: dict[str, Any] = {}
    exec(
        compile("from __future__ import annotations\n" + text, f"<{plain.__qualname__} without a rule>", "exec"),
        plain.__globals__,
        made,
    )
    plain.__code__ = _plain(made[plain.__name__]).__code__
    _texts[plain.__code__] = text


def _plain(function: Callable[..., Any]) -> Any:
    return inspect.unwrap(function)
