"""Both faces have the same names, and take the same arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

import durable_core
from durable_core import control, sync
from durable_core.options import RunnerOptions
from durable_core.sync import control as blocking


def public(cls: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")}


def parameters(fn: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    """Return names, kinds and defaults; a runner is a runner, whichever it is."""
    return [(each.name, each.kind, each.default) for each in inspect.signature(fn).parameters.values()]


def test_a_runner_has_every_method() -> None:
    """What a runner does with asyncio it does without."""
    attributes = {"run_id", "store"}
    assert public(sync.Runner) == public(durable_core.Runner) | attributes


@pytest.mark.parametrize("name", sorted(public(durable_core.Runner) - {"prefix"}))  # which is a property
def test_a_method_takes_the_same(name: str) -> None:
    """Names, kinds and defaults of the arguments are equal."""
    assert parameters(getattr(sync.Runner, name)) == parameters(getattr(durable_core.Runner, name))


def test_a_runner_is_made_alike() -> None:
    """The options of a runner are those of `RunnerOptions`, for both."""
    *first, options = inspect.signature(sync.Runner).parameters.values()
    assert options.kind is options.VAR_KEYWORD
    own = inspect.signature(durable_core.Runner).parameters
    assert [*own] == [*(each.name for each in first), *RunnerOptions.__annotations__]


@pytest.mark.parametrize("name", control.__all__)
def test_a_function_of_control_takes_the_same(name: str) -> None:
    """`control` has the same functions, with the same arguments."""
    assert set(blocking.__all__) == set(control.__all__)
    if inspect.isfunction(getattr(control, name)):
        assert parameters(getattr(blocking, name)) == parameters(getattr(control, name))


@pytest.mark.parametrize("name", ["run", "start", "options"])
def test_a_flow_takes_the_same(name: str) -> None:
    """A flow is run and asked for alike, with the same name and the same options."""
    assert parameters(getattr(sync.Flow, name)) == parameters(getattr(durable_core.Flow, name))
    assert parameters(sync.flow) == parameters(durable_core.flow)
    assert parameters(sync.open_store) == parameters(durable_core.open_store)
