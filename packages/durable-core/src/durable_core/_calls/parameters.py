"""The input of a flow: recorded as JSON, and decoded from that JSON for its function on every run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any, Final, Optional

import msgspec

from durable_core._values.annotations import parameter_types
from durable_core._values.codec import Codec
from durable_core._values.difference import difference
from durable_core._values.returns import UNTYPED, codec_for
from durable_core._values.types import type_name
from durable_core.errors import StepDrift, UnrecordableValue

from .arguments import fingerprint_of

_RESERVED: Final = ("store", "run_id", "at", "connection", "wait")


class Input(msgspec.Struct, frozen=True):
    """The given input of a run, and the function's defaults for the rest, if they can be recorded."""

    values: dict[str, Any]
    """The values, decoded from the recorded JSON."""
    given: dict[str, Any]
    """The given input as JSON."""
    defaults: dict[str, Any]

    @property
    def fingerprint(self) -> str | None:
        """A hash of the given input."""
        return fingerprint_of((), {name: self.values[name] for name in self.given})

    def note(self) -> dict[str, Any]:
        """Return the note that is recorded when the run begins."""
        return {"input": self.given, "defaults": self.defaults} if self.defaults else {"input": self.given}


class Parameters:
    """The parameters of a flow function besides its runner."""

    def __init__(self, fn: Callable[..., Any], flow: str) -> None:
        self._fn: Final = fn
        self._flow: Final = flow
        self._signature: Final = inspect.signature(fn)
        parameters = [*self._signature.parameters.values()]
        if not parameters or parameters[0].kind not in (parameters[0].POSITIONAL_ONLY, parameters[0].POSITIONAL_OR_KEYWORD):
            raise TypeError(
                f"the first parameter of flow {flow!r} must be its runner: write `async def {fn.__name__}(runner, …)`"
            )
        for parameter in parameters[1:]:
            if parameter.name in _RESERVED or parameter.kind is parameter.VAR_POSITIONAL:
                reserved = ", ".join(_RESERVED)
                raise TypeError(
                    f"flow {flow!r} can't have the parameter '{parameter}': input is passed by name, and {reserved} are taken;"
                    " rename it"
                )
        self._input: Final = self._signature.replace(parameters=parameters[1:], return_annotation=inspect.Signature.empty)
        self._defaults: Final = {each.name: each.default for each in parameters[1:] if each.default is not each.empty}

    def read(self, given: Mapping[str, Any]) -> Input:
        """Record the caller's input, each value as it is or as the JSON that was recorded for it, and add the defaults.

        Raises `TypeError` for a missing or unknown name, and for a value that can't be recorded as its parameter's type.
        """
        try:
            self._signature.bind(None, **given)
        except TypeError as error:
            raise TypeError(f"input of flow {self._flow!r}: {error}; it takes {self._input}") from None
        taken = Input({}, {}, {})
        for name, value in given.items():
            taken.given[name], taken.values[name] = self._record(name, value)
        for name, value in self._defaults.items():
            if name not in given:
                with suppress(UnrecordableValue):  # such as the function's own marker, which is left to the function
                    taken.defaults[name], taken.values[name] = self._record(name, value)
        return taken

    def is_same(self, taken: Input, note: Mapping[str, Any]) -> bool:
        """Return True if a run that began with `note` was given the same input, by its caller or by a default."""
        given = note.get("input", {})
        began = {**note.get("defaults", {}), **given}
        try:
            return all(
                difference(taken.values[name], self._decode(name, began[name]), exact=True) is None
                for name in {*taken.given, *given}
            )
        except (KeyError, msgspec.DecodeError):
            return False

    def values(self, taken: Input, note: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments for the function of a run that began with `note`.

        Defaults are those with which the run began; a parameter that was added since then has its own. Raises `StepDrift` if the
        parameter no longer accepts such a default.
        """
        values = dict(taken.values)
        for name, began in note.get("defaults", {}).items():
            if name in taken.defaults:
                try:
                    values[name] = self._decode(name, began)
                except msgspec.DecodeError as error:
                    raise StepDrift(
                        f"the run of flow {self._flow!r} began with {name}={began!r}, the default at that time, which the type of"
                        f" {name!r} rejects: {error}; pass {name!r} by name, or let its type accept the old default too"
                    ) from error
        return values

    def _decode(self, name: str, recorded: Any) -> Any:
        return self._codec(name).decode(msgspec.json.encode(recorded))

    def _record(self, name: str, value: Any) -> tuple[Any, Any]:
        """Return a value as JSON, and decoded from that JSON."""
        codec, what = self._codec(name), f"input {name!r} of flow {self._flow!r}"
        try:
            data, back = codec.record(value)
            return msgspec.json.decode(data), back
        except UnrecordableValue as error:
            if codec is UNTYPED:
                raise UnrecordableValue(
                    f"{what} can't be recorded, {error.reason}; annotate the parameter with its type"
                ) from None
            reason = error.reason
        with suppress(UnrecordableValue, msgspec.DecodeError):
            plain, given = UNTYPED.record(value)
            data, back = codec.record(codec.decode(plain))
            if _holds(recorded := msgspec.json.decode(data), given):
                return recorded, back
        raise UnrecordableValue(
            f"{what} does not fit its annotation {type_name(codec.type)}, {reason}; pass a value that does, or annotate it"
            " otherwise"
        )

    def _codec(self, name: str) -> Codec[Any]:
        """Return the codec of a parameter; the last parameter may take any names."""
        parameters = self._signature.parameters
        return self._codecs.get(name if name in parameters else [*parameters][-1], UNTYPED)

    @cached_property
    def _codecs(self) -> dict[str, Codec[Any]]:
        """The codec of each parameter. A type that can't be resolved or decoded counts as none, for plain JSON values."""
        codecs: dict[str, Codec[Any]] = {}
        for name, type_ in parameter_types(self._fn).items():
            with suppress(TypeError):  # None is accepted if it is the default, though the annotation doesn't say so
                codecs[name] = codec_for(Optional[type_] if self._defaults.get(name, ...) is None else type_)  # noqa: UP045
        return codecs


def _holds(recorded: Any, given: Any) -> bool:
    """Return True if no part of the given JSON is missing. Text may be written differently, and defaults may be added."""
    if isinstance(given, dict):
        return isinstance(recorded, dict) and all(name in recorded and _holds(recorded[name], given[name]) for name in given)
    if isinstance(given, list):
        same = isinstance(recorded, list) and len(recorded) == len(given)
        # A set has no order.
        return same and (all(map(_holds, recorded, given)) or sorted(map(repr, recorded)) == sorted(map(repr, given)))
    return isinstance(given, str) or recorded == given or recorded == str(given)
