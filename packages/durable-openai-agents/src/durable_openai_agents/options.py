"""The options of an agent's tools: how their steps run, and who decides on their calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from durable_core import Approvals, StepOptions, check_approvals, check_step_options

APPROVALS: Final = "approvals"


class ToolOptions(StepOptions, total=False):
    """The options of one tool: those of its steps, and who decides on its calls."""

    approvals: Approvals
    """Who decides. If the tool itself doesn't say which calls need approval, all of them do."""


def check_options(model: StepOptions, tool: StepOptions, tools: Mapping[str, ToolOptions | Literal[False]]) -> None:
    """Raise `TypeError` or `ValueError` for options that model requests or tools can't have."""
    _check("model", check_step_options, model)
    for option in ("at_most_once", "recover"):
        if option in model:
            raise ValueError(f"{option} is for tools: a model request has no effect that must not happen twice")
    _check("tool", check_step_options, tool)
    if not isinstance(tools, Mapping):
        raise TypeError(f"tools must be a dict from names of tools to their options, not {tools!r}")
    for name, options in tools.items():
        if options is False:
            continue
        if not isinstance(options, Mapping):
            raise TypeError(f"tools[{name!r}] must be a dict of options, or False for a tool that is not a step, not {options!r}")
        own = {option: value for option, value in options.items() if option != APPROVALS}
        _check(f"tools[{name!r}]", check_step_options, {**tool, **own})
        _check(f"tools[{name!r}]", check_approvals, options.get(APPROVALS, {}))


def _check(what: str, check: Callable[[Any], object], options: object) -> None:
    """Check options, and name them in the error."""
    try:
        check(options)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{what}: {error}") from error
