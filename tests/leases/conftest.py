"""The servers whose locks are leases."""

from tests.servers.redis import redis_server_url, redis_url
from tests.servers.s3 import ministack_server, s3_credentials, s3_url

__all__ = ["ministack_server", "redis_server_url", "redis_url", "s3_credentials", "s3_url"]
