"""What a handler makes of a run that no process dies in."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import StatusCode

from durable_core import MemoryStore, Runner, RunSuspended, StepEvent, StepFailed, Store, control, flow, sync
from durable_core.testing import FakeClock
from durable_otel import instrument
from tests.otel.conftest import Seen


def here() -> int:
    """Return the id of the span that is current."""
    return trace.get_current_span().get_span_context().span_id


async def test_an_attempt_is_current_inside_its_step(seen: Seen) -> None:
    """On the loop, in a thread, and for each of several steps that go on at once; not after the step."""
    found: dict[str, int] = {}
    between: list[int] = []
    met = asyncio.Barrier(2)

    async def on_loop(name: str) -> None:
        await met.wait()
        found[name] = here()

    def in_thread() -> None:
        found["in_thread"] = here()

    @flow(on_event=instrument(seen.tracers))
    async def three(runner: Runner) -> None:
        between.append(here())
        await asyncio.gather(runner.step("one", on_loop, "one"), runner.step("two", on_loop, "two"))
        await runner.step("in_thread", in_thread)
        between.append(here())

    before = here()
    await three.run(MemoryStore(), run_id="run")
    assert found == {name: seen.span(f"step {name}").context.span_id for name in ("one", "two", "in_thread")}
    assert between == [seen.span("run three").context.span_id] * 2
    assert here() == before


async def test_a_span_of_the_flow_itself_holds_the_steps_in_it(seen: Seen) -> None:
    """What the flow makes current between its visit and a step is the step's parent."""
    tracer = seen.tracers.get_tracer("mine")

    @flow(on_event=instrument(seen.tracers))
    async def phases(runner: Runner) -> None:
        with tracer.start_as_current_span("phase"):
            await runner.step("a", lambda: None)

    with tracer.start_as_current_span("request"):
        await phases.run(MemoryStore(), run_id="run")
    parents = {span.name: span.parent.span_id if span.parent else None for span in seen.spans}
    ids = {span.name: span.context.span_id for span in seen.spans}
    assert parents == {"step a": ids["phase"], "phase": ids["run phases"], "run phases": ids["request"], "request": None}


async def test_a_step_begun_by_a_task_from_elsewhere_is_in_its_visit(seen: Seen) -> None:
    """A task that was made under another span runs steps of the run; their spans are the visit's."""
    tracer = seen.tracers.get_tracer("mine")
    jobs: asyncio.Queue[Runner] = asyncio.Queue()

    async def work() -> None:
        runner = await jobs.get()
        await runner.step("a", lambda: None)

    with tracer.start_as_current_span("start-up"):
        worker = asyncio.create_task(work())

    @flow(on_event=instrument(seen.tracers))
    async def hands_on(runner: Runner) -> None:
        jobs.put_nowait(runner)
        await worker

    await hands_on.run(MemoryStore(), run_id="run")
    parent = seen.span("step a").parent
    assert parent is not None
    assert parent.span_id == seen.span("run hands_on").context.span_id


async def test_steps_without_a_flow_hang_below_what_is_current(seen: Seen) -> None:
    """A runner by itself has no visits; its attempts are spans all the same, and a replay makes none."""
    store, tell = MemoryStore(), instrument(seen.tracers)
    with seen.tracers.get_tracer("mine").start_as_current_span("request"):
        for _ in range(2):
            async with Runner(store, run_id="run", on_event=tell) as runner:
                await runner.step("a", lambda: None)
                await runner.sleep("b", 0)
    assert [span.name for span in seen.spans] == ["step a", "request"]
    assert [event.name for event in seen.span("request").events] == ["durable.wait", "durable.outcome"]


async def test_a_run_that_was_asked_for_links_to_who_asked(seen: Seen) -> None:
    """A request asks for a run, which a worker drives later: its first visit links to the request, the next one to the visit."""
    store, tracer = MemoryStore(), seen.tracers.get_tracer("mine")

    @flow(on_event=instrument(seen.tracers), wait_limit=0)
    async def settle(runner: Runner) -> None:
        await runner.sleep("a-day", 0 if len(seen.spans) > 1 else 60 * 60 * 24)

    with tracer.start_as_current_span("POST /orders"):
        await settle.start(store, run_id="run")
    with pytest.raises(RunSuspended):
        await settle.run(store, run_id="run")
    request, first = seen.spans
    (link,) = first.links
    assert (link.context.trace_id, link.context.span_id) == (request.context.trace_id, request.context.span_id)
    assert dict(link.attributes or {}) == {"durable.run.asked": True}
    assert first.context.trace_id != request.context.trace_id
    with pytest.raises(RunSuspended):
        await settle.run(store, run_id="run")
    (link,) = seen.spans[-1].links
    assert link.context.span_id == first.context.span_id
    assert dict(link.attributes or {}) == {"durable.visit.ended": "waiting"}


async def test_a_child_that_is_not_waited_for_links_to_its_parent(seen: Seen) -> None:
    """Whoever drives it later, its first visit links to the parent's visit that asked for it."""
    store = MemoryStore()

    @flow
    async def survey(runner: Runner) -> None:
        return None

    @flow(on_event=instrument(seen.tracers))
    async def order(runner: Runner) -> None:
        await runner.flow("survey", survey, wait=False)

    await order.run(store, run_id="run")
    await survey.options(on_event=instrument(seen.tracers)).run(store, run_id="run/survey")
    (link,) = seen.span("run survey").links
    assert link.context.span_id == seen.span("run order").context.span_id


async def test_children_under_gather_are_below_their_parent(seen: Seen) -> None:
    """Each visit of each child hangs below the parent's, and its steps below that, though both go on at once."""
    met = asyncio.Barrier(2)

    @flow
    async def child(runner: Runner) -> None:
        await runner.step("meet", met.wait, returns=None)

    @flow(on_event=instrument(seen.tracers))
    async def parent(runner: Runner) -> None:
        await asyncio.gather(runner.flow("one", child), runner.flow("two", child))

    await parent.run(MemoryStore(), run_id="run")
    top = seen.span("run parent").context.span_id
    runs = {(s.attributes or {})["durable.run.id"]: s for s in seen.spans if s.name == "run child"}
    steps = {(s.attributes or {})["durable.run.id"]: s for s in seen.spans if s.name == "step meet"}
    assert [*sorted(runs)] == [*sorted(steps)] == ["run/one", "run/two"]
    assert {span.parent.span_id for span in runs.values() if span.parent} == {top}
    assert all(steps[id_].parent == runs[id_].context for id_ in runs)


async def test_a_retry_is_two_attempts_with_the_time_that_each_took(seen: Seen) -> None:
    """The delay between them belongs to neither; the first one is an error, the second is not."""
    clock = FakeClock()

    async def flaky() -> None:
        await clock.sleep(2)
        if len(seen.spans) == 0:
            raise ConnectionError("the password is secret")

    @flow(on_event=instrument(seen.tracers), clock=clock)
    async def tries(runner: Runner) -> None:
        await runner.step("a", flaky, max_attempts=2, retry_delay=60)

    await tries.run(MemoryStore(), run_id="run")
    first, second, visit = seen.spans
    assert [(span.end_time or 0) - (span.start_time or 0) for span in seen.spans] == [2 * 10**9, 2 * 10**9, 64 * 10**9]
    assert (first.attributes or {})["durable.step.retry_delay"] == 60
    assert [(span.attributes or {}).get("durable.step.attempt") for span in (first, second)] == [1, 2]
    assert [span.status.status_code for span in (first, second, visit)] == [StatusCode.ERROR, StatusCode.UNSET, StatusCode.UNSET]


async def test_an_attempt_that_is_cancelled_ends(seen: Seen) -> None:
    """Its span ends as `stopped` and is not current any more, though nothing is recorded of it."""
    inside: list[int] = []

    @flow(on_event=instrument(seen.tracers))
    async def impatient(runner: Runner) -> None:
        try:
            async with asyncio.timeout(0.01):
                await runner.step("slow", asyncio.sleep, 60)
        except TimeoutError:
            inside.append(here())

    await impatient.run(MemoryStore(), run_id="run")
    slow, visit = seen.span("step slow"), seen.span("run impatient")
    assert (slow.attributes or {})["durable.step.outcome"] == "stopped"
    assert (slow.attributes or {})["error.type"] == "asyncio.exceptions.CancelledError"
    assert inside == [visit.context.span_id]


async def test_a_visit_that_is_cancelled_ends(seen: Seen) -> None:
    """A program that shuts down cancels its flows: their spans end as `stopped`, and the next visit links to them."""
    store, began = MemoryStore(), asyncio.Event()

    @flow(on_event=instrument(seen.tracers))
    async def long(runner: Runner) -> None:
        began.set()
        await runner.step("a", asyncio.sleep, 60 if len(seen.spans) == 0 else 0)

    task = asyncio.create_task(long.run(store, run_id="run"))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    first = seen.span("run long")
    assert (first.attributes or {})["durable.run.state"] == "stopped"
    await long.run(store, run_id="run")
    (link,) = seen.spans[-1].links
    assert (link.context.trace_id, link.context.span_id) == (first.context.trace_id, first.context.span_id)


@pytest.mark.parametrize(
    ("error", "fails_on", "state"), [(KeyError, (), "crashed"), (KeyError, KeyError, "failed")], ids=["crashed", "failed"]
)
async def test_a_visit_says_how_the_run_stands(
    seen: Seen, error: type[Exception], fails_on: type[Exception] | tuple[()], state: str
) -> None:
    """A crash and a failure are errors, with the type of the exception and without its message."""

    @flow(on_event=instrument(seen.tracers), fails_on=fails_on)
    async def breaks(runner: Runner) -> None:
        raise error("secret")

    with pytest.raises((error, StepFailed)):
        await breaks.run(MemoryStore(), run_id="run")
    visit = seen.span("run breaks")
    assert (visit.attributes or {})["durable.run.state"] == state
    assert (visit.attributes or {})["error.type"] == "KeyError"
    assert (visit.status.status_code, visit.status.description) == (StatusCode.ERROR, "KeyError")


async def _with_payloads(seen: Seen, *, payloads: bool) -> None:
    """Run a flow whose input, values, errors and questions all say "secret"."""

    async def fails() -> str:
        if "failed" not in said:
            said.add("failed")
            raise ValueError("secret")
        return "secret"

    said: set[str] = set()

    @flow(on_event=instrument(seen.tracers, seen.meters, payloads=payloads), wait_limit=0)
    async def keeps(runner: Runner, word: str) -> str:
        await runner.step("a", fails, max_attempts=2)
        await runner.approval("b", {"word": word})
        return word

    store = MemoryStore()
    with pytest.raises(RunSuspended):
        await keeps.run(store, run_id="run", word="secret")
    await control.approve(store, "run", "b", by="ada")
    await keeps.run(store, run_id="run", word="secret")


async def test_no_value_leaves_the_program(seen: Seen) -> None:
    """Neither input nor results, neither what is shown nor what exceptions say."""
    await _with_payloads(seen, payloads=False)
    assert len(seen.spans) == 4
    assert "secret" not in "".join(span.to_json() for span in seen.spans)


async def test_values_are_there_where_they_are_asked_for(seen: Seen) -> None:
    """With `payloads=True`: input, results, what is shown, and what exceptions say."""
    await _with_payloads(seen, payloads=True)
    said = [dict(span.attributes or {}) for span in seen.spans]
    assert [each.get("durable.run.input") for each in said] == [None, None, '{"word": "secret"}', '{"word": "secret"}']
    assert [each.get("durable.step.result") for each in said] == [None, '"secret"', None, None]
    assert [each.get("durable.run.result") for each in said] == [None, None, None, '"secret"']
    (raised,), (wait,) = seen.spans[0].events, seen.spans[2].events
    assert (raised.attributes or {})["exception.message"] == "secret"
    assert (wait.attributes or {})["durable.approval.show"] == '{"word": "secret"}'


async def test_a_value_of_any_length_is_cut(seen: Seen) -> None:
    """A payload has 4,000 characters at most."""
    async with Runner(MemoryStore(), run_id="run", on_event=instrument(seen.tracers, payloads=True)) as runner:
        await runner.step("a", lambda: "x" * 100_000)
    assert len(str((seen.span("step a").attributes or {})["durable.step.result"])) == 4_000


async def test_a_race_and_a_map_are_spans_of_what_is_in_them(seen: Seen) -> None:
    """Each item and each contender is an attempt, the loser too; their own outcomes are events of the visit."""

    @flow(on_event=instrument(seen.tracers))
    async def many(runner: Runner) -> None:
        await runner.map("mail", lambda item: item, ["x", "y"], key=str)
        await runner.first(
            "quick", fast=lambda: runner.step("fast", asyncio.sleep, 0), slow=lambda: runner.step("slow", asyncio.sleep, 60)
        )

    await many.run(MemoryStore(), run_id="run")
    outcomes = {span.name: (span.attributes or {}).get("durable.step.outcome") for span in seen.spans}
    assert outcomes == {
        "step mail/x": "success",
        "step mail/y": "success",
        "step fast": "success",
        "step slow": "stopped",
        "run many": None,
    }
    noted = [(event.attributes or {})["durable.step.kind"] for event in seen.span("run many").events]
    assert noted == ["map", "first"]


async def test_without_an_sdk_nothing_is_made_or_recorded() -> None:
    """With the providers that the API has by itself a run goes on as ever, and its log holds nothing of spans."""
    store: Store = MemoryStore()

    @flow(on_event=instrument(trace.NoOpTracerProvider()))
    async def plain(runner: Runner) -> int:
        return await runner.step("a", lambda: 1)

    assert await plain.run(store, run_id="run") == 1
    assert not [record for record in await store.list("run") if "carried" in record.notes]


@pytest.mark.parametrize("name", ["tracer_provider", "meter_provider"])
def test_what_is_no_provider_is_refused(name: str) -> None:
    """Before anything runs, with what was given and what was expected."""
    with pytest.raises(TypeError, match=f"{name} must be a .*Provider of OpenTelemetry, or None .* not 'console'"):
        instrument(**{name: "console"})  # type: ignore[arg-type]  # the subject of the test


def test_plain_functions_see_the_same(seen: Seen) -> None:
    """Without asyncio a flow and its steps have their spans too, current in the thread that called."""
    found: dict[str, int] = {}

    @sync.flow(on_event=instrument(seen.tracers))
    def plain(runner: sync.Runner) -> None:
        runner.step("a", lambda: found.update(step=here()))
        found["flow"] = here()

    plain.run(sync.open_store("memory:"), run_id="run")
    assert found == {"step": seen.span("step a").context.span_id, "flow": seen.span("run plain").context.span_id}


def test_plain_functions_hang_below_what_is_current_in_their_thread(seen: Seen) -> None:
    """The span that the caller's thread has holds a run that it runs, a step, and the items of a map; and the one that asks."""
    tracer, store = seen.tracers.get_tracer("mine"), sync.open_store("memory:")

    @sync.flow(on_event=instrument(seen.tracers))
    def plain(runner: sync.Runner) -> None:
        with tracer.start_as_current_span("phase"):
            runner.step("a", lambda: None)
            runner.map("mail", lambda item: item, ["x"], key=str)

    with tracer.start_as_current_span("request") as request:
        plain.run(store, run_id="run")
        assert trace.get_current_span() is request
        plain.start(store, run_id="later")
    plain.run(store, run_id="later")
    names = {span.context.span_id: span.name for span in seen.spans}
    parents = [(span.name, names[span.parent.span_id]) for span in seen.spans if span.parent]
    both = [("step a", "phase"), ("step mail/x", "phase")]
    assert parents == [*both, ("phase", "run plain"), ("run plain", "request"), *both, ("phase", "run plain")]
    (link,) = seen.spans[-1].links
    assert names[link.context.span_id] == "request"


def test_a_handler_that_was_not_made() -> None:
    """Who gives `instrument` in place of what it returns is told what to write."""
    event: Any = StepEvent(type="run:start", run_id="run", step_id="$flow", name="flow", attempt=1)
    with pytest.raises(TypeError, match=r"write on_event=instrument\(\), not on_event=instrument$"):
        instrument(event)
