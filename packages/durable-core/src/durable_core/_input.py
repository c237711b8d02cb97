"""The input of a flow: as it is recorded, and as its function takes it, which is the same on every run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Final

import msgspec

from ._annotations import parameter_types
from ._codec import Codec
from ._values import UNTYPED, codec_for, record_any
from .errors import UnrecordableValue


class Input(msgspec.Struct, frozen=True):
    """What a run is given."""

    values: dict[str, Any]
    """What the function is called with."""
    given: dict[str, Any]
    """What the caller gave, as JSON."""
    defaults: dict[str, Any]
    """What the function's defaults add to that, as JSON."""

    def note(self) -> dict[str, Any]:
        """Return what is recorded as the run begins."""
        return {"input": self.given, "defaults": self.defaults} if self.defaults else {"input": self.given}


class Parameters:
    """What a flow function takes besides its runner."""

    def __init__(self, fn: Callable[..., Any], flow: str) -> None:
        self._fn: Final = fn
        self._flow: Final = flow
        self._signature: Final = inspect.signature(fn)
        parameters = [*self._signature.parameters.values()]
        if not parameters or parameters[0].kind not in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        ):
            raise TypeError(f"flow {flow!r} takes its runner first: write `async def {fn.__name__}(runner, …)`")
        for parameter in parameters[1:]:
            if parameter.name in ("store", "run_id") or parameter.kind is parameter.VAR_POSITIONAL:
                raise TypeError(f"flow {flow!r} can't take '{parameter}': input is passed by name beside store and run_id")

    def read(self, given: Mapping[str, Any]) -> Input:
        """Take in what a caller gives, each value as it is or as the JSON that was recorded of it, and add the defaults.

        Raises `TypeError` for a name that is missing or unknown, and for a value that can't be recorded as its parameter's type.
        """
        try:
            bound = self._signature.bind(None, **given)
        except TypeError as error:
            raise TypeError(f"input of flow {self._flow!r}: {error}; it takes {self._signature}") from None
        taken = Input({}, {}, {})
        for name, value in given.items():
            taken.given[name], taken.values[name] = self._record(name, value)
        bound.apply_defaults()
        for name, value in [*bound.arguments.items()][1:]:
            if name not in given and self._signature.parameters[name].kind is not inspect.Parameter.VAR_KEYWORD:
                try:
                    taken.defaults[name], taken.values[name] = self._record(name, value)
                except TypeError:  # such as a marker of the function's own, which is left to it
                    continue
        return taken

    def resume(self, taken: Input, note: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what the function is called with in a run that began with `note`; None if that was other input.

        Its defaults are those that the run began with; a parameter that was added since then has its own.
        """
        given, defaults = note.get("input", {}), note.get("defaults", {})
        began = {**defaults, **given}
        now = {**taken.defaults, **taken.given}
        asked = {*taken.given, *given}
        if any(name not in began or name not in now or began[name] != now[name] for name in asked):
            return None
        values = dict(taken.values)
        for name in defaults.keys() & taken.defaults.keys() - asked:
            if defaults[name] != taken.defaults[name]:
                try:
                    _, values[name] = self._record(name, defaults[name])
                except TypeError:
                    return None
        return values

    @cached_property
    def _codecs(self) -> dict[str, Codec[Any]]:
        """How values are recorded, by parameter; a type that can't be resolved or decoded counts as none."""
        codecs: dict[str, Codec[Any]] = {}
        for name, type_ in parameter_types(self._fn).items():
            try:
                codecs[name] = codec_for(type_)
            except TypeError:
                continue
        return codecs

    def _record(self, name: str, value: Any) -> tuple[Any, Any]:
        """Return a value as JSON, and as its type holds it."""
        what = f"input {name!r} of flow {self._flow!r}"
        parameters = self._signature.parameters
        codec = self._codecs.get(name if name in parameters else [*parameters][-1])  # the last takes names of all kinds
        if codec is None or codec is UNTYPED:
            return msgspec.json.decode(record_any(value, what)), value
        try:
            data, value = codec.record(value)
        except UnrecordableValue as error:
            reason = error.reason
            try:
                data, value = codec.record(codec.decode(UNTYPED.record(value)[0]))
            except (UnrecordableValue, msgspec.DecodeError):
                raise UnrecordableValue(f"{what} can't be recorded as it is annotated, {reason}") from None
        return msgspec.json.decode(data), value
