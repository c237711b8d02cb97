"""The servers that the tests of durable-redis share."""

from tests.servers.redis import redis_server_url, redis_url

__all__ = ["redis_server_url", "redis_url"]
