"""Durable agents of pydantic-ai: model requests and tool calls are steps, and approvals wait for people."""

from durable_core import Approvals

from .durability import Durability
from .scope import agent_scope, run_agent

__all__ = ["Approvals", "Durability", "agent_scope", "run_agent"]
