"""`s3://bucket/prefix?option=value`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import boto3  # type: ignore[import-untyped]  # it ships no types
from botocore.config import Config  # type: ignore[import-untyped]  # as above
from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]  # as above
from botocore.handlers import add_expect_header  # type: ignore[import-untyped]  # as above

from durable_core.errors import StoreError
from durable_core.stores.urls import StoreURL, boolean, integer, seconds

from . import _listing
from ._connection import LEASE_THREADS

_CREDENTIALS: Final = ("access_key", "secret", "token", "password")
_CONNECT_SECONDS: Final = 3
_READ_SECONDS: Final = 10


class Place(NamedTuple):
    """The parts of a URL: a function that makes a client, where the logs are, and the other options of the store."""

    connect: Callable[[], Any]
    bucket: str
    prefix: str
    connections: int
    options: Mapping[str, Any]


def parse(text: str) -> Place:
    """Parse a URL. Raises `StoreError` if it has no bucket, has credentials, or has an option that is unknown or wrong."""
    url = StoreURL(text)
    if not text.partition(":")[2].startswith("//"):
        raise StoreError("a URL of the scheme 's3' begins with s3://bucket; this one has no //")
    _refuse_credentials(url)
    bucket, prefix = url.parts.netloc, url.path.strip("/")
    if not bucket or ":" in bucket:
        raise StoreError(f"{url} has no bucket; write s3://bucket/prefix, and an address as ?endpoint_url=")
    options = url.options(
        {
            "region": str,
            "endpoint_url": _endpoint,
            "profile": str,
            "addressing_style": _one_of("auto", "path", "virtual"),
            "max_connections": integer(least=1),
            "sse": str,
            "kms_key_id": str,
            "storage_class": str,
            "lease": seconds,
            "probe": boolean,
        }
    )
    connections = options.pop("max_connections", 32)
    connect = functools.partial(
        _connect,
        str(url),
        connections,
        **{name: options.pop(name, None) for name in ("region", "endpoint_url", "profile", "addressing_style")},
    )
    return Place(connect, bucket, prefix, connections, options)


def _refuse_credentials(url: StoreURL) -> None:
    secret = [name for name, _ in url.query if any(word in name.lower() for word in _CREDENTIALS)]
    address = "".join(text for name, text in url.query if name == "endpoint_url")
    if "@" in url.parts.netloc or "@" in address or secret:
        raise StoreError(
            # Don't show the URL: redaction does not find percent-encoded credentials, as in an endpoint.
            "credentials don't belong in a URL; boto3 finds them in the environment (AWS_ACCESS_KEY_ID, …),"
            " in a profile (?profile=name), or in the role of the machine"
        )


def _endpoint(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise ValueError("expected http:// or https:// and a host")
    return text


def _one_of(*names: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text not in names:
            raise ValueError(f"expected one of {', '.join(names)}")
        return text

    return convert


def _connect(
    url: str,
    connections: int,
    *,
    region: str | None,
    endpoint_url: str | None,
    profile: str | None,
    addressing_style: str | None,
) -> Any:
    # Many S3 servers refuse the checksums that boto3 adds by default; on AWS they stay on.
    checksums = (
        {
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        }
        if endpoint_url
        else {}
    )
    config = Config(
        max_pool_connections=connections + LEASE_THREADS,
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        retries={"total_max_attempts": 1, "mode": "standard"},  # the store tries again itself
        s3={"addressing_style": addressing_style} if addressing_style else None,
        **checksums,
    )
    try:
        session = boto3.session.Session(profile_name=profile, region_name=region)
        client = session.client("s3", endpoint_url=endpoint_url, config=config)
    except (BotoCoreError, ValueError) as error:
        raise StoreError(f"{url} can't be opened: {error}") from error
    _listing.quicken(client)
    # Costs a round trip for each PUT, and botocore waits for ever if the answer "100 Continue" is cut.
    client.meta.events.unregister("before-call.s3", add_expect_header)
    return client
