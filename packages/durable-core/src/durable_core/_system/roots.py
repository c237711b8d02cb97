"""The errors that the lowest floors raise. Users import them from `durable_core.errors`, and logs contain that name."""

from __future__ import annotations

import copyreg


def reduced(error: BaseException) -> tuple[object, ...]:
    """Return what pickle and copy need: the error's message and attributes, not the arguments of its constructor."""
    return copyreg.__newobj__, (type(error), *error.args), vars(error)  # type: ignore[attr-defined]  # typeshed lacks it


class DurableError(Exception):
    """The root of the library's own exceptions."""

    __reduce__ = reduced


class StoreError(DurableError):
    """A store could not be opened, or failed."""


class CorruptLog(StoreError):
    """A stored entry is damaged. Nothing was skipped or changed; the message says where the entry is."""


class UnrecordableValue(DurableError, TypeError):
    """A value would not come back from the log unchanged. The message has the path to the first field that would change."""

    reason = ""
    """Where the value would change and why, without advice."""


class NestedStep(DurableError):
    """A step was started inside the function of another step of the same runner. Neither is recorded."""


for _root in (DurableError, StoreError, CorruptLog, UnrecordableValue, NestedStep):
    _root.__module__ = "durable_core.errors"
