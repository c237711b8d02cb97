"""Runs that start, resume and finish by themselves: workers, schedules and webhooks for durable."""

from .report import SweepReport
from .signatures import Delivery, Verify, github, standard, stripe
from .worker import Worker

__all__ = ["Delivery", "SweepReport", "Verify", "Worker", "github", "standard", "stripe"]
