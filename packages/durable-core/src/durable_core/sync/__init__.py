"""The library for programs without asyncio: the same names, arguments and semantics, with calls that block."""

from . import control
from .flow import Flow, flow
from .runner import Runner, current_runner
from .store import Store, open_store

__all__ = ["Flow", "Runner", "Store", "control", "current_runner", "flow", "open_store"]
