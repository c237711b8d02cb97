"""The commands that look, on every store."""

from __future__ import annotations

from datetime import datetime

from tests.cli.conftest import Durable
from tests.cli.seeds import STATES, filled


def test_every_state_is_shown_on_every_store(durable: Durable, url: str) -> None:
    """`runs` lists what there is with its state, `show`, `why` and `pending` read it, and `wait` prints the result."""
    filled(url)
    listed = durable("runs", "--json", "--store", url)
    with_flow = {run_id: state for run_id, state in STATES.items() if state != "open"}
    assert {run["run_id"]: run["status"] for run in listed.objects} == with_flow
    began = [datetime.fromisoformat(run["started_at"]) for run in listed.objects]
    assert began == sorted(began, reverse=True)
    assert [run["run_id"] for run in durable("runs", "--status", "open", "--json", "--store", url).objects] == ["script"]
    for run_id, state in STATES.items():
        (shown,) = durable("show", run_id, "--json", "--store", url).objects
        (said,) = durable("why", run_id, "--json", "--store", url).objects
        assert (shown["run_id"], shown["status"], said["status"]) == (run_id, state, state)
        assert len(shown["timeline"]) == shown["steps"]
    asked = durable("pending", "--json", "--store", url).objects
    assert [each["run_id"] for each in asked] == ["refund-7", "order-7/refund"]
    done = durable("wait", "refund-0", "--store", url)
    assert (done.code, done.out) == (0, '"paid back"\n')
    watched = durable("watch", "refund-1", "--store", url)
    assert watched.code == 1
    assert watched.out.splitlines()[-1].endswith("refund-1  failed")
    for command in ("runs", "show refund-7", "why refund-7", "pending"):
        done = durable(*command.split(), "--store", url)
        assert done.code == 0, done.err
        assert "approve" in done.out
