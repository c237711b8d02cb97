"""Continuing runs, stopping them, and forking them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

from ._asked import Asked
from ._each import Chosen, find, listed, on_each
from ._output import say, write, write_json
from ._question import agree
from ._text import number

if TYPE_CHECKING:
    from durable_core import Store
    from durable_core.control import RunStatus

Act = Literal["retry", "cancel"]


class Signed(NamedTuple):
    """The person who acts, and the reason."""

    by: str
    reason: str | None


async def act_on_one(store: Store, asked: Asked, act: Act, run_id: str, step_id: str | None, signed: Signed) -> None:
    """Retry or cancel a run, and show its state then."""
    from durable_core import control

    await _act(store, act, signed, step_id)(run_id)
    run = await control.status(store, run_id)
    if asked.as_json:
        write_json(run)
    elif act == "retry":
        write(f"{run_id} {_how_it_goes_on(asked, run)}")
    elif run.status == "cancelling":
        write(f"{run_id} is asked to stop: it does when it notices, or when it is run again")
    else:
        write(f"{run_id} is {run.status}")


def act_on_many(asked: Asked, act: Act, chosen: Chosen, signed: Signed, *, yes: bool) -> None:
    """Retry or cancel the selected runs, after confirmation."""
    runs, damage = asked.run(lambda store: find(store, chosen))
    if runs and not yes:
        agree(f"{act.capitalize()} {number(len(runs), 'run')} as {signed.by}?", shown=listed(runs))
    run_ids = [run.run_id for run in runs]
    doing, done = ("retrying", "retried {}") if act == "retry" else ("cancelling", "told {} to stop")

    async def work(store: Store) -> None:
        await on_each(run_ids, _act(store, act, signed), doing=doing, done=done, as_json=asked.as_json)

    if runs:
        asked.run(work)
    else:
        say("There are no such runs.")
    if damage is not None:
        raise damage


async def fork(store: Store, asked: Asked, run_id: str, new: str, before: str, by: str) -> None:
    """Begin a new run with the outcomes before a step."""
    from durable_core import Refused, control

    await control.fork(store, run_id, new, before=before, by=by)
    if not await store.list(new):
        raise Refused(f"nothing was decided in run {run_id!r} before {before!r}, and it has no flow: there is nothing to fork")
    run = await control.status(store, new)
    if asked.as_json:
        write_json(run)
    else:
        write(f"{new} begins as {run_id} did before {before}; it {_how_it_goes_on(asked, run)}")


def _act(store: Store, act: Act, signed: Signed, step_id: str | None = None) -> Callable[[str], Awaitable[object]]:
    from durable_core import control

    if act == "retry":
        return lambda run_id: control.retry(store, run_id, step_id, reason=signed.reason, by=signed.by)
    return lambda run_id: control.cancel(store, run_id, reason=signed.reason, by=signed.by)


def _how_it_goes_on(asked: Asked, run: RunStatus) -> str:
    if run.flow is None:
        return "continues when its program runs it again"
    return (
        f"continues when a worker with the flow {run.flow} takes it, or with:"
        f"\n  {asked.command('run', 'MODULE:FLOW', run.run_id)}"
    )
