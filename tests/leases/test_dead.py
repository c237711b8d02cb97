"""When a claim's process is taken for dead: only where that is known."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import msgspec
import pytest

from durable_core.stores.lease import Claim

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is known of other processes")
PROGRAM = """
import sys
import msgspec
from durable_core.stores.lease import Claim
print(msgspec.json.encode(Claim.mine()).decode(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=-1, stdout=-1, text=True) as process:
        yield process
        process.kill()


@pytest.fixture
def claim(child: subprocess.Popen[str]) -> Claim:
    assert child.stdout is not None
    return msgspec.json.decode(child.stdout.readline(), type=Claim)


def end(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait()


def test_a_process_that_lives_is_not_dead(claim: Claim) -> None:
    assert not claim.is_dead
    assert not Claim.mine().is_dead


def test_a_process_that_was_killed_is_dead(child: subprocess.Popen[str], claim: Claim) -> None:
    end(child)
    assert claim.is_dead


def test_a_process_whose_number_was_given_to_another_is_dead(claim: Claim) -> None:
    """The number is this process's by now, and the time of its start tells them apart."""
    assert claim.process is not None
    claim.process = msgspec.structs.replace(claim.process, pid=os.getpid(), started=claim.process.started - 1_000_000)
    assert claim.is_dead


@pytest.mark.parametrize("field", ["boot", "namespaces"])
def test_nothing_is_known_of_another_machine_boot_or_namespace(child: subprocess.Popen[str], claim: Claim, field: str) -> None:
    """Whatever its number is here, its process may live where it is."""
    end(child)
    assert claim.process is not None
    claim.process = msgspec.structs.replace(claim.process, **{field: "another"})
    assert not claim.is_dead


def test_nothing_is_known_of_a_claim_without_its_process(child: subprocess.Popen[str], claim: Claim) -> None:
    """As an older version writes it, or a machine that is no Linux."""
    end(child)
    older = msgspec.to_builtins(claim)
    del older["process"]
    assert not msgspec.json.decode(msgspec.json.encode(older), type=Claim).is_dead


def test_a_process_that_nobody_waited_for_may_still_run(child: subprocess.Popen[str], claim: Claim) -> None:
    """A zombie's other threads may go on, so it counts as alive."""
    child.kill()
    assert os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT) is not None
    assert not claim.is_dead
