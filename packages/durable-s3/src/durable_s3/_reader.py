"""Reads a whole run. LIST says which entries exist, a snapshot saves requests, and the rest is read 32 at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from durable_core.errors import CorruptLog, StoreError
from durable_core.record import StepRecord
from durable_core.stores.lines import RecordLines

from . import _entry, _faults, _snapshot
from ._bucket import Bucket, Object
from ._entry import Entry, Head, Place
from ._keys import Keys

T = TypeVar("T")

_WIDTH: Final = 32
_log: Final = logging.getLogger("durable_s3")


class Reader:
    """Reads the entries of runs, in order of append."""

    smallest_snapshot = 100
    """A run with fewer entries gets no snapshot. A snapshot is rewritten when it lacks so many entries."""
    largest_snapshot = 256 * 1024 * 1024

    def __init__(self, bucket: Bucket, keys: Keys, storage_class: str | None) -> None:
        self._bucket: Final = bucket
        self._keys: Final = keys
        self._storage_class: Final = storage_class
        self._may_write = True
        self._long: Final[set[str]] = set()
        """Long runs. Listing their steps one by one takes fewer requests than listing the whole run."""

    async def read(self, run_id: str) -> tuple[Sequence[StepRecord], int]:
        """Return the run's entries in order, and the highest place among them.

        Raises `CorruptLog` if one of the objects is not an entry of this run. Writes a snapshot if that saves the next reader
        requests. If it can't, it logs that: a missing snapshot does no harm.
        """
        ordered, highest = await self._bucket.connection.run(self._in_order, run_id, await self._consistent(run_id))
        if self._may_write:
            settled = sum(entry.place is not None for entry in ordered)
            if len(ordered) - settled >= self.smallest_snapshot:
                await self._write_snapshot(run_id, ordered, settled)
        bodies = [entry.body for entry in ordered]
        return RecordLines(bodies, where=lambda number: f"the object {ordered[number - 1].key!r}"), highest

    async def scan(self, run_id: str) -> AsyncIterator[tuple[StepRecord, int]]:
        """Yield the run's entries in order, each with its place. Keeps only keys, places and a few bodies in memory.

        Reads an entry that is not in the snapshot twice: for its place, and when its turn comes.
        """
        listed = await self._listed(run_id)
        await self._from_snapshot(run_id, listed, bodies=False)
        async for entry in self._one_by_one([entry for entry in listed.values() if entry.place is None]):
            entry.place = self._checked(run_id, entry)
        places = [entry.place for entry in listed.values() if entry.place is not None]
        ordered = await self._bucket.connection.run(_entry.in_order, [*listed.values()], places)
        async for entry in self._one_by_one(ordered):
            yield StepRecord.from_json(entry.body, where=f"the object {entry.key!r}"), entry.place.order if entry.place else 0

    async def _one_by_one(self, entries: Sequence[Entry]) -> AsyncIterator[Entry]:
        """Yield each entry with its body. Raises `StoreError` if one was deleted or changed since it was listed."""
        for start in range(0, len(entries), _WIDTH):
            page = {entry.key: entry for entry in entries[start : start + _WIDTH]}
            etags = [entry.etag for entry in page.values()]
            await self._fetch_all(page)
            for etag, entry in zip(etags, page.values(), strict=True):
                if not entry.body or entry.etag != etag:
                    raise StoreError(
                        f"{entry.key!r} was changed or deleted while its run was read; was the run cleared? Read it again"
                    )
                yield entry
                entry.body = b""

    async def _consistent(self, run_id: str) -> list[Entry]:
        """Return all entries as they were at one moment."""
        before: Mapping[str, Entry] = {}
        while True:
            listed = await self._listed(run_id)
            # Read the snapshot after LIST. `clear` removes it first, so if it is still there, LIST had all of its entries.
            await self._from_snapshot(run_id, listed)
            for key, entry in before.items():
                if entry.body and key in listed and listed[key].etag == entry.etag:
                    listed[key].body = entry.body
            await self._fetch_all(listed)
            gone = [entry for entry in listed.values() if not entry.body]
            if not gone:
                return [*listed.values()]
            for entry in gone:
                # A cleared entry would not be listed again, and a new one would have another ETag.
                if (earlier := before.get(entry.key)) and not earlier.body and earlier.etag == entry.etag:
                    raise listed_but_missing(self._bucket, entry)
            # Some entries were cleared meanwhile. `clear` removes the newest first, so a new LIST shows a beginning of the log.
            before = listed

    async def newest(self, run_id: str, steps: Collection[str]) -> Sequence[tuple[str, Object]]:
        """Return the object of each step's newest entry. Lists the run once, or each step once if the run is long."""
        folders = {self._keys.step(run_id, step_id): step_id for step_id in steps}
        if len(folders) > 1 and run_id not in self._long:
            found: dict[str, Object] = {}
            left = len(folders)
            async for page in self._bucket.pages(self._keys.run(run_id)):
                for at in page.objects:
                    folder = f"{at.key.rpartition('/')[0]}/"
                    if folder in folders:
                        found.setdefault(folders[folder], at)
                left -= 1
                if not left:
                    break
            if left:
                return [*found.items()]
            self._long.add(run_id)
        pages = await together(self._bucket.first(folder) for folder in folders)
        return [(step_id, page.objects[0]) for step_id, page in zip(folders.values(), pages, strict=True) if page.objects]

    async def removable(self, run_id: str) -> list[str]:
        """Return the keys of the run's entries, newest first. Entries that can't be read come before all others."""
        listed = await self._listed(run_id)
        await self._from_snapshot(run_id, listed)
        await self._fetch_all(listed)
        return await self._bucket.connection.run(_newest_first, [*listed.values()])

    async def run_id(self, folder: str) -> str | None:
        """Return the id of the run in `folder`, read from one of its entries. None if it has no entries.

        Raises `ValueError` or `CorruptLog` if the folder does not belong to a run.
        """
        for object_ in (await self._bucket.first(folder)).objects:
            content = await self._bucket.read(object_.key)
            if content is not None:
                run_id = _entry.head(content.body, object_.key).run_id
                if (own := self._keys.run(run_id)) != folder:
                    raise ValueError(f"it holds an entry of run {run_id!r}, whose folder is {own!r}")
                return run_id
        return None

    async def _listed(self, run_id: str) -> dict[str, Entry]:
        """Return the run's entries by key, without their bodies."""
        folder = self._keys.run(run_id)
        return {at.key: Entry(at.key, at.etag) async for page in self._bucket.pages(folder) for at in page.objects}

    async def _fetch_all(self, listed: Mapping[str, Entry]) -> None:
        """Read the bodies of entries that have none. Entries removed meanwhile stay without."""
        missing = [entry for entry in listed.values() if not entry.body]
        rest = iter(missing)
        width = min(_WIDTH, self._bucket.connection.width, len(missing))
        await together(self._fetch(rest) for _ in range(width))

    async def _fetch(self, rest: Iterator[Entry]) -> None:
        for entry in rest:
            content = await self._bucket.read(entry.key)
            if content is not None:
                # A space stands for an empty object, which is not an entry, but was read.
                entry.etag, entry.body = content.etag, content.body or b" "

    def _in_order(self, run_id: str, entries: Sequence[Entry]) -> tuple[Sequence[Entry], int]:
        places = [entry.place or self._checked(run_id, entry) for entry in entries]
        return _entry.in_order(entries, places), max((place.order for place in places), default=0)

    def _checked(self, run_id: str, entry: Entry) -> Place:
        head = _entry.head(entry.body, entry.key)
        key = self._keys.entry(head.run_id, head.step_id, head.revision)
        if head.run_id != run_id or key != entry.key:
            raise CorruptLog(
                f"the object {entry.key!r} holds revision {head.revision} of step {head.step_id!r} of run {head.run_id!r},"
                f" which belongs at {key!r}; it was copied or renamed by hand: put it back"
            )
        return Place(head.order, head.revision)

    async def _from_snapshot(self, run_id: str, listed: Mapping[str, Entry], *, bodies: bool = True) -> None:
        """Fill in places and bodies from the snapshot."""
        if len(listed) < self.smallest_snapshot:
            return
        folder = self._keys.run(run_id)

        def fill(chunks: Iterable[bytes]) -> int:
            return _snapshot.fill(chunks, run_id, folder, listed, bodies=bodies)

        count = await self._bucket.read_chunks(self._keys.snapshot(run_id), fill)
        if count == 0:
            _log.warning("the snapshot of run %r is damaged or of another log; ignored", run_id)

    async def _write_snapshot(self, run_id: str, entries: Sequence[Entry], before: int) -> None:
        key, folder = self._keys.snapshot(run_id), self._keys.run(run_id)
        data, count = await self._bucket.connection.run(_snapshot.encode, run_id, folder, entries, self.largest_snapshot)
        if count - before < self.smallest_snapshot:
            return
        try:
            await self._bucket.put(key, data, patience=0, storage_class=self._storage_class)
            if not (await self._bucket.first(folder)).objects:
                await self._bucket.delete([key])  # the run was cleared meanwhile
        except StoreError as error:
            self._may_write = not _faults.denied(error)
            _log.info("no snapshot of run %r was written: %s", run_id, error)


async def together(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run coroutines at the same time, and return their results. If one fails, cancel the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def listed_but_missing(bucket: Bucket, entry: Entry) -> StoreError:
    """Make the error for an object that LIST showed twice and GET did not find."""
    return StoreError(
        f"s3://{bucket.name}/{entry.key} is listed with ETag {entry.etag!r}, but GET does not find it, and did not a moment ago;"
        f" {bucket.connection.address} must list what it holds: repair its index, or use another endpoint"
    )


def _newest_first(entries: Sequence[Entry]) -> list[str]:
    readable: list[Entry] = []
    heads: list[Head] = []
    for entry in entries:
        try:
            heads.append(_entry.head(entry.body, entry.key))
        except CorruptLog:
            continue
        readable.append(entry)
    ordered = [entry.key for entry in reversed(_entry.in_order(readable, heads))]
    known = set(ordered)
    return [entry.key for entry in entries if entry.key not in known] + ordered
