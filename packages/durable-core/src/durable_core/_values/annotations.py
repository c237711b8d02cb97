"""Reading the annotations of functions."""

from __future__ import annotations

import asyncio
import collections.abc
import contextlib
import inspect
import sys
import typing
from collections.abc import Callable
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any, Final

NOTHING: Final = inspect.Signature.empty
"""Stands for a missing annotation."""

Closure = list[tuple[str, CellType, object]]
"""Variables that a function closes over, each with its cell and its value."""

_GENERATOR: Final = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
_AWAITABLES: Final = (collections.abc.Awaitable, collections.abc.Coroutine, asyncio.Future, asyncio.Task)


def return_type(fn: Callable[..., Any]) -> Any:
    """Return the type of the value that calling `fn`, and awaiting what it returns, yields; NOTHING if `fn` doesn't say.

    Raises `TypeError` for a generator function, for what can't be called, and for an annotation that can't be resolved.
    """
    called = called_by(fn)
    if isinstance(called, type) or typing.get_origin(called) is not None:
        return called
    code = getattr(called, "__code__", None)  # a mock has one too, which isn't code
    if isinstance(code, CodeType) and code.co_flags & _GENERATOR:
        raise TypeError(f"{name_of(fn)} is a generator function, and a generator can't be recorded: return a list instead")
    function = called_by(inspect.unwrap(called))
    annotation = _annotations(function).get("return", NOTHING)
    if annotation is NOTHING:
        return NOTHING
    try:
        type_ = _evaluated(function, annotation)
    except Exception as error:
        raise TypeError(
            f"the return annotation {annotation!r} of {name_of(fn)} can't be resolved ({error}):"
            " make the name importable at run time, or pass the type as `returns=`"
        ) from error
    if inspect.iscoroutinefunction(function) or (typing.get_origin(type_) or type_) not in _AWAITABLES:
        return type_
    return (typing.get_args(type_) or (NOTHING,))[-1]


def parameter_types(fn: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotated types of the parameters of `fn`, without those that can't be resolved."""
    function = called_by(inspect.unwrap(called_by(fn)))
    found: dict[str, Any] = {}
    for name, annotation in _annotations(function).items():
        with contextlib.suppress(Exception):
            found[name] = _evaluated(function, annotation)
    return found


def called_by(fn: Any) -> Any:
    """Unwrap partials, bound methods and callable objects, down to the function or class that is called."""
    while isinstance(fn, (partial, MethodType)):
        fn = fn.func if isinstance(fn, partial) else fn.__func__
    if not callable(fn):
        raise TypeError(f"{fn!r} is not callable: pass a function, such as `lambda: charge(customer)`")
    if isinstance(fn, (type, FunctionType)) or hasattr(fn, "__wrapped__") or typing.get_origin(fn) is not None:
        return fn
    method = type(fn).__call__
    return method if isinstance(method, FunctionType) else fn


def closure_of(fn: Any) -> Closure:
    """Return the current variables that `fn` closes over."""
    fn = called_by(fn)
    closure: Closure = []
    if type(fn) is FunctionType and fn.__closure__:
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__, strict=True):
            try:
                closure.append((name, cell, cell.cell_contents))
            except ValueError:  # not assigned yet
                continue
    return closure


def name_of(fn: Any) -> str:
    """Return the name of `fn` for messages."""
    name = getattr(called_by(fn), "__qualname__", None)
    return f"{name}()" if name else repr(fn)


def _annotations(function: Any) -> dict[str, Any]:
    """Return the annotations as they are written; those that Python 3.14 can't evaluate as references."""
    with contextlib.suppress(TypeError, ValueError):  # a builtin has none, and a mock's are anything
        if sys.version_info >= (3, 14):
            import annotationlib

            return annotationlib.get_annotations(function, format=annotationlib.Format.FORWARDREF)
        return inspect.get_annotations(function)
    return {}


def _evaluated(function: Any, annotation: Any) -> Any:
    """Resolve one annotation, with the names of the function's module, closure and type parameters."""
    if isinstance(annotation, type):
        return annotation

    def returning() -> None: ...

    returning.__annotations__ = {"return": annotation}
    names = {parameter.__name__: parameter for parameter in getattr(function, "__type_params__", ())}
    names |= {name: content for name, _, content in closure_of(function)}
    return typing.get_type_hints(returning, getattr(function, "__globals__", {}), names, include_extras=True)["return"]
