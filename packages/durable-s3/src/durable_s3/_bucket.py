"""The store's requests to a bucket. Failed requests are repeated where that is safe."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple, TypeVar

from botocore.exceptions import ClientError, ResponseStreamingError  # type: ignore[import-untyped]  # it ships no types

from . import _faults
from ._connection import Connection

T = TypeVar("T")

PAGE: Final = 1000
"""The most keys that S3 lists in one answer."""
_CHUNK_BYTES: Final = 1024 * 1024


class Object(NamedTuple):
    key: str
    etag: str
    modified: datetime


class Page(NamedTuple):
    objects: Sequence[Object]
    folders: Sequence[str]
    date: datetime | None
    """The server's clock when it answered."""


class Content(NamedTuple):
    body: bytes
    etag: str


class Bucket:
    """One bucket. Raises `StoreError` with the cause and what to do. `patience` is how long to repeat requests, in seconds."""

    delete_batch = 1000
    patience = 15.0  # with one last request that times out, less than the 30 s that a runner gives its store

    def __init__(self, name: str, connection: Connection, writes: Mapping[str, str], *, for_leases: bool = False) -> None:
        self.name: Final = name
        self.connection: Final = connection
        self._for_leases: Final = for_leases
        self._writes: Final = dict(writes)

    async def create(self, key: str, body: bytes, *, storage_class: str | None = None, patience: float | None = None) -> bool:
        """Put the object unless there is one at `key`. Return True if this call put it.

        Also returns False if an earlier attempt put it and the answer was lost: read the object to know.
        """

        def create(client: Any) -> bool:
            try:
                client.put_object(**self._put(key, body, storage_class), IfNoneMatch="*")
            except ClientError as error:
                if not _faults.taken(error):
                    raise
                return False
            return True

        return await self._call("s3:PutObject", key, create, patience)

    async def put(
        self, key: str, body: bytes, *, storage_class: str | None = None, patience: float | None = None
    ) -> datetime | None:
        """Put the object, and return the server's clock when it answered."""
        put = self._put(key, body, storage_class)
        return _date(await self._call("s3:PutObject", key, lambda client: client.put_object(**put), patience))

    def _put(self, key: str, body: bytes, storage_class: str | None) -> dict[str, Any]:
        # MD5 is the only checksum that every S3 server verifies. boto3 adds its own if configured.
        checksum = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        put = {"Bucket": self.name, "Key": key, "Body": body, "ContentMD5": checksum, **self._writes}
        return put | ({"StorageClass": storage_class} if storage_class else {}) | {"ContentType": "application/json"}

    async def read(self, key: str, *, patience: float | None = None) -> Content | None:
        def content(answer: Mapping[str, Any]) -> Content:
            return Content(answer["Body"].read(), answer["ETag"].strip('"'))

        return await self._get(key, content, patience)

    async def read_chunks(self, key: str, consume: Callable[[Iterable[bytes]], T]) -> T | None:
        """Call `consume` with a large object's chunks on a thread, and return its result. Calls it again if reading fails."""
        return await self._get(key, lambda answer: consume(answer["Body"].iter_chunks(_CHUNK_BYTES)), None)

    async def _get(self, key: str, take: Callable[[Mapping[str, Any]], T], patience: float | None) -> T | None:
        def get(client: Any) -> T | None:
            try:
                answer = client.get_object(Bucket=self.name, Key=key)
            except ClientError as error:
                if not _faults.missing(error):
                    raise
                return None
            # Not `with`, which would give the raw stream: its reads don't notice a premature end.
            with closing(answer["Body"]):
                return take(_whole(answer))

        return await self._call("s3:GetObject", key, get, patience)

    async def pages(self, prefix: str, *, delimiter: str | None = None, most: int = PAGE) -> AsyncIterator[Page]:
        """Yield all keys that start with `prefix`, in order, up to `most` a page. With `delimiter`, yield only folders."""
        options: dict[str, Any] = {"MaxKeys": most} | ({"Delimiter": delimiter} if delimiter else {})
        token: str | None = ""
        while token is not None:
            page, token = await self._page(prefix, options)
            yield page
            options["ContinuationToken"] = token or ""

    async def first(self, prefix: str, most: int = 1) -> Page:
        """Return the lowest keys that start with `prefix`, up to `most`. There may be none."""
        options: dict[str, Any] = {"MaxKeys": most}
        while True:
            page, token = await self._page(prefix, options)
            if page.objects or token is None:
                return page
            options["ContinuationToken"] = token

    async def _page(self, prefix: str, options: Mapping[str, Any]) -> tuple[Page, str | None]:
        asked = {"Bucket": self.name, "Prefix": prefix, **options}
        answer = await self._call("s3:ListBucket", prefix, lambda client: _whole(client.list_objects_v2(**asked)))
        objects = [Object(item["Key"], item["ETag"].strip('"'), item["LastModified"]) for item in answer.get("Contents", ())]
        folders = [item["Prefix"] for item in answer.get("CommonPrefixes", ())]
        token = answer["NextContinuationToken"] if answer.get("IsTruncated") else None
        return Page(objects, folders, _date(answer)), token

    async def delete(self, keys: Sequence[str], *, patience: float | None = None) -> None:
        """Delete objects in the given order, up to 1,000 a request. Passes over those that don't exist.

        Sends a request only after the one before has deleted all of its objects.
        """
        for start in range(0, len(keys), self.delete_batch):
            batch = {"Objects": [{"Key": key} for key in keys[start : start + self.delete_batch]]}
            await self._call("s3:DeleteObject", keys[start], self._delete(batch), patience)

    def _delete(self, batch: Mapping[str, Any]) -> Callable[[Any], None]:
        def delete(client: Any) -> None:
            answer = _whole(client.delete_objects(Bucket=self.name, Delete={**batch, "Quiet": True}))
            if errors := answer.get("Errors"):
                raise _faults.refused_key(errors[0])

        return delete

    async def _call(self, right: str, key: str, request: Callable[[Any], T], patience: float | None = None) -> T:
        until = time.monotonic() + (self.patience if patience is None else patience)
        pause = 0.1
        while True:
            try:
                return await self.connection.request(request, for_lease=self._for_leases)
            except _faults.ERRORS as error:
                if not _faults.transient(error) or time.monotonic() + pause > until:
                    at = f"s3://{self.name}/{key}"
                    raise _faults.store_error(error, right, at, self.connection.address) from error
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, 3.0)


def _whole(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an answer whose head came to its end. Raises an error that is transient if it didn't.

    Python takes what is there of a head for all of it. Then the body has no length and is empty: a run without entries.
    """
    headers = answer["ResponseMetadata"]["HTTPHeaders"]
    if not headers.get("content-length", "").isdecimal() and headers.get("transfer-encoding", "").lower() != "chunked":
        raise ResponseStreamingError(error="the answer says nothing of its length, so its end may be missing")
    return answer


def _date(answer: Mapping[str, Any]) -> datetime | None:
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    return parsedate_to_datetime(date) if date else None
