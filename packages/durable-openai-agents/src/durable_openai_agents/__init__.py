"""Agents of the OpenAI Agents SDK that survive: model requests and tool calls are steps, approvals wait for people."""

from .agent import run_agent
from .options import Approvals, ToolOptions

__all__ = ["Approvals", "ToolOptions", "run_agent"]
