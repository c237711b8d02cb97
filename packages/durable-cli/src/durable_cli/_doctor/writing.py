"""Checks that writes are kept, and that only one record wins a slot."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from durable_core import StepError, StepRecord, open_store

from .finding import Safe, Unsafe, check, rounds
from .processes import read
from .scratch import ids

if TYPE_CHECKING:
    from .scratch import Scratch

_KEPT: Final = 20
_SLOTS: Final = 5


@check("opens", "Opening", danger="nothing else could be checked")
async def opens(scratch: Scratch) -> Safe:
    for store in (scratch.store, scratch.another):
        await store.get(scratch.flow, "step")
    await scratch.processes(scratch.rivals)
    return Safe(f"by two connections of this process, and by {scratch.rivals} other processes")


@check(
    "kept", "Writes", promise="what was written survives the process that wrote it", danger="a step that has run would run again"
)
async def kept(scratch: Scratch) -> Safe:
    run_id = scratch.run_id("kept")
    records = [StepRecord(run_id=run_id, step_id=f"step {number}", result=b'"\xc3\xa9"') for number in range(2 * _KEPT)]
    records.append(
        StepRecord(run_id=run_id, step_id="failed", status="failure", error=StepError("OSError", "full"), note={"a": 1})
    )

    async with open_store(scratch.url) as closed:
        for record in records[2 * _KEPT :]:
            await closed.append(record)
    writer, reader = await scratch.processes(2)
    await writer.append(*records[:_KEPT], together=False)
    await writer.append(*records[_KEPT : 2 * _KEPT])
    await writer.kill()

    async with open_store(scratch.url) as reopened:
        listings = {
            "a connection that was opened after it": await reopened.list(run_id),
            "a connection that was opened before it": await scratch.store.list(run_id),
            "another process": await reader.list(run_id),
        }
    for who, listed in listings.items():
        found = {record.step_id: record for record in listed}
        if missing := [record.step_id for record in records if record.step_id not in found]:
            raise Unsafe(f"{len(missing)} of {len(records)} confirmed writes are missing for {who}")
        if changed := [record.step_id for record in records if found[record.step_id] != record]:
            raise Unsafe(f"{len(changed)} of {len(records)} confirmed writes are changed for {who}")
    return Safe(f"all {len(records)} writes of a killed process and of a closed connection are there")


@check(
    "slot",
    "A slot, taken twice",
    promise="nothing that is recorded is replaced",
    danger="an outcome could be replaced by another one",
)
async def slot(scratch: Scratch) -> Safe:
    run_id = scratch.run_id("slot")
    (process,) = await scratch.processes(1)
    first = await scratch.store.append(StepRecord(run_id=run_id, step_id="step"))
    for again in (first, *(StepRecord(run_id=run_id, step_id="step", status="failure") for _ in range(2))):
        answers = {
            "the connection that wrote it": [await scratch.store.append(again)],
            "another connection": [await scratch.another.append(again)],
            "another process": await process.append(again),
        }
        for who, answer in answers.items():
            if ids(answer) != [first.id]:
                raise Unsafe(f"a slot that was taken was given to another record, for {who}")
    if ids(await scratch.another.list(run_id)) != [first.id]:
        raise Unsafe("a write that lost its slot is in the log")
    return Safe("a later write gets the record of the first one, and is not stored")


@check(
    "race",
    "A race",
    promise="a step has one outcome, however many processes write it",
    danger="a step could run twice, and a run could continue with two outcomes",
)
async def race(scratch: Scratch) -> Safe:
    run_id = scratch.run_id("race")
    slots: dict[str, set[str]] = {}
    """For each slot, the ids of the holders that the processes got."""
    for number in rounds(20, seconds=2):
        steps = [f"step {number}.{part}" for part in range(_SLOTS)]
        for answer in await scratch.all_ask("contend", run_id=run_id, steps=steps):
            for holder in read(answer):
                slots.setdefault(holder.step_id, set()).add(holder.id)
        for step_id in steps:
            if (winners := len(slots[step_id])) > 1:
                raise Unsafe(f"{winners} processes each won the slot {step_id!r}")
    listed = await scratch.store.list(run_id)
    counts = Counter(record.step_id for record in listed)
    if twice := [step_id for step_id, count in counts.items() if count > 1]:
        raise Unsafe(f"the slot {twice[0]!r} is in the log {counts[twice[0]]} times")
    if {record.step_id: {record.id} for record in listed} != slots:
        raise Unsafe("the log holds other records than those that the processes were given")
    return Safe(f"{scratch.rivals} processes raced for {len(slots)} slots: each has one winner, and all got its record")


@check("clear", "Clearing", danger="a run could keep outcomes that it should not, or lose those that it should keep")
async def clear(scratch: Scratch) -> Safe:
    run_id, neighbour = scratch.run_id("clear"), scratch.run_id("clear-not")
    (process,) = await scratch.processes(1)
    kept = await scratch.store.append(StepRecord(run_id=neighbour, step_id="step"))
    for number in range(10):
        await scratch.store.append(StepRecord(run_id=run_id, step_id=f"step {number % 5}", revision=number // 5))
    await scratch.another.list(run_id)
    await scratch.store.clear(run_id)
    left = [await scratch.store.list(run_id), await scratch.another.list(run_id), await process.list(run_id)]
    if any(left):
        raise Unsafe(f"{max(map(len, left))} of 10 entries are still there after their run was cleared")
    new = StepRecord(run_id=run_id, step_id="step 0")
    if ids([await scratch.another.append(new)]) != [new.id] or ids(await scratch.store.list(run_id)) != [new.id]:
        raise Unsafe("a slot of a cleared run is not free")
    if ids(await scratch.another.list(neighbour)) != [kept.id]:
        raise Unsafe("clearing one run removed entries of another run")
    return Safe("the slots of a cleared run are free again for everybody, and no other run was touched")
