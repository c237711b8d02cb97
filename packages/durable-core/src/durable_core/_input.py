"""The input of a flow: as it is recorded, and as its function takes it, which is the same on every run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Final

import msgspec

from ._annotations import parameter_types
from ._calls import fingerprint_of
from ._codec import Codec
from ._values import UNTYPED, codec_for, record_any
from .errors import StepDrift, UnrecordableValue


class Input(msgspec.Struct, frozen=True):
    """What a run is given."""

    given: dict[str, Any]
    """What the caller gave, as the function takes it."""
    defaults: dict[str, Any]
    """What the function's defaults add to that, where it can be recorded."""
    recorded: dict[str, Any]
    """All of it as JSON."""

    def note(self) -> dict[str, Any]:
        """Return what is recorded as the run begins."""
        note = {"input": {name: self.recorded[name] for name in self.given}}
        return {**note, "defaults": {name: self.recorded[name] for name in self.defaults}} if self.defaults else note


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
        taken = Input({}, {}, {})
        for name, value in given.items():
            taken.recorded[name], taken.given[name] = self._record(name, value)
        for name, parameter in self._signature.parameters.items():
            if name not in given and parameter.default is not parameter.empty:
                try:
                    taken.recorded[name], taken.defaults[name] = self._record(name, parameter.default)
                except TypeError:  # such as a marker of the function's own, which is left to it
                    continue
        return taken

    def is_same(self, taken: Input, note: Mapping[str, Any]) -> bool:
        """Tell whether a run that began with `note` was given the same input; it makes no difference who gave a default."""
        began = {**note.get("defaults", {}), **note.get("input", {})}
        now = {**taken.defaults, **taken.given}
        asked = {*taken.given, *note.get("input", {})}
        return all(name in began and name in now and self._equal(taken, name, began[name]) for name in asked)

    def values(self, taken: Input, note: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the function of a run that began with `note` is called with.

        A default is the one that the run began with; a parameter that was added since then has its own. Raises `StepDrift` where
        the parameter can't take that any more.
        """
        values = dict(taken.given)
        for name, began in note.get("defaults", {}).items():
            if name in taken.defaults and name not in values and not self._equal(taken, name, began):
                try:
                    values[name] = self._codec(name, taken.defaults[name]).decode(msgspec.json.encode(began))
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
        value = taken.given[name] if name in taken.given else taken.defaults[name]
        try:
            return fingerprint_of((value,)) == fingerprint_of((self._codec(name, value).decode(msgspec.json.encode(began)),))
        except msgspec.DecodeError:
            return False

    def _codec(self, name: str, value: Any) -> Codec[Any]:
        """Return the codec of a parameter: that of its annotation, or else of the value's own type."""
        codec = self._codecs.get(name if name in self._signature.parameters else [*self._signature.parameters][-1])
        return codec or codec_for(type(value))

    @cached_property
    def _codecs(self) -> dict[str, Codec[Any]]:
        """How values are recorded, by parameter; a type that can't be resolved or decoded counts as none."""
        codecs: dict[str, Codec[Any]] = {}
        for name, type_ in parameter_types(self._fn).items():
            try:
                codecs[name] = codec_for(type_)
            except TypeError:
                continue
        return {name: codec for name, codec in codecs.items() if codec is not UNTYPED}

    def _record(self, name: str, value: Any) -> tuple[Any, Any]:
        """Return a value as JSON, and as its type holds it."""
        what = f"input {name!r} of flow {self._flow!r}"
        parameters = self._signature.parameters
        # The last parameter takes names of all kinds.
        codec = self._codecs.get(name if name in parameters else [*parameters][-1])
        if codec is None or (value is None and name in parameters and parameters[name].default is None):
            return msgspec.json.decode(record_any(value, what)), value
        try:
            data, value = codec.record(value)
            return msgspec.json.decode(data), value
        except UnrecordableValue as error:
            reason = error.reason
        try:
            plain = msgspec.json.decode(UNTYPED.record(value)[0])
            data, back = codec.record(codec.decode(msgspec.json.encode(plain)))
            if _holds(recorded := msgspec.json.decode(data), plain):
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
