"""What programs ask of the page."""

from __future__ import annotations

import re

from durable_core import MemoryStore, Runner, Store, flow
from durable_core.errors import StoreError
from durable_web import Page, app
from tests.web.conftest import Browse, signed_in
from tests.web.flows import ask, fail


async def test_the_numbers(store: Store, browse: Browse) -> None:
    """Runs by flow and state, approvals that wait, and how long the oldest has."""
    await ask(store)
    await ask(store, "payout-2")
    await fail(store)
    shown = await browse(app(store, user=signed_in), "prometheus").get("metrics")
    assert shown.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'durable_runs{flow="payout",state="waiting"} 2' in shown.text
    # S3 has an index of runs that have not ended.
    assert ('durable_runs{flow="broken",state="failed"} 1' in shown.text) == (getattr(store, "flow_states", None) is None)
    assert "durable_approvals_waiting 2" in shown.text
    assert re.search(r"^durable_oldest_approval_seconds \d+$", shown.text, re.MULTILINE)


async def test_a_name_that_breaks_the_format(memory: MemoryStore, browse: Browse) -> None:
    """A flow's name is a label's value, whatever it holds."""

    @flow(name='a"} 1 b\\')
    async def odd(runner: Runner) -> None: ...

    await odd.run(memory, run_id="run")
    shown = await browse(app(memory, user=signed_in), "prometheus").get("metrics")
    assert [line for line in shown.text.splitlines() if line.startswith("durable_runs")] == [
        r'durable_runs{flow="a\"} 1 b\\",state="succeeded"} 1'
    ]


async def test_nothing_is_counted_twice(memory: MemoryStore, browse: Browse) -> None:
    """Who asks again within seconds gets what was counted; a count that failed is made anew."""
    page = app(memory, user=signed_in)
    prometheus = browse(page, "prometheus")
    flows, calls = memory.flows, 0

    async def away(*args: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        raise StoreError("the store is away")

    memory.flows = away  # type: ignore[assignment,method-assign]  # a store that is away
    for number in (1, 2):
        assert (await prometheus.get("metrics")).status_code == 503
        assert calls == number
    memory.flows = flows  # type: ignore[method-assign]
    assert "durable_approvals_waiting 0" in (await prometheus.get("metrics")).text
    await ask(memory)
    assert "durable_approvals_waiting 0" in (await prometheus.get("metrics")).text


async def test_health(page: Page, memory: MemoryStore, browse: Browse) -> None:
    """Anybody may ask whether the store answers, and is told nothing more, nor why not."""
    nobody = browse(page)
    answer = await nobody.get("healthz")
    assert (answer.status_code, answer.json()) == (200, {"store": "ok"})

    async def away(run_id: str, step_id: str) -> None:
        raise StoreError("db.internal refused")

    memory.get = away  # type: ignore[assignment,method-assign]  # a store that is away
    answer = await nobody.get("healthz")
    assert (answer.status_code, answer.json()) == (503, {"store": "away"})
