"""Runs that start, resume and finish by themselves: workers, schedules and webhooks for durable."""

from .report import SweepReport
from .signatures import BadSignature, Delivery, Verify, github, standard, stripe
from .worker import Worker

__all__ = ["BadSignature", "Delivery", "SweepReport", "Verify", "Worker", "github", "standard", "stripe"]
