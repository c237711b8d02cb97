"""Why a run doesn't continue, in words, and the commands that would help."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from itertools import takewhile
from typing import Final

import msgspec

from durable_core import StepRecord, Store, control
from durable_core.control import RunStatus
from durable_core.engine import FLOW, child_of, could_go_on, ids_in, waits_of

from ._asked import Asked
from ._output import console, write_json
from ._steps import Steps, votes_of, whose
from ._text import brief, cut, harmless, quoted, soon, span
from ._words import age, error_text, styled

_AT_MOST: Final = 20
"""How many waits of a run are shown, and how many levels of children are read."""
_ENDED: Final = {"succeeded": "has succeeded", "failed": "has failed", "cancelled": "was cancelled"}


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """One reason why a run, or one of its children, doesn't continue."""

    run_id: str
    step_id: str | None = None
    text: str
    since: datetime | None = None
    until: datetime | None = None
    commands: tuple[str, ...] = ()
    """The commands that would help. Words in capitals stand for values that only a person knows."""


class Run(msgspec.Struct, frozen=True):
    """A run as it was found, and the options of the command."""

    asked: Asked
    status: RunStatus
    steps: Steps
    flow: StepRecord | None
    now: datetime
    depth: int
    """The number of parents between it and the requested run, which is 0."""

    @property
    def it(self) -> str:
        """Return the run's name for the beginning of a sentence."""
        return f"Its child {quoted(self.status.run_id)}" if self.depth else "It"

    def reason(
        self,
        text: str,
        *commands: str,
        step_id: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Reason:
        """Return a reason that concerns this run; by default, since its log changed."""
        since = since or self.status.changed_at
        return Reason(run_id=self.status.run_id, step_id=step_id, text=text, since=since, until=until, commands=commands)

    def command(self, name: str, *arguments: str, options: Sequence[str] = ()) -> str:
        """Return a command about this run."""
        return self.asked.command(name, self.status.run_id, *arguments, options=options)

    def since(self, at: datetime) -> str:
        """Return since when something is."""
        return f"since {soon(at, self.now)} ({age(at, self.now)})"

    def run_here(self) -> str:
        """Return the command that continues the run in this terminal."""
        return self.asked.command("run", "MODULE:FLOW", self.status.run_id)

    def serve(self) -> str:
        """Return the command that runs a worker."""
        return self.asked.command("serve", "MODULE:WORKER")


async def why(store: Store, asked: Asked, run_id: str) -> None:
    """Show why a run doesn't continue, since when, and what would help."""
    run = await _look(store, asked, run_id)
    status = run.status
    reasons = [reason async for reason in _reasons(store, run)]
    if asked.as_json:
        write_json({"run_id": run_id, "flow": status.flow, "status": status.status, "reasons": reasons})
        return
    from rich.text import Text

    screen = console()
    head = Text.assemble((harmless(run_id), "bold"), "  ", cut(status.flow or "no flow", 40), "  ", styled(status.status))
    screen.print(head, soft_wrap=True)
    for reason in reasons:
        screen.print()
        screen.print(Text(reason.text))
        for command in reason.commands:
            screen.print(Text(f"  {command}", style="bold"), soft_wrap=True)


async def _look(store: Store, asked: Asked, run_id: str, depth: int = 0) -> Run:
    entries = await store.list(run_id)
    status = await control.status(store, run_id, entries=entries)
    return Run(asked, status, Steps(entries), await store.get(run_id, FLOW), datetime.now(UTC), depth)


async def _reasons(store: Store, run: Run) -> AsyncIterator[Reason]:
    """Yield the reasons of the run, and then those of the children for which it waits."""
    status, flow = run.status, run.flow
    children: list[str] = []
    if (whole := _whole(run)) is not None:
        yield whole
    if status.status == "parked" and flow is not None:
        children += [child for child, step_id in waits_of(flow) if child != status.run_id and step_id == FLOW]
    waits = () if status.status == "cancelling" else status.waiting_for
    for step_id in waits[:_AT_MOST]:
        wait = run.steps[step_id].latest
        if (child := child_of(wait)) is None:
            yield _wait(run, wait)
        else:
            children.append(child)
            text = f"{run.it} waits at {quoted(step_id)} for the run {quoted(child)}, {run.since(wait.started_at)}."
            yield run.reason(text, step_id=step_id, since=wait.started_at, until=wait.until)
    if len(waits) > _AT_MOST:
        yield run.reason(f"{run.it} waits for {len(waits) - _AT_MOST} more.", run.command("show", options=("--all",)))
    if status.status == "waiting" and flow is not None and flow.status != "started":
        if (await could_go_on(store, [flow], run.now))[status.run_id]:
            yield _its_turn(run, flow)
        elif not waits:
            yield run.reason(f"{run.it} begins {_when(run, status.until)}, if a worker has its flow.", until=status.until)
    for child in dict.fromkeys(children):
        if run.depth < _AT_MOST and await store.get(child, FLOW) is not None:
            below = await _look(store, run.asked, child, run.depth + 1)
            async for reason in _reasons(store, below):
                yield reason


def _whole(run: Run) -> Reason | None:
    """Return the reason of the run as a whole; None if it waits."""
    status, now = run.status, run.now
    since, ago = run.since(status.changed_at), f"{age(status.changed_at, now)} ago"
    match status.status:
        case "running":
            held = "" if status.holder is None else f": it is held by {harmless(status.holder.name)}"
            return run.reason(f"{run.it} runs{held}. Its log changed {ago}.", run.command("watch"))
        case "interrupted":
            text = (
                f"{run.it} was started, and its process is gone: nobody holds its lock. Its log has not changed {since}."
                " A worker takes it up by itself; `retry` makes it due now."
            )
            return run.reason(text, run.command("retry"), run.serve())
        case "crashed":
            return _crashed(run, ago)
        case "parked":
            return _parked(run, since)
        case "cancelling":
            who = "nobody holds it" if status.holder is None else f"it is held by {harmless(status.holder.name)}"
            commands = [run.serve()] if status.holder is None else []
            text = f"{run.it} was asked to stop{_because(run)}, {since}; {who}. It ends when it is run again."
            return run.reason(text, *commands)
        case "failed":
            return _failed(run, ago)
        case "cancelled":
            fork = [run.command("fork", "NEW", options=("--before", "STEP"))] if run.flow is not None else []
            return run.reason(f"{run.it} was cancelled {ago}{_because(run)}, and can't continue.", *fork)
        case "succeeded":
            return run.reason(f"{run.it} succeeded {ago}: there is nothing left to do.", run.command("show"))
        case "open":
            text = f"{run.it} has no flow, so its end is not recorded, and workers leave it alone. Its log has not changed"
            return run.reason(f"{text} {since}.")
    return None


def _crashed(run: Run, ago: str) -> Reason:
    until, text = run.status.until, f"The code of its flow raised {error_text(run.status.error)}, {ago}."
    if run.depth:
        text = f"{run.it} crashed. {text}"
    if until is not None and until <= run.now:
        text += f" The next try has been due {run.since(until)}, and no worker has taken it. Fix the code first."
        return run.reason(text, run.run_here(), run.serve(), until=until)
    comes = "" if until is None else f" A worker tries it again {_when(run, until)}."
    return run.reason(f"{text}{comes} Fix the code; `retry` makes it due now.", run.command("retry"), until=until)


def _parked(run: Run, since: str) -> Reason:
    status, commands = run.status, [run.command("retry")]
    because, helps = cut(status.why or "nothing says why", 1000), f" What helps: {cut(status.mend, 300)}." if status.mend else ""
    step_id = status.failed[0] if status.failed else ""
    if step_id in run.steps and run.steps[step_id].latest.status == "started":
        because = because.partition(";")[0]
        helps = " Find out what happened, and record it; or let the step run once more."
        commands.insert(0, run.command("resolve", step_id, options=("--value", "JSON", "--reason", "TEXT")))
    return run.reason(f"{run.it} is parked {since}: {because}.{helps}", *commands)


def _failed(run: Run, ago: str) -> Reason:
    failed = run.status.failed
    at = f" at {', '.join(map(quoted, failed[:_AT_MOST]))}" if failed else ""
    text = f"{run.it} failed{at} {ago}: {error_text(run.status.error)}."
    if run.flow is None:
        return run.reason(text, *(run.command("retry", step_id) for step_id in failed[:_AT_MOST]))
    if answers := ids_in(run.flow, "answered_by"):
        done = [*takewhile(lambda step_id: step_id not in answers, run.steps.ids())]
        text += (
            f" Its flow answered the failure with {', '.join(map(quoted, answers[:_AT_MOST]))}: its work may be undone, so it"
            " can't continue. A fork begins again before the first step that was undone"
            f"{': ' if done else ''}{'one of ' if len(done) > 1 else ''}{_several(done)}."
        )
        return run.reason(text, run.command("fork", "NEW", options=("--before", done[0] if len(done) == 1 else "STEP")))
    commands = [run.command("retry")]
    if len(failed) == 1:
        commands.append(run.command("resolve", failed[0], options=("--value", "JSON", "--reason", "TEXT")))
    return run.reason(f"{text} Fix the cause; then `retry` continues it.", *commands)


def _wait(run: Run, wait: StepRecord) -> Reason:
    """Return what one wait waits for, and who can end it."""
    name, until, commands = quoted(wait.step_id), wait.until, []
    of_child = f"{run.it}: " if run.depth else ""
    is_over = until is not None and until <= run.now
    deadline = "" if until is None else f" Its deadline {'was' if is_over else 'is'} {_when(run, until)}."
    match wait.kind:
        case "sleep":
            over = ": that is over" if is_over else ""
            text = f"{run.it} sleeps at {name} until {_when(run, until).removeprefix('at ')}{over}."
        case "approval":
            text = f"{of_child}A person has to decide {name}, {run.since(wait.started_at)}.{_decided_by(wait)}{deadline}"
            commands = [run.command(verb, wait.step_id, options=whose(wait)) for verb in ("approve", "reject")]
        case "event":
            text = f"{run.it} waits for the event {name}, {run.since(wait.started_at)}.{deadline}"
            commands = [run.command("send", wait.step_id, options=("--value", "JSON"))]
        case _:
            tried = f"attempt {wait.attempt} failed by {error_text(wait.error)}; the next one" if wait.error else "the next look"
            text = f"{of_child}Step {name}: {tried} comes {_when(run, until)}. `retry` makes it due now."
            commands = [run.command("retry", wait.step_id)]
    commands = [] if is_over and wait.kind != "step" else commands
    return run.reason(text, *commands, step_id=wait.step_id, since=wait.started_at, until=until)


def _several(step_ids: Sequence[str]) -> str:
    more = f" and {len(step_ids) - _AT_MOST:,} more" if len(step_ids) > _AT_MOST else ""
    return ", ".join(map(quoted, step_ids[:_AT_MOST])) + more


def _value_of(vote: dict[str, object]) -> str:
    value = vote.get("value")
    return "" if value is None else f" {brief(msgspec.json.encode(value), 100)}"


def _decided_by(approval: StepRecord) -> str:
    notes = approval.notes
    show, approvers, quorum = notes.get("show"), notes.get("approvers"), notes.get("quorum", 1)
    shown = "" if show is None else f" It shows {brief(msgspec.json.encode(show), 300)}."
    names = cut(" or ".join(map(str, approvers)), 200) if isinstance(approvers, list) else "Anybody"
    number = "" if quorum == 1 else f"; {quorum} have to approve the same value"
    votes = ", ".join(
        f"{cut(str(vote.get('by')), 40)} {'approves' if vote.get('approved') else 'rejects'}{_value_of(vote)}"
        for vote in votes_of(approval)
    )
    return f"{shown} {names} may decide{number}.{f' So far {votes}.' if votes else ''}"


def _its_turn(run: Run, flow: StepRecord) -> Reason:
    due = run.status.changed_at
    if flow.until is not None and flow.until <= run.now:
        due = max(due, flow.until)
    text = f"{run.it} can continue, and has been waiting for a worker {run.since(due)}. Is a worker running that has the flow"
    return run.reason(f"{text} {quoted(flow.name)}?", run.run_here(), run.serve(), since=due)


def _because(run: Run) -> str:
    return f", because of {cut(run.status.why, 300)!r}" if run.status.why else ""


def _when(run: Run, at: datetime | None) -> str:
    if at is None:
        return "by itself"
    return f"at {soon(at, run.now)} ({f'in {span(at - run.now)}' if at > run.now else f'{age(at, run.now)} ago'})"
