"""Agents of pydantic-ai that survive: each model request and tool call is a step, and approvals wait for people."""

from durable_core import Approvals

from .durability import Durability
from .scope import agent_scope, run_agent

__all__ = ["Approvals", "Durability", "agent_scope", "run_agent"]
