"""Repairing what failed or was interrupted: a step, the flow that ended because of it, and the parents of that flow."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from durable_core.errors import AlreadyDecided, Refused, StepFailed, Withdrawn
from durable_core.record import StepRecord
from durable_core.store import Store
from durable_core.stores.flows import is_crash, is_parked, state_of

from .chain import FLOW, Append, advance, decided, successor
from .known import describe, known_run, known_step
from .lock import holding
from .notes import child_of, failed_parts, ids_in, lasting, parent_of, waits_of


class Mending:
    """One repair: who acts, why, and when."""

    def __init__(self, store: Store, append: Append, signed: dict[str, str], now: datetime) -> None:
        self._store = store
        self._append = append
        self._signed = signed
        self._now = now

    async def step(self, run_id: str, step_id: str, mended: Callable[[StepRecord], StepRecord | None]) -> StepRecord:
        """Append what `mended` returns for the step's newest entry, and let its flow continue."""
        latest = await known_step(self._store, run_id, step_id)
        if step_id != FLOW:
            await self._refuse_flow_that_is_over(run_id, step_id)
        async with self._held(latest) as latest:
            holder = await self._advance(latest, mended)
            goes_on = await self._let_flows_go_on(holder)
            # Repeated after a crash between the two entries, this lets the flow continue.
            if not goes_on and holder is latest and holder.status != "waiting":
                refuse_unless_stuck(holder)
        return holder

    async def reopen(self, run_id: str, step_id: str) -> StepRecord:
        """Reopen a step, and what it stands for: the child that it called, or the items of a map."""
        latest = await known_step(self._store, run_id, step_id)
        if step_id == FLOW:
            refuse_what_is_over(latest)
            await self._refuse_parents_that_are_over(latest)
        elif latest.kind in ("flow", "map", "first"):
            await self._refuse_flow_that_is_over(run_id, step_id)
            await self._refuse_children_that_are_over(run_id, [step_id])
            child = child_of(latest)
            goes_on = child is not None and await self._reopen_child(child)
            await self._reopen_parts(latest)
            newest = await known_step(self._store, run_id, step_id)
            if (goes_on or newest.id != latest.id) and not decided(newest):
                return newest  # it went on with its child
        return await self.step(run_id, step_id, self.reopened)

    def reopened(self, latest: StepRecord) -> StepRecord | None:
        """Return the entry that reopens the step; None if it is already reopened."""
        if latest.step_id == FLOW:
            return self._flow_reopened(latest)
        if latest.status == "reopened":
            return None
        note = mending_note(latest, self._signed)
        if latest.kind == "step" and latest.status == "waiting":  # for its next attempt
            if latest.until is None or latest.until <= self._now:
                return None
            return successor(latest, self._now, until=self._now, error=latest.error, note=note)
        refuse_unless_stuck(latest)
        return successor(latest, self._now, status="reopened", note=note)

    async def run(self, run_id: str) -> StepRecord:
        """Let a run continue that failed, crashed, is parked or was interrupted; return the entry of its flow."""
        flow = await self._store.get(run_id, FLOW)
        if flow is None:
            await known_run(self._store, run_id)
            raise Refused(f"run {run_id!r} has no flow, so its log doesn't say which step to retry; pass step_id")
        async with self._held(flow) as flow:
            refuse_what_is_over(flow)
            await self._refuse_parents_that_are_over(flow)
            state = state_of(flow)
            if state == "failed":
                failed = await self._failed_steps(flow)
                await self._refuse_children_that_are_over(run_id, failed)
                for step_id in failed:
                    await self._reopen_if_failed(run_id, step_id)
            elif state == "parked":
                await self._reopen_what_parks(flow)
            latest = await known_step(self._store, run_id, FLOW)
            went_on = state == "parked" and latest.status == "reopened"  # with its child
            flow = latest if went_on else await self._advance(latest, self._flow_reopened)
        await self._let_parents_go_on(flow)
        return flow

    def _flow_reopened(self, flow: StepRecord) -> StepRecord | None:
        refuse_what_is_over(flow)
        state = state_of(flow)
        if flow.status == "reopened" and not is_crash(flow) and state == "waiting":
            return None
        if state in ("waiting", "cancelling"):
            waits = "is being cancelled" if state == "cancelling" else "waits: retry the step that it waits for, or run it"
            raise Refused(f"run {flow.run_id!r} can't be retried: it neither failed nor is it stuck; it {waits}")
        return successor(flow, self._now, status="reopened", until=None, note={**lasting(flow), **self._signed})

    @asynccontextmanager
    async def _held(self, latest: StepRecord) -> AsyncIterator[StepRecord]:
        """If the step was started, hold its run, because the step might be running now. Yield the step's newest entry."""
        if latest.status != "started":
            yield latest
            return
        async with holding(self._store, latest.run_id):
            yield await known_step(self._store, latest.run_id, latest.step_id)  # the run may just have recorded its outcome

    async def _advance(self, latest: StepRecord, mended: Callable[[StepRecord], StepRecord | None]) -> StepRecord:
        mine = ""

        def propose(latest: StepRecord | None) -> StepRecord | None:
            nonlocal mine
            assert latest is not None
            if latest.id == mine:
                return None
            if mine and decided(latest):
                raise AlreadyDecided(latest, f"it is {describe(latest)}")
            record = mended(latest)
            mine = "" if record is None else record.id
            return record

        return await advance(self._append, latest, propose)

    async def _failed_steps(self, flow: StepRecord) -> list[str]:
        """Return the steps whose failures ended the flow; in an older log, the steps that failed last."""
        if "failed" in flow.notes or flow.error is None:
            return ids_in(flow, "failed")
        if not (flow.error.matches(StepFailed) or flow.error.matches(BaseExceptionGroup)):
            return []
        found: list[str] = []
        for record in reversed(await self._store.list(flow.run_id)):
            if not record.step_id.startswith("$"):
                if record.status != "failure":
                    break
                found.insert(0, record.step_id)
        return found

    async def _reopen_if_failed(self, run_id: str, step_id: str) -> None:
        latest = await self._store.get(run_id, step_id)
        if latest is None or latest.status != "failure" or is_withdrawn(latest):
            return
        if (child := child_of(latest)) is not None:
            await self._reopen_child(child)
        await self._reopen_parts(latest)
        await self._advance(await known_step(self._store, run_id, step_id), self.reopened)  # it may have gone on with its child

    async def _reopen_parts(self, latest: StepRecord) -> None:
        """Reopen the items or contenders whose failures made a map or a race fail."""
        if latest.status == "failure":
            for step_id in failed_parts(latest):
                await self._reopen_if_failed(latest.run_id, step_id)

    async def _reopen_child(self, child: str) -> bool:
        """Let a child continue. Return False if it can do so without help."""
        flow = await self._store.get(child, FLOW)
        if flow is None or state_of(flow) not in ("failed", "crashed", "cancelled", "parked"):
            return False
        await self.run(child)
        return True

    async def _reopen_what_parks(self, flow: StepRecord) -> None:
        """Reopen the steps that parked a run, or let the children continue that stopped it."""
        for run_id, step_id in _parked_by(flow):
            if run_id != flow.run_id:
                await self._reopen_child(run_id)
                continue
            step = await self._store.get(run_id, step_id)
            if step is not None and step.status == "started":
                async with self._held(step) as step:
                    if step.status == "started":
                        await self._advance(step, self.reopened)

    async def _let_flows_go_on(self, mended: StepRecord) -> bool:
        """Reopen the flow that failed or is parked because of a repaired step, and its parents; return True if there was one."""
        if mended.step_id == FLOW:
            return await self._let_parents_go_on(mended)
        flow = await self._store.get(mended.run_id, FLOW)
        if flow is None:
            return False
        stopped = flow.status == "failure" or (mended.run_id, mended.step_id) in _parked_by(flow)
        if stopped:
            flow = await self._go_on(flow, f"{mended.step_id!r} was mended")
        return await self._let_parents_go_on(flow) or stopped

    async def _let_parents_go_on(self, flow: StepRecord) -> bool:
        """Reopen the parents that failed or are parked because of a child, one by one; return True if there was any."""
        found = False
        if flow.status == "reopened":
            async for parent, stopped in self._parents(flow):
                for step_id in stopped:
                    await self._reopen_step_of_parent(parent.run_id, step_id)
                await self._go_on(parent, f"its child {flow.run_id!r} was mended")
                found = True
        return found

    async def _reopen_step_of_parent(self, run_id: str, step_id: str) -> None:
        latest = await self._store.get(run_id, step_id)
        if latest is not None and latest.status == "failure":
            await self._advance(latest, self.reopened)

    async def _go_on(self, flow: StepRecord, reason: str) -> StepRecord:
        return await self._append(
            successor(flow, self._now, status="reopened", until=None, note={**lasting(flow), "reason": reason, **self._signed})
        )

    async def _parents(self, flow: StepRecord) -> AsyncIterator[tuple[StepRecord, list[str]]]:
        """Yield the parents that stopped because of this flow, upwards, each with the steps that stopped it."""
        below = {flow.run_id}
        while (named := parent_of(flow)) is not None:
            run_id, step_id = named
            parent = await self._store.get(run_id, FLOW)
            if parent is None:
                return
            stopped = await self._stopped_by(parent, step_id)
            if stopped or any(run in below for run, _ in _parked_by(parent)):
                yield parent, stopped
            elif parent.status != "reopened":  # by an earlier call of the same act that was interrupted
                return
            flow = parent
            below.add(parent.run_id)

    async def _stopped_by(self, parent: StepRecord, step_id: str) -> list[str]:
        """Return the step that called a child, and the map or race around it, if they stopped the parent."""
        for failed in ids_in(parent, "failed") if parent.status == "failure" else ():
            if failed == step_id:
                return [step_id]
            whole = await self._store.get(parent.run_id, failed)
            if whole is not None and step_id in failed_parts(whole):
                return [step_id, failed]
        return []

    async def _refuse_flow_that_is_over(self, run_id: str, step_id: str) -> None:
        flow = await self._store.get(run_id, FLOW)
        if flow is not None:
            refuse_what_is_over(flow, by_step=step_id)
            await self._refuse_parents_that_are_over(flow)

    async def _refuse_children_that_are_over(self, run_id: str, failed: Iterable[str]) -> None:
        """Raise `Refused` if something by which these steps failed can't continue, before any of it is reopened."""
        for step_id in failed:
            latest = await self._store.get(run_id, step_id)
            if latest is None or latest.status != "failure" or is_withdrawn(latest):
                continue
            child = child_of(latest)
            flow = None if child is None else await self._store.get(child, FLOW)
            if flow is not None and flow.status == "failure":
                refuse_what_is_over(flow)
                await self._refuse_children_that_are_over(flow.run_id, await self._failed_steps(flow))
            await self._refuse_children_that_are_over(run_id, failed_parts(latest))

    async def _refuse_parents_that_are_over(self, flow: StepRecord) -> None:
        async for parent, _ in self._parents(flow):
            refuse_what_is_over(parent)


def mending_note(latest: StepRecord, signed: dict[str, str]) -> Any:
    """Return the note of the entry that repairs `latest`: the same, with who acts and why."""
    if not signed and not {"reason", "by"} & latest.notes.keys():
        return latest.note
    return {**{name: value for name, value in latest.notes.items() if name not in ("reason", "by")}, **signed}


def refuse_what_is_over(flow: StepRecord, *, by_step: str | None = None) -> None:
    """Raise `Refused` for a run that can't continue: it was undone, or ended without having failed.

    A step that failed while it undid something may be repaired alone: the run then continues to undo.
    """
    state = state_of(flow)
    if state == "cancelled":
        raise Refused(
            f"run {flow.run_id!r} was cancelled and can't continue; fork(store, {flow.run_id!r}, …, before=…) begins a new run"
        )
    if state == "succeeded":
        if by_step is None:
            raise Refused(f"run {flow.run_id!r} succeeded, so there is nothing to retry")
        raise Refused(
            f"run {flow.run_id!r} succeeded, so nothing runs its step {by_step!r} again; start a new run for it, or"
            f" fork(store, {flow.run_id!r}, …, before={by_step!r}), which also runs again what began after it"
        )
    if state == "failed" and (answers := ids_in(flow, "answered_by")) and by_step not in answers:
        raise Refused(
            f"the flow of run {flow.run_id!r} answered its failure with {', '.join(map(repr, answers))}, which may have undone"
            f" earlier steps, so it can't continue; call fork(store, {flow.run_id!r}, …, before=…) with the first step undone"
        )


def refuse_unless_stuck(latest: StepRecord) -> None:
    """Raise `Refused` for a step that neither failed nor was interrupted, and for a wait that is no longer needed."""
    what = f"{latest.step_id!r} of run {latest.run_id!r}"
    if is_withdrawn(latest):
        raise Refused(f"{what} lost to another contender, so its outcome is no longer needed")
    stuck = latest.status in ("failure", "started")
    if latest.step_id == FLOW:
        stuck = state_of(latest) in ("failed", "started", "crashed", "parked")
    if not stuck:
        raise Refused(f"{what} neither failed nor was interrupted: it is {describe(latest)}")


def is_withdrawn(latest: StepRecord) -> bool:
    """Return True if the step is a wait that lost to another contender of `first`."""
    return latest.status == "failure" and latest.error is not None and latest.error.matches(Withdrawn)


def _parked_by(flow: StepRecord) -> list[tuple[str, str]]:
    """Return the runs and steps that parked a run."""
    return waits_of(flow) if is_parked(flow) else []
