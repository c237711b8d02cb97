"""The guarantees of the library, each with the rows that break it.

`python -m tests.broken.guarantees` writes them to the documentation.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tests.broken.patches import PATCHES, Patch

PAGE: Final = Path(__file__).parents[2] / "docs" / "concepts" / "guarantees.md"
_BEGIN: Final = "<!-- from tests/broken/guarantees.py -->\n"
_HEAD: Final = (
    "| guarantee | one way in which it is broken on purpose | how many ways | a test that notices |\n|---|---|---|---|\n"
)
_END: Final = "<!-- until here -->\n"


class Guarantee(NamedTuple):
    """What holds, and the names of the rows that break it; one that ends with a colon stands for all that begin with it."""

    text: str
    rows: tuple[str, ...]


TABLE: Final[dict[str, list[Guarantee]]] = {
    "The log": [
        Guarantee(
            "What `append` returned is durable",
            (
                "file: an append returns without its sync",
                "file: a sync asks nothing of the system",
                "file: the folder of a new log is not synced",
                "sqlite: a commit is not synced",
                "redis: an append returns before its copies are there",
            ),
        ),
        Guarantee(
            "A slot has one winner, and all writers get its record",
            (
                "file: a slot is never taken",
                "sqlite: an entry is written over",
                "redis: a slot is never taken",
                "postgres: the last record takes the slot",
                "s3: an entry is written over",
                "memory: the last record takes the slot",
                "s3: an endpoint that ignores conditions is taken",
            ),
        ),
        Guarantee(
            "Every reader sees what `append` returned, and nothing else",
            ("redis: a newer entry is returned before its copies are there", "file: a log that changed is not looked at again"),
        ),
        Guarantee(
            "A failed or unfinished append leaves nothing behind",
            ("file: what a failed append wrote stays", "file: what an append left half done stays"),
        ),
        Guarantee("`clear` leaves a prefix, never a hole", ("s3: a run is cleared from its beginning",)),
        Guarantee(
            "Damage raises an error that names the place, and doesn't hide other runs",
            (
                "file: no line is checked",
                "record: a result that is nested too deeply is a RecursionError",
                "a damaged run hides others",
                "file: a log with a damaged first line hides the others",
                "redis: one damaged run hides the others",
                "a run of a newer version hides others",
                "runs that began first and can't be read hide all others",
                "sqlite: a damaged row takes other appends along",
                "sqlite: no row is checked",
                "sqlite: a damaged row names its column alone",
                "sqlite: a log may lack an entry that an index has lost",
                "sqlite: a slot that an index has lost is given away again",
                "sqlite: a list lacks a run that its index has lost",
                "sqlite: a row of another run is taken for one of this",
            ),
        ),
        Guarantee(
            "Old logs replay",
            (
                "arguments have other fingerprints than in old logs",
                "the library's errors have other names than in old logs",
                "file: runs have other files than in old folders",
                "sqlite: a database of an earlier version gets no checksums",
            ),
        ),
        Guarantee(
            "A run's lock has one holder",
            (
                "redis: a lock is taken from its holder",
                "postgres: a lock is told and not taken",
                "file: a lock is taken on a file that was replaced",
                "a process is taken for an earlier one with its number",
                "a process of another boot or namespace is taken for one of this",
            ),
        ),
        Guarantee(
            "A holder notices that it may have lost its lock",
            (
                "a lease that was not renewed in time counts as held",
                "postgres: a lock is held until the loop has read that its connection ended",
                "file: a holder doesn't look whether its lock file is still there",
            ),
        ),
        Guarantee(
            "A forked process doesn't share locks, connections or ids with its parent",
            (
                "a forked child makes the ids that its parent makes",
                "a forked child holds its parent's lease",
                "sqlite: the database stays open over a fork",
                "file: a fork that Python is not told of goes unnoticed",
            ),
        ),
        Guarantee(
            "A transaction commits with its record, or not at all",
            (
                "postgres: a transaction commits what it did beside another's record",
                "sqlite: a transaction that lost its slot is committed",
                "postgres: the caller's transaction is not joined",
            ),
        ),
        Guarantee(
            "An index never misses a run",
            (
                "redis: the log is written before the index",
                "s3: the log is written before the mark",
                "postgres: the index of flows is not written",
                "memory: the last of a page comes again",
            ),
        ),
        Guarantee(
            "A watch notices everything that happens to a run, also after an outage",
            ("redis: a watch ends with its connection", "postgres: a silent connection is listened to for ever"),
        ),
        Guarantee(
            "A store with connections belongs to one event loop", ("stores: one with connections serves two loops at once",)
        ),
        Guarantee("Passwords are never shown", ("urls: user and password are shown", "cli: a command to paste shows a password")),
        Guarantee("Reading a long log takes bounded memory", ("s3: a scan keeps what it has read",)),
    ],
    "Steps": [
        Guarantee("A recorded step does not run again", ("a step that was recorded runs again",)),
        Guarantee(
            "A runner that lost its lock starts no function",
            (
                "a step starts though the lock was lost",
                "the log is read before the lock is held",
                "the lock is not looked at once more when all waiting is over",
            ),
        ),
        Guarantee(
            "A value comes back as it was, or is refused",
            (
                "a value that comes back changed is recorded",
                "values: what comes back is not compared",
                "values: a value comes back as another class",
                "values: a secret is recorded masked",
            ),
        ),
        Guarantee(
            "A failure of the store is not a failure of the step, and leaves no hole",
            ("an outcome that the store did not take is forgotten",),
        ),
        Guarantee(
            "An at-most-once step runs at most once",
            (
                "at most once: no intent is recorded",
                "at most once: a lost intent runs the function all the same",
                "an interrupted step runs again",
                "an intent is recorded before a thread is free",
                "a step whose start a former holder recorded late is left to a person, in spite of recover=",
            ),
        ),
        Guarantee(
            "An outcome whose effect has happened is never dropped", ("an outcome that loses its slot to an intent is dropped",)
        ),
        Guarantee(
            "Retries survive the process",
            (
                "a long delay is not recorded",
                "attempts are counted anew in each life",
                "a restart by recover costs an attempt",
                "a run that waits for its next attempt is not told",
            ),
        ),
        Guarantee(
            "An idempotency key is the same in every attempt and in every version",
            ("each attempt has an idempotency key of its own", "a later version sends other idempotency keys"),
        ),
        Guarantee(
            "One id is one call",
            (
                "an id may stand for two calls",
                "calls: other arguments are the same call",
                "calls: a loop may go on before its step runs",
                "other arguments than recorded go unnoticed",
                "a step of another kind than recorded is taken for it",
                "recorded steps that a flow did not call go unnoticed",
            ),
        ),
        Guarantee(
            "A cancelled caller loses no outcome, and a `CancelledError` from elsewhere is a failure",
            (
                "a cancellation while recording leaves no record",
                "a CancelledError of another task is taken for one's own",
                "a runner that a scope cancels waits for no step",
            ),
        ),
        Guarantee("A timeout ends a step, even one that swallows exceptions", ("a function may swallow its timeout",)),
        Guarantee(
            "A race has one winner, on every replay",
            (
                "first: a runner returns its own winner, whoever holds the slot",
                "first: a loser begins something more",
                "first: waits that lost go on being asked for",
            ),
        ),
        Guarantee("A map processes each item once, and never more than its limit at a time", ("map:",)),
        Guarantee("Each call of `publish` appends one entry", ("publish:", "follow:")),
        Guarantee("An exception in an event handler does no harm", ("what a handler raises fails the step",)),
    ],
    "Flows and waits": [
        Guarantee(
            "A wait suspends the run without interrupting a step",
            ("`except Exception` in a flow swallows a suspension", "map: a wait beside it cuts it short"),
        ),
        Guarantee(
            "A suspended run names everything it waits for",
            (
                "a suspension leaves out waits that still ask their store",
                "a suspension leaves out children that still look at what they wait for",
            ),
        ),
        Guarantee("A wait ends at the time that was recorded first", ("a wait does not end at its deadline",)),
        Guarantee(
            "One decision counts: the first one, made in time, by somebody who may decide",
            (
                "the second of two decisions counts",
                "a decision after the deadline counts",
                "one rejection of several does not decide",
                "one of two people changes what the other approved",
                "a decision binds to nothing",
            ),
        ),
        Guarantee("A run has one input", ("a flow continues with other input than it began with",)),
        Guarantee("A typo doesn't end a run", ("a crash ends the run", "an interrupted step is a crash")),
        Guarantee(
            "A run that undid something has failed, and can't be retried",
            (
                "an exception that was answered is a crash",
                "what was undone is forgotten by the next life",
                "a failure that was answered is retried",
            ),
        ),
        Guarantee("A runner that lost the run records nothing about it", ("a runner that lost the run ends it",)),
        Guarantee(
            "A cancellation is never lost, and its status is true",
            (
                "a flow that begins while its run is being cancelled doesn't notice",
                "a suspension that lost its slot to a cancellation suspends",
                "a cancellation that came too late is not told",
                "a cancellation that was told is called late",
                "a cancelled run undoes nothing",
            ),
        ),
        Guarantee(
            "A child has one parent, the same outcome in both logs, and is cancelled with its parent",
            (
                "any run is accepted as a child",
                "a cancellation is not handed on to a child",
                "children that nobody waited for go on without their parent",
                "a child is driven without its lock",
            ),
        ),
        Guarantee(
            "Retrying or resolving a step lets its run continue, and the parents of that run",
            (
                "a step that runs is decided by hand",
                "a step is retried in a run that succeeded",
                "the parents of a child that was mended stay failed",
            ),
        ),
        Guarantee(
            "A fork copies what was decided, and nothing else",
            (
                "a fork takes the steps of children that have not ended",
                "a fork before a map keeps its items",
                "a fork before a race keeps its steps",
                "a fork keeps that a wait lost a race which it has not run yet",
                "a fork keeps that a child was cancelled with the original",
            ),
        ),
        Guarantee("A copy never changes existing entries", ("a copy continues over another run's entries",)),
        Guarantee(
            "A run and its children are cleared together, once all have ended",
            ("a run is cleared before its children", "a family is cleared though one of it has not ended"),
        ),
    ],
    "Workers": [
        Guarantee(
            "A worker looks at every run that can continue",
            (
                "wake-ups: nobody looks at a run if a process died before it woke a worker",
                "worker: what came while a run suspended waits for the visibility timeout",
                "celery: the sweep looks for no runs",
            ),
        ),
        Guarantee(
            "A wake-up that a worker took is hidden, and shows again until it is cleared",
            (
                "postgres: a wake-up that was taken is not hidden",
                "redis: a wake-up that was taken is not hidden",
                "s3, wake-ups: what was taken once is never shown again",
                "redis: wake-ups expire",
            ),
        ),
        Guarantee(
            "One bad run doesn't stop the others",
            (
                "worker: a run that kills its process kills the other runs in it too",
                "worker: what keeps dying has neighbours",
                "worker: a damaged log hides other runs from the sweep",
            ),
        ),
        Guarantee(
            "A run that keeps crashing is parked, and tried once more after a deploy",
            ("worker: a run that was parked is not tried once more",),
        ),
        Guarantee(
            "A limit applies across all machines",
            ("worker: a child uses a second place under its parent's limit", "worker: those that wait for a place take room"),
        ),
        Guarantee(
            "A worker that stops hands its runs back",
            (
                "worker: one that is stopped keeps its runs until the visibility timeout",
                "worker: a wait goes on in a process that stops",
            ),
        ),
        Guarantee("A tick of a schedule starts one run", ("cron:",)),
        Guarantee("A webhook is verified before it is read, and starts one run", ("webhooks:",)),
        Guarantee("If Celery loses, repeats or delays a task, no run is lost or done twice", ("celery:",)),
    ],
    "Around it": [
        Guarantee("Everything holds without asyncio too", ("sync:",)),
        Guarantee("The command shows what is recorded, as harmless text, and acts only when asked to", ("cli:",)),
        Guarantee("The page acts only as the person who is signed in, and only from its own origin", ("web:",)),
        Guarantee("An agent repeats no recorded model request and no recorded tool call", ("pydantic-ai:", "openai agents:")),
        Guarantee("Telemetry doesn't change runs, and exports no values", ("otel:",)),
        Guarantee("The tests for stores report what they don't test", ("kit:",)),
    ],
}


def rows_of(guarantee: Guarantee) -> Iterator[Patch]:
    """Yield the rows that break a guarantee. Raises `LookupError` for a name that is none."""
    for name in guarantee.rows:
        found = [patch for patch in PATCHES if patch.name == name or (name.endswith(":") and patch.name.startswith(name))]
        if not found:
            raise LookupError(f"no row of tests/broken/patches.py is named {name!r}")
        yield from found


def as_markdown() -> str:
    """Return the table as the documentation has it."""
    text = ""
    for title, guarantees in TABLE.items():
        text += f"\n### {title}\n\n{_HEAD}"
        for guarantee in guarantees:
            rows = [*rows_of(guarantee)]
            path, _, name = rows[0].tests[0].partition("::")
            test = name.partition("[")[0].rpartition("::")[2]
            text += f"| {guarantee.text} | {rows[0].name} | {len(rows)} | `{test}` in `{path}` |\n"
    return text + "\n"


def written(page: str) -> str:
    """Return the page with the table of today."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return before + _BEGIN + as_markdown() + _END + after


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
