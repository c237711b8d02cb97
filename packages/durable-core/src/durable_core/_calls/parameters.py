"""The input of a flow: as it is recorded, and as its function takes it, which is the same on every run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any, Final

import msgspec

from durable_core._values.annotations import parameter_types
from durable_core._values.codec import Codec
from durable_core._values.returns import UNTYPED, codec_for, record_any
from durable_core.errors import StepDrift, UnrecordableValue

from .arguments import fingerprint_of


class Input(msgspec.Struct, frozen=True):
    """What a run is given, and the function's defaults for the rest, where those can be recorded."""

    values: dict[str, Any]
    """As the function takes them."""
    recorded: dict[str, Any]
    """As JSON."""
    given: tuple[str, ...]
    """The names of those that are no defaults."""

    @property
    def fingerprint(self) -> str | None:
        """A hash of what was given."""
        return fingerprint_of((), {name: self.values[name] for name in self.given})

    def note(self) -> dict[str, Any]:
        """Return what is recorded as the run begins."""
        given = {name: self.recorded[name] for name in self.given}
        defaults = {name: value for name, value in self.recorded.items() if name not in given}
        return {"input": given, "defaults": defaults} if defaults else {"input": given}


class Parameters:
    """What a flow function takes besides its runner."""

    def __init__(self, fn: Callable[..., Any], flow: str) -> None:
        self._fn: Final = fn
        self._flow: Final = flow
        self._signature: Final = inspect.signature(fn)
        parameters = [*self._signature.parameters.values()]
        if not parameters or parameters[0].kind not in (parameters[0].POSITIONAL_ONLY, parameters[0].POSITIONAL_OR_KEYWORD):
            raise TypeError(f"flow {flow!r} takes its runner first: write `async def {fn.__name__}(runner, …)`")
        for parameter in parameters[1:]:
            if parameter.name in ("store", "run_id") or parameter.kind is parameter.VAR_POSITIONAL:
                raise TypeError(f"flow {flow!r} can't take '{parameter}': input is passed by name beside store and run_id")

    def read(self, given: Mapping[str, Any]) -> Input:
        """Take in what a caller gives, each value as it is or as the JSON that was recorded of it, and add the defaults.

        Raises `TypeError` for a name that is missing or unknown, and for a value that can't be recorded as its parameter's type.
        """
        try:
            self._signature.bind(None, **given)
        except TypeError as error:
            raise TypeError(f"input of flow {self._flow!r}: {error}; it takes {self._signature}") from None
        values: dict[str, Any] = {}
        recorded: dict[str, Any] = {}
        for name, value in given.items():
            recorded[name], values[name] = self._record(name, value)
        for name, parameter in self._signature.parameters.items():
            if name not in given and parameter.default is not parameter.empty:
                try:
                    recorded[name], values[name] = self._record(name, parameter.default)
                except TypeError:  # such as a marker of the function's own, which is left to it
                    continue
        return Input(values, recorded, tuple(given))

    def is_same(self, taken: Input, note: Mapping[str, Any]) -> bool:
        """Tell whether a run that began with `note` was given the same input; it makes no difference who gave a default."""
        given = note.get("input", {})
        began = {**note.get("defaults", {}), **given}
        asked = {*taken.given, *given}
        return all(name in began and name in taken.recorded and self._equal(taken, name, began[name]) for name in asked)

    def values(self, taken: Input, note: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the function of a run that began with `note` is called with.

        A default is the one that the run began with; a parameter that was added since then has its own. Raises `StepDrift` where
        the parameter can't take that any more.
        """
        values = {name: taken.values[name] for name in taken.given}
        for name, began in note.get("defaults", {}).items():
            if name in taken.recorded and name not in values and not self._equal(taken, name, began):
                try:
                    values[name] = self._decoded(taken, name, began)
                except msgspec.DecodeError as error:
                    raise StepDrift(
                        f"the run of flow {self._flow!r} began with {name}={began!r}, its default then, which {name!r} can't be"
                        f" any more: {error}; give it by name, or let its type read the old default too"
                    ) from error
        return values

    def _equal(self, taken: Input, name: str, began: Any) -> bool:
        """Tell whether a value is the one of which `began` was recorded; a set may stand in another order there."""
        if taken.recorded[name] == began:
            return True
        try:
            return fingerprint_of((taken.values[name],)) == fingerprint_of((self._decoded(taken, name, began),))
        except msgspec.DecodeError:
            return False

    def _decoded(self, taken: Input, name: str, began: Any) -> Any:
        """Decode what was recorded, by the annotation, or else as the type of today's value."""
        codec = self._annotated(name) or codec_for(type(taken.values[name]))
        return codec.decode(msgspec.json.encode(began))

    def _annotated(self, name: str) -> Codec[Any] | None:
        """Return how values of a parameter are recorded, if its annotation says so; the last one may take any names."""
        parameters = self._signature.parameters
        return self._codecs.get(name if name in parameters else [*parameters][-1])

    @cached_property
    def _codecs(self) -> dict[str, Codec[Any]]:
        """How values are recorded, by parameter; a type that can't be resolved or decoded counts as none."""
        codecs: dict[str, Codec[Any]] = {}
        for name, type_ in parameter_types(self._fn).items():
            with suppress(TypeError):
                if (codec := codec_for(type_)) is not UNTYPED:
                    codecs[name] = codec
        return codecs

    def _record(self, name: str, value: Any) -> tuple[Any, Any]:
        """Return a value as JSON, and as its type holds it."""
        what = f"input {name!r} of flow {self._flow!r}"
        codec, parameter = self._annotated(name), self._signature.parameters.get(name)
        if codec is None or (value is None and parameter is not None and parameter.default is None):
            return msgspec.json.decode(record_any(value, what)), value
        try:
            data, value = codec.record(value)
            return msgspec.json.decode(data), value
        except UnrecordableValue as error:
            reason = error.reason
        try:
            plain, given = UNTYPED.record(value)
            data, back = codec.record(codec.decode(plain))
            if _holds(recorded := msgspec.json.decode(data), given):
                return recorded, back
        except (UnrecordableValue, msgspec.DecodeError):
            pass
        raise UnrecordableValue(f"{what} can't be recorded as it is annotated, {reason}")


def _holds(recorded: Any, given: Any) -> bool:
    """Tell whether JSON says all that was given as JSON: text may be spelled in another way, and defaults may be added."""
    if isinstance(given, dict):
        return isinstance(recorded, dict) and all(name in recorded and _holds(recorded[name], given[name]) for name in given)
    if isinstance(given, list):
        if not isinstance(recorded, list) or len(recorded) != len(given):
            return False
        # Of a set the order is nobody's.
        return all(map(_holds, recorded, given)) or sorted(map(repr, recorded)) == sorted(map(repr, given))
    return isinstance(given, str) or recorded == given or recorded == str(given)
