"""The servers that the tests of durable-s3 share."""

from tests.servers.s3 import ministack_server, moto_server, s3_credentials, s3_url

__all__ = ["ministack_server", "moto_server", "s3_credentials", "s3_url"]
