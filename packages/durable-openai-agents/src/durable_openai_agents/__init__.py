"""Durable agents of the OpenAI Agents SDK: model requests and tool calls are steps, and approvals wait for people."""

from durable_core import Approvals

from .agent import run_agent
from .options import ToolOptions

__all__ = ["Approvals", "ToolOptions", "run_agent"]
