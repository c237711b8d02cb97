"""Programs without asyncio that tests start, interrupt and kill: `python programs.py COMMAND URL FOLDER [NUMBER]`."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from durable_core import DurableError
from durable_core.sync import Runner, control, flow, open_store

STEPS = 8
ROUNDS = 20


def say(*words: object) -> None:
    print(*words, flush=True)


class Ledger:
    """Effects as lines of a file; the process kills itself after the one with number `kill_after`, before it is recorded."""

    def __init__(self, folder: Path, kill_after: int = 0) -> None:
        self.path, self.left = folder / "ledger", kill_after

    def book(self, name: str) -> str:
        with self.path.open("a") as file:
            file.write(f"{name}\n")
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return name


@flow
def settle(runner: Runner, folder: str) -> list[str]:
    done = [runner.step(f"step-{number}", LEDGER.book, f"step-{number}") for number in range(STEPS)]
    done += runner.map("map", LEDGER.book, ["a", "b"], limit=1)
    return [*done, runner.flow("child", child)]


@flow
def child(runner: Runner) -> str:
    return runner.step("book", LEDGER.book, "child")


@flow
def wait(runner: Runner) -> None:
    runner.step("one", lambda: 1)
    say("ready")
    runner.event("never")


@flow
def work(runner: Runner) -> None:
    runner.step("one", lambda: 1)
    runner.step("long", nap)


def nap() -> None:
    say("ready")
    time.sleep(600)


def in_a_wait(url: str, number: int) -> None:
    with open_store(url) as store, Runner(store, "wait") as runner:
        runner.step("one", lambda: 1)
        say("ready")
        runner.sleep("nap", 600)


def in_a_step(url: str, number: int) -> None:
    with open_store(url) as store, Runner(store, "step") as runner:
        runner.step("one", lambda: 1)
        runner.step("long", nap)


def in_a_race(url: str, number: int) -> None:
    with open_store(url) as store, Runner(store, f"race-{number}") as runner:

        def b() -> str:
            say("ready")
            return str(runner.event("b"))

        runner.first("race", a=lambda: runner.event("a"), b=b)


def in_a_flow_that_waits(url: str, number: int) -> None:
    with open_store(url) as store:
        wait.run(store, "flow-wait")


def in_a_flow_that_works(url: str, number: int) -> None:
    with open_store(url) as store:
        work.run(store, "flow-work")


def in_result(url: str, number: int) -> None:
    with open_store(url) as store:
        wait.start(store, "asked")
        say("ready")
        control.result(store, "asked")


def in_follow(url: str, number: int) -> None:
    with open_store(url) as store:
        say("ready")
        for _ in control.follow(store, "asked", "progress"):
            pass


def at_the_lock(url: str, number: int) -> None:
    with open_store(url) as store, open_store(url) as other, Runner(other, "held"):
        say("ready")
        with Runner(store, "held", lock_wait=600):
            pass


PLACES: dict[str, Callable[[str, int], None]] = {
    place.__name__: place
    for place in (
        in_a_wait,
        in_a_step,
        in_a_race,
        in_a_flow_that_waits,
        in_a_flow_that_works,
        in_result,
        in_follow,
        at_the_lock,
    )
}


def be_interrupted(url: str, place: str) -> None:
    """Get to a place again and again; each time Ctrl-C leads out of it."""
    for number in range(ROUNDS):
        try:
            PLACES[place](url, number)
        except KeyboardInterrupt:
            say("interrupted")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with open_store(url) as store, Runner(store, "after") as runner:
        say(runner.step("after", lambda: "all is well"), threading.active_count())


class Interrupts:
    """Lets Ctrl-C through where it is asked for, twice in a row at most."""

    def __init__(self) -> None:
        self.left = 0
        signal.signal(signal.SIGINT, self)

    def __call__(self, *_: object) -> None:
        if self.left:
            self.left -= 1
            raise KeyboardInterrupt


def be_busy(url: str) -> None:
    """Do a hundred steps, however often it is interrupted."""
    interrupts = Interrupts()
    say("ready")
    done = False
    while not done:
        try:
            try:
                interrupts.left = 2
                with open_store(url) as store, Runner(store, "busy") as runner:
                    for number in range(100):
                        runner.step(f"step-{number}", LEDGER.book, f"step-{number}")
                done = True
            finally:
                interrupts.left = 0
        except KeyboardInterrupt:
            pass
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    say("done")


class Late:
    """Uses the store when the interpreter shuts down, where the thread of the library's loop has stopped."""

    def __del__(self) -> None:
        try:
            say(LATE_STORE.get("run", "step"))
        except DurableError as error:
            say(error)


@flow
def forks(runner: Runner) -> None:
    if (pid := os.fork()) == 0:
        in_child("", "in-a-flow")
        say(control.status(runner.store, runner.run_id).status)
        os._exit(0)
    os.waitpid(pid, 0)


def in_child(url: str, run_id: str) -> None:
    with Runner(STORE, run_id) as runner:
        threads = [thread.name for thread in threading.enumerate()]
        say(run_id, runner.step("here", lambda: threading.current_thread().name), threads.count("durable-loop"))


def fork(url: str) -> None:
    """Use a store, fork in both ways, and use it again, in all processes."""
    in_child(url, "parent")
    process = multiprocessing.get_context("fork").Process(target=in_child, args=(url, "multiprocessing"))
    process.start()
    process.join(60)
    if (pid := os.fork()) == 0:
        in_child(url, "fork")
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    in_child(url, "again")
    say(process.exitcode, status)
    forks.run(STORE, "forks")


if __name__ == "__main__":
    command, url, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    LEDGER = Ledger(folder, int(sys.argv[4]) if len(sys.argv) > 4 else 0)
    if command == "settle":
        with open_store(url) as store:
            say(*settle.run(store, "run", folder=str(folder)))
    elif command == "busy":
        be_busy(url)
    elif command == "fork":
        STORE = open_store(url)
        fork(url)
    elif command == "late":
        LATE_STORE = open_store(url)
        LATE_STORE.get("run", "step")
        late = Late()
    else:
        be_interrupted(url, command)
