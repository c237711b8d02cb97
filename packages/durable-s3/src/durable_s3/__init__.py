"""A store that needs only a bucket: logs in S3, one object for each entry."""

from .store import S3Store

__all__ = ["S3Store"]
