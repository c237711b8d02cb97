"""Reading what a function says it returns."""

from __future__ import annotations

import asyncio
import collections.abc
import contextlib
import functools
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable
from typing import Any, Final

NOTHING: Final = inspect.Signature.empty
"""Stands for an annotation that isn't there."""

# More than anyone stacks: a wrapper can, by mistake, wrap itself.
_WRAPPERS: Final = 100
_GENERATOR: Final = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
_AWAITABLES: Final = (collections.abc.Awaitable, collections.abc.Coroutine, asyncio.Future, asyncio.Task)


def return_type(fn: Callable[..., Any]) -> Any:
    """Return the type of the value that calling `fn`, and awaiting what it returns, yields; NOTHING if `fn` doesn't say.

    Raises `TypeError` for a generator function, for what can't be called, and for an annotation that can't be resolved.
    """
    called = called_by(fn)
    if isinstance(called, type) or typing.get_origin(called) is not None:
        return called
    code = getattr(called, "__code__", None)  # of a mock it is one, too, and `inspect` takes that for a generator's
    if isinstance(code, types.CodeType) and code.co_flags & _GENERATOR:
        raise TypeError(f"{name_of(fn)} is a generator function, and a generator can't be recorded: return a list instead")
    function = innermost(called)
    annotation = annotation_of(function)
    if annotation is NOTHING:
        return NOTHING
    return _awaited(function, _resolved(fn, function, annotation))


def parameter_types(fn: Callable[..., Any]) -> dict[str, Any]:
    """Return the types that the parameters of `fn` are annotated with, without those that can't be resolved."""
    function = innermost(called_by(fn))
    types_: dict[str, Any] = {}
    for name, annotation in annotations_of(function).items():
        with contextlib.suppress(Exception):
            types_[name] = _evaluated(function, annotation)
    return types_


def called_by(fn: Any) -> Any:
    """Take off partials, bound methods and callable objects, down to the function or class that is called."""
    while True:
        if isinstance(fn, functools.partial):
            fn = fn.func
        elif isinstance(fn, types.MethodType):
            fn = fn.__func__
        elif isinstance(fn, (type, types.FunctionType, types.BuiltinFunctionType)) or hasattr(fn, "__wrapped__"):
            return fn
        elif not callable(fn):
            raise TypeError(f"{fn!r} is not callable: pass a function, such as `lambda: charge(customer)`")
        elif isinstance(method := type(fn).__call__, types.FunctionType):
            return fn if typing.get_origin(fn) is not None else method
        else:
            return fn


def innermost(called: Any) -> Any:
    """Return the function that `functools.wraps` was applied to, whose annotations the wrapper carries."""
    for _ in range(_WRAPPERS):
        if not hasattr(called, "__wrapped__"):
            break
        called = called_by(called.__wrapped__)
    return called


def annotation_of(function: Any) -> Any:
    """Return the return annotation as it is written, without resolving it."""
    return annotations_of(function).get("return", NOTHING)


def annotations_of(function: Any) -> dict[str, Any]:
    """Return the annotations as they are written."""
    try:
        annotations = function.__annotations__
    except Exception:  # builtins have none; Python 3.14 evaluates those of the parameters, too, and may fail at one
        annotations = _unevaluated(function)
    return annotations if isinstance(annotations, dict) else {}  # a mock's are anything


def _unevaluated(function: Any) -> dict[str, Any]:
    if sys.version_info >= (3, 14) and getattr(function, "__annotate__", None) is not None:
        import annotationlib

        return annotationlib.get_annotations(function, format=annotationlib.Format.FORWARDREF)
    return {}


def depends_on_closure(function: Any, annotation: Any) -> bool:
    """Tell whether a name in the text of `annotation` may mean something else in another closure over the same code."""
    if isinstance(annotation, type):
        return False
    text = annotation if isinstance(annotation, str) else repr(annotation)
    return not set(re.findall(r"\w+", text)).isdisjoint(function.__code__.co_freevars)


def name_of(fn: Any) -> str:
    called = called_by(fn) if callable(fn) else fn
    name = getattr(called, "__qualname__", None)
    return f"{name}()" if name else repr(fn)


def _resolved(fn: Any, function: Any, annotation: Any) -> Any:
    try:
        return _evaluated(function, annotation)
    except Exception as error:
        raise TypeError(
            f"the return annotation {annotation!r} of {name_of(fn)} can't be resolved ({error}):"
            " make the name importable at run time, or pass the type as `returns=`"
        ) from error


def _evaluated(function: Any, annotation: Any) -> Any:
    def returning() -> None: ...

    returning.__annotations__ = {"return": annotation}
    names = getattr(function, "__globals__", {})
    return typing.get_type_hints(returning, names, _local_names(function), include_extras=True)["return"]


def _local_names(function: Any) -> dict[str, Any]:
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None)
    names = {parameter.__name__: parameter for parameter in getattr(function, "__type_params__", ())}
    for name, cell in zip(code.co_freevars, cells, strict=True) if code and cells else ():
        with contextlib.suppress(ValueError):  # not assigned yet
            names[name] = cell.cell_contents
    return names


def _awaited(function: Any, type_: Any) -> Any:
    origin = typing.get_origin(type_) or type_
    if inspect.iscoroutinefunction(function) or not any(origin is each for each in _AWAITABLES):
        return type_
    return (typing.get_args(type_) or (NOTHING,))[-1]
