"""Workers, schedules and webhooks for durable: runs that start, resume and finish by themselves."""

from .report import SweepReport
from .signatures import BadSignature, Delivery, Verify, github, standard, stripe
from .worker import Worker

__all__ = ["BadSignature", "Delivery", "SweepReport", "Verify", "Worker", "github", "standard", "stripe"]
