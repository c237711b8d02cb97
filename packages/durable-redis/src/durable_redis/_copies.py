"""The copies that an append waits for: WAIT and WAITAOF."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from durable_core.errors import StoreError

from ._errors import store_error


class Copies:
    """How many copies must exist before a write counts; falsy if none were asked for.

    `wait` is (replicas, milliseconds): that many replicas have it in memory. `waitaof` is (local, replicas, milliseconds):
    that many appendonly files have it on disk, `local` being 0 or 1 for the server's own.
    """

    def __init__(self, wait: tuple[int, int] | None, waitaof: tuple[int, int, int] | None) -> None:
        if wait is not None and (len(wait) != 2 or min(wait) < 1):
            raise StoreError(f"wait={wait!r}: expected (replicas, milliseconds), both at least 1, such as (1, 500)")
        if waitaof is not None and not (len(waitaof) == 3 and waitaof[0] in (0, 1) and sum(waitaof[:2]) > 0 < waitaof[2]):
            raise StoreError(
                f"waitaof={waitaof!r}: expected (local, replicas, milliseconds) with local 0 or 1, some copy asked for"
                " and at least 1 ms, such as (1, 0, 500)"
            )
        asked: dict[str, tuple[int, ...] | None] = {"WAIT": wait, "WAITAOF": waitaof}
        self.commands: Final[Sequence[tuple[Any, ...]]] = [(name, *option) for name, option in asked.items() if option]

    def __bool__(self) -> bool:
        return bool(self.commands)

    def shortage(self, answers: Sequence[object], key: str) -> StoreError | None:
        """Return the error for the first answer to `commands` that counts too few copies; None if all are there."""
        for (name, *wanted, ms), answer in zip(self.commands, answers, strict=True):
            if isinstance(answer, Exception):
                return store_error(answer, key)
            found = answer if isinstance(answer, (list, tuple)) else (answer,)
            if any(got < want for got, want in zip(found, wanted, strict=True)):
                return StoreError(
                    f"{name} found {_counted(found)} of {_counted(wanted)} copies within {ms} ms;"
                    " the record may have been stored or not: append it again"
                )
        return None


def _counted(copies: Sequence[object]) -> str:
    return str(copies[0]) if len(copies) == 1 else f"{copies[0]} local and {copies[1]} remote"
