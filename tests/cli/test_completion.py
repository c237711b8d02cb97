"""Completion: what a shell is offered where Tab is pressed."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import BashComplete

from durable_cli.main import durable
from durable_core import StepRecord, open_store
from tests.cli.terminal import Terminal

SHELLS = ("bash", "zsh", "fish")


def completed(line: str, **env: str) -> list[str]:
    """Ask as click's script for each shell does, in this process; the cursor stands at the end of the line."""
    *args, incomplete = line.split(" ")[1:]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DURABLE_STORE", raising=False)
        for name, value in env.items():
            patch.setenv(name, value)
        found = BashComplete(durable, {}, "durable", "_DURABLE_COMPLETE").get_completions(args, incomplete)
    return [item.value for item in found if item.type == "plain"]


def test_runs_steps_flows_and_states_are_offered(seeded: str) -> None:
    """From the store that DURABLE_STORE or --store names; steps are those of the run before them."""
    offered = {
        "durable why refund-": [f"refund-{number}" for number in range(8)],
        "durable show refund-1 --step ": ["approve", "look-up", "pay-back"],
        "durable runs --flow ": ["charge", "order", "refund"],
        "durable runs --status c": ["crashed", "cancelling", "cancelled"],
        "durable pe": ["pending"],
    }
    for line, names in offered.items():
        assert completed(line, DURABLE_STORE=seeded) == names, line
    assert completed(f"durable why --store {seeded} charge-") == ["charge-1", "charge-2"]


def test_a_store_that_is_not_there_offers_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nor does it say anything: a shell has nowhere to show it."""
    assert completed("durable why r", DURABLE_STORE="nosuch:store") == []
    assert completed("durable show r --step ", DURABLE_STORE=f"sqlite:{tmp_path / 'none.db'}") == []
    assert capfd.readouterr() == ("", "")


def test_ids_that_a_shell_would_run_are_not_offered(tmp_path: Path) -> None:
    """A shell puts what is offered on the line as it is, and whoever presses Enter runs it."""
    url = f"sqlite:{tmp_path / 'runs.db'}"

    async def fill() -> None:
        async with open_store(url) as store:
            for run_id in ("r-$(touch x)", "r-`id`", "r-a;b", "r-a b", "r-*", "r-'", "r-\u202e", "r-1/2:3", "-r"):
                await store.append(StepRecord(run_id=run_id, step_id="s"))

    asyncio.run(fill())
    assert completed("durable why ", DURABLE_STORE=url) == ["r-1/2:3"]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_an_id(shell: str, seeded: str, tmp_path: Path) -> None:
    """Tab after the beginning of an id writes the rest of it, by the script that `durable` gives the shell."""
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"{shell} is not installed")
    if shell == "bash" and _version_of(found) < (4, 4):
        pytest.skip("click's script is for bash from 4.4 on")
    script = subprocess.run(
        [sys.executable, "-m", "durable_cli"],
        env={**os.environ, "_DURABLE_COMPLETE": f"{shell}_source"},
        capture_output=True,
        check=True,
    )
    setup = tmp_path / "setup"
    setup.write_bytes(script.stdout)
    start = {"bash": ["--norc", "--noprofile"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    prepare = "autoload -U compinit; compinit -u; " if shell == "zsh" else ""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    with Terminal([found, *start], columns=200, env={"DURABLE_STORE": seeded, "PATH": path, "HOME": str(tmp_path)}) as screen:
        screen.type(f"{prepare}source {setup}; echo rea''dy\r")
        screen.expect("ready\r")
        screen.type("echo; durable why stopp\t")
        screen.expect("why stopping")


def _version_of(bash: str) -> tuple[int, ...]:
    told = subprocess.run([bash, "-c", "echo ${BASH_VERSINFO[@]:0:2}"], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, told.split()))
