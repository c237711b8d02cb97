"""The places of tests/every_store."""

from tests.every_store.conftest import (
    ministack_server,
    postgres_server_url,
    postgres_url,
    redis_server_url,
    redis_url,
    s3_credentials,
    s3_url,
    url,
)

__all__ = [
    "ministack_server",
    "postgres_server_url",
    "postgres_url",
    "redis_server_url",
    "redis_url",
    "s3_credentials",
    "s3_url",
    "url",
]
