"""Reading a whole run: LIST is the truth, a snapshot saves requests, and the rest is read 32 at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from durable_core.errors import CorruptLog, StoreError

from . import _entry, _faults, _snapshot
from ._bucket import Bucket, Object
from ._entry import Entry, Head
from ._keys import Keys

_WIDTH: Final = 32
_log: Final = logging.getLogger("durable_s3")


class Reader:
    """Reads the entries of runs, in order of append."""

    def __init__(self, bucket: Bucket, keys: Keys, storage_class: str | None) -> None:
        self._bucket: Final = bucket
        self._keys: Final = keys
        self._storage_class: Final = storage_class
        self._may_write = True

    async def _listed(self, run_id: str) -> list[Object]:
        folder = self._keys.run(run_id)
        return [object_ async for page in self._bucket.pages(folder) for object_ in page.objects]

    async def read(self, run_id: str) -> tuple[Sequence[Entry], int]:
        """Return the run's entries in order, and the highest place that one has.

        Raises `CorruptLog` for an object among them that is no entry of this run. Writes a snapshot where that saves the next
        reader requests; failing to is logged and does no harm.
        """
        entries, known = await self._consistent(run_id)
        ordered, highest = await self._bucket.connection.run(self._arranged, run_id, entries)
        if self._may_write and len(entries) - known >= _snapshot.SMALLEST:
            await self._write_snapshot(run_id, ordered, known)
        return ordered, highest

    async def _consistent(self, run_id: str) -> tuple[list[Entry], int]:
        """Return all entries of one moment, and how many came from a snapshot."""
        fetched: dict[str, Entry] = {}
        while True:
            listed = await self._listed(run_id)
            # After LIST: as `clear` removes the snapshot first, nothing of what it holds was missing in that LIST.
            known = await self._snapshot(run_id, listed)
            again = {at.key: fetched[at.key] for at in listed if at.key in fetched and fetched[at.key].etag == at.etag}
            entries = await self._fetched(listed, {**again, **known})
            if len(entries) == len(listed):
                return entries, len(known)
            # Entries went while the run was read. As the newest go first, a new LIST and what it shows is a beginning again.
            fetched = {entry.key: entry for entry in entries}

    async def removable(self, run_id: str) -> list[str]:
        """Return the keys of the run's entries, newest first; those that can't be read count as newest."""
        listed = await self._listed(run_id)
        known = await self._snapshot(run_id, listed)
        entries = await self._fetched(listed, known)
        return await self._bucket.connection.run(_newest_first, listed, entries)

    async def run_id(self, folder: str) -> str | None:
        """Return the id of the run in `folder` as one of its entries says it, or None if there is none."""
        for object_ in (await self._bucket.first(folder)).objects:
            content = await self._bucket.read(object_.key)
            if content is not None:
                return _entry.head(content.body, object_.key).run_id
        return None

    async def _fetched(self, listed: Sequence[Object], known: Mapping[str, Entry]) -> list[Entry]:
        """Get the objects that are not `known`; those removed meanwhile are left out."""
        found = dict(known)
        rest = iter([object_ for object_ in listed if object_.key not in found])
        width = min(_WIDTH, self._bucket.connection.width, len(listed) - len(found))
        workers = [asyncio.ensure_future(self._fetch(rest, found)) for _ in range(width)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
        return [*found.values()]

    async def _fetch(self, rest: Iterator[Object], found: dict[str, Entry]) -> None:
        for object_ in rest:
            content = await self._bucket.read(object_.key)
            if content is not None:
                found[object_.key] = Entry(object_.key, content.etag, content.body)

    def _arranged(self, run_id: str, entries: Sequence[Entry]) -> tuple[Sequence[Entry], int]:
        heads = [self._checked(run_id, entry) for entry in entries]
        highest = max((head.order for head in heads), default=0)
        return _entry.arranged(entries, heads), highest

    def _checked(self, run_id: str, entry: Entry) -> Head:
        head = _entry.head(entry.body, entry.key)
        key = self._keys.entry(head.run_id, head.step_id, head.revision)
        if head.run_id != run_id or key != entry.key:
            raise CorruptLog(
                f"the object {entry.key!r} holds revision {head.revision} of step {head.step_id!r} of run {head.run_id!r},"
                f" which belongs at {key!r}; it was copied or renamed by hand: put it back"
            )
        return head

    async def _snapshot(self, run_id: str, listed: Sequence[Object]) -> Mapping[str, Entry]:
        if len(listed) < _snapshot.SMALLEST:
            return {}
        content = await self._bucket.read(self._keys.snapshot(run_id))
        if content is None:
            return {}
        decode, folder = _snapshot.decode, self._keys.run(run_id)
        known = await self._bucket.connection.run(decode, content.body, run_id, folder, listed)
        if not known:
            _log.warning("the snapshot of run %r is damaged or of another log; ignored", run_id)
        return known

    async def _write_snapshot(self, run_id: str, entries: Sequence[Entry], before: int) -> None:
        key, folder = self._keys.snapshot(run_id), self._keys.run(run_id)
        encode = _snapshot.encode
        data, count = await self._bucket.connection.run(encode, run_id, folder, entries)
        if count - before < _snapshot.SMALLEST:
            return
        try:
            await self._bucket.put(key, data, patience=0, storage_class=self._storage_class)
            if not (await self._bucket.first(folder)).objects:
                await self._bucket.delete([key])  # the run was cleared meanwhile
        except StoreError as error:
            self._may_write = not _faults.denied(error)
            _log.info("no snapshot of run %r was written: %s", run_id, error)


def _newest_first(listed: Sequence[Object], entries: Sequence[Entry]) -> list[str]:
    readable: list[Entry] = []
    heads: list[Head] = []
    for entry in entries:
        try:
            heads.append(_entry.head(entry.body, entry.key))
        except CorruptLog:
            continue
        readable.append(entry)
    ordered = [entry.key for entry in reversed(_entry.arranged(readable, heads))]
    known = set(ordered)
    return [object_.key for object_ in listed if object_.key not in known] + ordered
