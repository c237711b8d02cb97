"""The copies that an append waits for: WAIT and WAITAOF."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

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
        if waitaof is not None and not _is_waitaof(waitaof):
            raise StoreError(
                f"waitaof={waitaof!r}: expected (local, replicas, milliseconds) with local 0 or 1, some copy asked for"
                " and at least 1 ms, such as (1, 0, 500)"
            )
        self.commands: Final[list[tuple[object, ...]]] = []
        self._asked: Final[list[tuple[int, ...]]] = []
        for name, option in (("WAIT", wait), ("WAITAOF", waitaof)):
            if option is not None:
                self.commands.append((name, *option))
                self._asked.append(option)
        self.ms: Final = sum(asked[-1] for asked in self._asked)
        """The longest that the server may take to answer, beyond its work, in milliseconds."""

    def __bool__(self) -> bool:
        return bool(self.commands)

    def shortage(self, answers: Sequence[object], key: str) -> StoreError | None:
        """Return the error for the first answer to `commands` that counts too few copies; None if all are there."""
        for (name, *_), asked, answer in zip(self.commands, self._asked, answers, strict=True):
            if isinstance(answer, Exception):
                return store_error(answer, key)
            found = answer if isinstance(answer, (list, tuple)) else (answer,)
            if any(got < want for got, want in zip(found, asked, strict=False)):
                return StoreError(
                    f"{name} found {_counted(found)} of {_counted(asked[:-1])} copies within {asked[-1]} ms;"
                    " what was appended may be there or not: append again"
                )
        return None


def _is_waitaof(option: tuple[int, ...]) -> bool:
    if len(option) != 3:
        return False
    local, replicas, ms = option
    return local in (0, 1) and replicas >= 0 and local + replicas > 0 and ms >= 1


def _counted(copies: Sequence[object]) -> str:
    if len(copies) == 1:
        return str(copies[0])
    return f"{copies[0]} local and {copies[1]} remote"
