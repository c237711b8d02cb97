"""Checks that the endpoint honours `If-None-Match`. If it did not, two writers could win the same slot."""

from __future__ import annotations

from typing import Final

from durable_core.errors import StoreError

from . import _faults
from ._bucket import Bucket

_BODY: Final = b'{"about":"durable-s3 puts this once to see that If-None-Match is honoured; it may stay"}'
HONOURED: Final[set[tuple[str, str]]] = set()
"""Endpoints and buckets that have passed the check in this process."""


async def refuse_careless(bucket: Bucket, key: str, honoured: set[tuple[str, str]]) -> None:
    """Raise `StoreError` unless the endpoint refuses a second conditional PUT of the same key.

    Sends one or two small requests for each bucket, once a process. A user without the right to write passes: it can only read.
    """
    await bucket.connection.open()
    place = (bucket.connection.address, bucket.name)
    if place in honoured:
        return
    try:
        for _ in range(2):
            if not await bucket.create(key, _BODY):
                honoured.add(place)
                return
    except StoreError as error:
        if _faults.denied(error):
            return
        if error.__cause__ is None or _faults.status(error.__cause__) != 501:
            raise
        cause: StoreError | None = error
    else:
        cause = None
    raise StoreError(
        f"{place[0]} ignores If-None-Match on PUT (seen in bucket {bucket.name!r}), so two writers could win one step;"
        " use an endpoint that has conditional writes, or another store. ?probe=false skips this check"
    ) from cause
