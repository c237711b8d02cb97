"""The quick way through the answers to LIST says what botocore's own says."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from durable_core import open_store
from durable_s3 import S3Store, _listing
from tests.s3.support import entry, open_at
from tests.servers.s3 import S3Server

HOSTILE = ["a/b", "..", " spaced  out ", "👩‍👩‍👧", "%2F", "a\\b", "a&b<c>'\"", "~!*'()", "+"]


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["moto_server", "ministack_server"])
async def test_it_says_what_botocores_own_does(name: str, request: pytest.FixtureRequest) -> None:
    """Keys, ETags, times, folders and pages, whatever stands in the keys; a store around a client of yours uses botocore's."""
    server: S3Server = request.getfixturevalue(name)
    prefix = f"of & <{uuid4().hex}>"
    async with open_store(f"{server.url(prefix)}&probe=false") as quick, open_at(server.endpoint, prefix, probe=False) as plain:
        assert isinstance(quick, S3Store)
        for id_ in HOSTILE:
            await quick.append(entry(id_, run_id=id_))
        for store in (quick, plain):
            assert {run_id async for run_id in store.runs()} == set(HOSTILE)
        for folder, delimiter, objects in (("runs/", None, len(HOSTILE)), ("runs/", "/", 0), ("none/", None, 0)):
            found = [
                [(page.objects, page.folders) async for page in store._bucket.pages(f"{prefix}/{folder}", delimiter=delimiter)]
                for store in (quick, plain)
            ]
            assert found[0] == found[1]
            assert sum(len(page[0]) for page in found[0]) == objects


def test_an_empty_text_is_text() -> None:
    """As botocore has it."""
    found = b"<Contents><Key/><ETag/><LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
    body = b"<ListBucketResult>%b</ListBucketResult>" % found
    taken: dict[str, Any] = {}
    _listing._take_contents({"status_code": 200, "body": body}, taken)
    assert [(object_["Key"], object_["ETag"]) for object_ in taken["Contents"]] == [("", "")]


@pytest.mark.parametrize(
    "body",
    [
        b"<ListBucketResult><Contents>",
        b"<ListBucketResult><Contents><Key>a</Key></Contents></ListBucketResult>",
        b"<ListBucketResult><Contents><Key>a</Key><ETag>e</ETag><LastModified>today</LastModified></Contents></ListBucketResult>",
        b"<Error><Code>InternalError</Code></Error>",
    ],
)
def test_what_it_does_not_know_is_left_to_botocore(body: bytes) -> None:
    answer: dict[str, Any] = {"status_code": 200, "body": body}
    taken: dict[str, Any] = {}
    _listing._take_contents(answer, taken)
    assert (answer["body"], taken) == (body, {})
