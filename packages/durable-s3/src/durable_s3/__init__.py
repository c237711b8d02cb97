"""Durable runs with nothing but a bucket: a step log in S3, one object an entry."""

from .store import S3Store

__all__ = ["S3Store"]
