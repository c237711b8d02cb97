"""What a store offers beyond the four methods is declared, so that nothing passes for want of a name."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import ClassVar, Final, TypeVar

import pytest

from durable_core import store as contract
from durable_core.store import Store
from durable_core.testing._samples import OpenStore

T = TypeVar("T")

_FINDERS: Final[dict[str, tuple[Callable[[Store], object | None], str]]] = {
    "runs": (contract.runs_of, "runs"),
    "scan": (contract.scan_of, "scan"),
    "lock": (contract.lock_of, "lock"),
    "holder": (contract.holder_of, "holder or holders"),
    "polling": (contract.polling_of, "newer"),
    "marks": (contract.marks_of, "marks"),
    "flows": (contract.flows_of, "flows"),
    "transaction": (contract.transaction_of, "transaction or is_retryable"),
    "transact": (contract.transact_of, "transact"),
    "wakeups": (contract.wakeups_of, "set_wakeup, take_wakeups or clear_wakeups"),
    "watch": (contract.watch_of, "watch"),
}
"""Of each ability how to find it in a store, and the methods that make it."""


class AbilityTests:
    abilities: ClassVar[Collection[str] | None] = None
    """The names of what the store has, of `runs`, `scan`, `lock`, `holder`, `polling`, `marks`, `flows`,
    `transaction`, `transact`, `wakeups` and `watch`; to be declared."""

    async def test_the_store_has_the_abilities_that_are_declared(self, open_store: OpenStore) -> None:
        """Each ability in `abilities` is there, and no other one."""
        async with open_store() as store:
            there = frozenset(name for name, (find, _) in _FINDERS.items() if find(store) is not None)
        assert frozenset(self._declared(there)) == there

    def ability(self, find: Callable[[Store], T | None], store: Store) -> T:
        """Return the store's ability; skip the test where it isn't declared, and fail it where it is and isn't there."""
        (name,) = (name for name, (finder, _) in _FINDERS.items() if finder is find)
        if name not in self._declared():
            pytest.skip(f"{type(self).__name__}.abilities has no {name!r}")
        ability = find(store)
        if ability is None:
            pytest.fail(f"{type(self).__name__} declares {name!r}, and the store has no method {_FINDERS[name][1]}")
        return ability

    def _declared(self, there: Collection[str] = ()) -> Collection[str]:
        if self.abilities is None:
            names = f"{{{', '.join(map(repr, sorted(there)))}}}" if there else "{…}"
            pytest.fail(
                f"{type(self).__name__} needs `abilities`, the names of what its store has of {', '.join(_FINDERS)}:"
                f" abilities = frozenset({names})"
            )
        return self.abilities
