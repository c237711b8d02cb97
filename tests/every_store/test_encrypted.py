"""The wrapper of the page "Encrypt what is recorded", as it stands there, around every store."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet, MultiFernet

from durable_core import MemoryStore, Runner, StepFailed, Store, flow
from durable_core.control import approve, pending, result, runs, status
from durable_core.testing import OpenStore, StoreTests
from durable_worker import Worker

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "encrypt.md"
SECRET = "Ada Lovelace"
KEY = Fernet.generate_key()


def encrypted(store: Store) -> Any:
    """Wrap `store` by the class that the page shows."""
    found = re.search(r"^```python\n# encrypted\.py\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert found is not None
    names: dict[str, Any] = {"__name__": "encrypted"}
    exec(compile(found[1], str(PAGE), "exec"), names)
    return names["Encrypted"](store, MultiFernet([Fernet(KEY)]))


async def look_up(name: str) -> str:
    return f"{name} of London"


class NoMail(ConnectionError):
    def __init__(self, name: str) -> None:
        super().__init__(f"no mail to {name}")
        self.__durable_data__ = {"to": name}


async def fail(name: str) -> None:
    raise NoMail(name)


@flow(wait_limit=0)
async def letter(runner: Runner, name: str) -> str:
    address = await runner.step("look-up", look_up, name)
    try:
        await runner.step("mail", fail, name)
    except StepFailed as failed:
        await runner.step("answer", look_up, failed.error.data["to"])
    decision = await runner.approval("send", {"to": address})
    return f"sent to {address} by {decision.by}"


@flow
async def crashes(runner: Runner, name: str) -> None:
    raise KeyError(name)


async def test_a_run_goes_through_and_the_store_sees_no_secret(store: Store) -> None:
    """A worker runs a flow with a failure and an approval, and one that crashes; the store gets nothing that holds the name."""
    raw, store = store, encrypted(store)
    async with asyncio.timeout(60), Worker(store, [letter, crashes], poll=0.05, max_crashes=1):
        await crashes.start(store, run_id="crash-1", name=SECRET)
        await letter.start(store, run_id="letter-1", name=SECRET)
        while not [record async for record in pending(store)]:
            await asyncio.sleep(0.02)
        (waiting,) = [record async for record in pending(store)]
        assert waiting.notes["show"] == {"to": f"{SECRET} of London"}
        await approve(store, "letter-1", "send", by="alice", value={"to": SECRET})
        assert await result(store, "letter-1", returns=str) == f"sent to {SECRET} of London by alice"
        while (crashed := await status(store, "crash-1")).status != "parked":
            await asyncio.sleep(0.02)
        assert SECRET in str(crashed.why)
    (run,) = [run async for run in runs(store, flow="letter")]
    assert run.input == {"name": SECRET}
    assert (await status(store, "letter-1")).result == f"sent to {SECRET} of London by alice"
    entries = [*await raw.list("letter-1"), *await raw.list("crash-1")]
    assert len(entries) >= 10
    assert [entry for entry in entries if SECRET.encode() in entry.to_json()] == []
    assert SECRET.encode() in b"".join(entry.to_json() for entry in await store.list("letter-1"))


class TestEncryptedStore(StoreTests):
    abilities = frozenset({"runs", "lock", "holder", "polling", "flows", "wakeups", "watch"})

    @pytest.fixture
    def open_store(self) -> OpenStore:
        place = MemoryStore()

        class Opened:
            async def __aenter__(self) -> Any:
                return encrypted(place)

            async def __aexit__(self, *_: object) -> None:
                """The dictionary stays."""

        return Opened

    @pytest.mark.skip(reason="a dictionary is not shared between processes")
    async def test_processes_race_for_slots(self) -> None:
        """Not for this store."""

    @pytest.mark.skip(reason="a dictionary is not shared between processes")
    async def test_processes_keep_each_other_out(self) -> None:
        """Not for this store."""

    @pytest.mark.skip(reason="its lock ends with the only process that knows it")
    async def test_a_killed_process_frees_its_lock(self) -> None:
        """Not for this store."""

    @pytest.mark.skip(reason="a dictionary is not shared between processes")
    async def test_a_process_that_holds_a_lock_is_told(self) -> None:
        """Not for this store."""

    @pytest.mark.skip(reason="a dictionary is not shared between processes")
    async def test_flows_of_several_processes_are_found(self) -> None:
        """Not for this store."""

    @pytest.mark.skip(reason="a dictionary is not shared between processes")
    async def test_processes_race_for_wakeups(self) -> None:
        """Not for this store."""
