"""An agent's model requests and tool calls are steps: what happened is not done again."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from agents import (
    Agent,
    AgentsException,
    Handoff,
    LocalShellTool,
    MaxTurnsExceeded,
    RunConfig,
    ToolOutputImage,
    default_tool_error_function,
    function_tool,
    handoff,
)
from agents.models.interface import Model, ModelProvider
from pydantic import BaseModel

from durable_core import (
    DurableError,
    MemoryStore,
    NestedStep,
    Runner,
    RunSuspended,
    StepDrift,
    StepFailed,
    StepInterrupted,
    StepReused,
    control,
    flow,
)
from durable_openai_agents import run_agent
from tests.core.conftest import Effects

from .script import Script, call, once, outputs

pytestmark = pytest.mark.asyncio


async def ids(store: MemoryStore, run_id: str = "run") -> list[str]:
    return [record.step_id for record in await store.list(run_id)]


async def test_a_replay_asks_no_model_and_calls_no_tool(store: MemoryStore, effects: Effects) -> None:
    """The transcript, the usage and the output of a replay are those of the first run."""

    @function_tool
    async def look(city: str) -> dict[str, Any]:
        return {"sky": effects.happen(city), "warm": True}

    model = Script(once(call("look", '{"city": "Berlin"}'), call("look", '{"city": "Rome"}', "call_1")))
    agent = Agent("scout", instructions="Look.", tools=[look], model=model)
    results = []
    for _ in range(2):
        async with Runner(store, "run") as runner:
            results.append(await run_agent(runner, "scout", agent, "Go."))
    first, second = results
    assert len(model.asked) == 2
    assert effects == {"Berlin": 1, "Rome": 1}
    assert first.to_input_list() == second.to_input_list()
    assert first.raw_responses == second.raw_responses
    assert first.context_wrapper.usage == second.context_wrapper.usage
    assert second.context_wrapper.usage.requests == 2
    assert second.final_output == first.final_output
    assert await ids(store) == ["scout/1-model", "scout/1-look-call_0", "scout/1-look-call_1", "scout/2-model"]


async def test_a_request_is_sent_as_without_steps(store: MemoryStore) -> None:
    """What a provider left out of a response is not sent back to it as null."""
    model = Script(once(call("look")))

    @function_tool
    async def look() -> str:
        return "rain"

    agent = Agent("scout", tools=[look], model=model)
    async with Runner(store, "run") as runner:
        await run_agent(runner, "scout", agent, "Go.")
    (asked,) = [item for item in model.asked[1] if item.get("type") == "function_call"]
    assert asked == {"type": "function_call", "call_id": "call_0", "name": "look", "arguments": "{}"}


async def test_a_call_id_may_come_again_in_another_turn(store: MemoryStore, effects: Effects) -> None:
    """Two agent runs of one run, whose providers repeat their call ids, have steps of their own."""

    @function_tool
    async def look() -> str:
        return effects.happen("look")

    agent = Agent("scout", tools=[look], model=Script(once(call("look"))))
    async with Runner(store, "run") as runner:
        both = await asyncio.gather(run_agent(runner, "one", agent, "Go."), run_agent(runner, "two", agent, "Go."))
    assert [result.final_output for result in both] == ["done: look", "done: look"]
    assert effects["look"] == 2
    assert sorted(await ids(store)) == [
        f"{name}/{step}" for name in ("one", "two") for step in ("1-look-call_0", "1-model", "2-model")
    ]


async def test_typed_output_and_images_come_back(store: MemoryStore) -> None:
    """An output type is parsed from the recorded response, and an image reaches the model as the SDK sends it."""

    class Report(BaseModel):
        city: str

    @function_tool
    async def photo() -> ToolOutputImage:
        return ToolOutputImage(image_url="data:image/png;base64,AAAA")

    def answers(items: list[dict[str, Any]]) -> list[Any]:
        return ['{"city": "Rome"}'] if outputs(items) else [call("photo")]

    model = Script(answers)
    agent = Agent("scout", tools=[photo], model=model, output_type=Report)
    for _ in range(2):
        async with Runner(store, "run") as runner:
            result = await run_agent(runner, "scout", agent, "Go.")
        assert result.final_output == Report(city="Rome")
        (sent,) = outputs(result.to_input_list())
        assert sent == [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]
    assert outputs(model.asked[1]) == [sent]


@pytest.mark.parametrize("wrapped", [False, True], ids=["agent", "handoff"])
async def test_whom_an_agent_hands_over_to_is_durable_too(store: MemoryStore, effects: Effects, wrapped: bool) -> None:
    """Tools and models of the agents that follow are steps, also where two hand over to each other."""

    @function_tool
    async def refund() -> str:
        return effects.happen("refund")

    triage = Agent("triage", model=Script(lambda items: [call("transfer_to_billing")]))
    billing = Agent("billing", tools=[refund], handoffs=[triage])
    billing.model = Script(lambda items: ["refunded"] if "refund" in outputs(items) else [call("refund", call_id="call_1")])
    triage.handoffs = [handoff(billing) if wrapped else billing]
    for _ in range(2):
        async with Runner(store, "run") as runner:
            result = await run_agent(runner, "triage", triage, "Refund me.")
        assert (result.last_agent.name, result.final_output) == ("billing", "refunded")
    assert effects["refund"] == 1
    assert await ids(store) == ["triage/1-model", "triage/2-model", "triage/2-refund-call_1", "triage/3-model"]


async def test_models_by_name_and_of_the_configuration(store: MemoryStore) -> None:
    """A model that the provider finds by its name is recorded, and so is one that the run configuration names."""
    model = Script(lambda items: ["hello"])

    class Provider(ModelProvider):
        def get_model(self, model_name: str | None) -> Model:
            assert model_name == "small"
            return model

    configs = [RunConfig(model_provider=Provider()), RunConfig(model=model)]
    for number, config in enumerate(configs):
        for _ in range(2):
            async with Runner(store, f"run-{number}") as runner:
                result = await run_agent(runner, "greet", Agent("greeter", model="small"), "Hi.", run_config=config)
            assert result.final_output == "hello"
    assert len(model.asked) == 2


async def test_a_model_request_that_fails_is_tried_again(store: MemoryStore, effects: Effects) -> None:
    """A provider that is away is asked again; when the attempts have run out, the run fails as one of any step."""

    def answers(items: list[dict[str, Any]]) -> list[Any]:
        effects.happen("asked")
        raise ConnectionError("away")

    agent = Agent("greeter", model=Script(answers))
    for _ in range(2):
        async with Runner(store, "run") as runner:
            with pytest.raises(StepFailed, match="away") as failed:
                await run_agent(runner, "greet", agent, "Hi.", model={"max_attempts": 3, "retry_delay": 0})
        assert failed.value.step_id == "greet/1-model"
    assert effects["asked"] == 3


async def test_a_tool_that_fails_is_tried_again(store: MemoryStore, effects: Effects) -> None:
    """The SDK makes no text of an exception before the attempts have run out."""

    @function_tool
    async def flaky() -> str:
        effects.happen("tried")
        if effects["tried"] < 3:
            raise ConnectionError("away")
        return "here"

    agent = Agent("scout", tools=[flaky], model=Script(once(call("flaky"))))
    async with Runner(store, "run") as runner:
        result = await run_agent(runner, "scout", agent, "Go.", tool={"retry_delay": 0}, tools={"flaky": {"max_attempts": 3}})
    assert result.final_output == "done: here"
    assert effects["tried"] == 3


async def test_the_model_is_told_of_a_failure_as_the_tool_says(store: MemoryStore, effects: Effects) -> None:
    """A tool that failed for good is told to the model, now and on a replay; without `failure_error_function` the run fails."""

    def told(context: Any, error: Exception) -> str:
        assert isinstance(error, StepFailed)
        return f"sorry, {error.error.message}"

    async def charge() -> str:
        effects.happen("charge")
        raise ValueError("declined")

    for number, function in enumerate([told, default_tool_error_function, None]):
        tool = function_tool(charge, failure_error_function=function)
        agent = Agent("till", tools=[tool], model=Script(once(call("charge"))))
        for _ in range(2):
            async with Runner(store, f"run-{number}") as runner:
                if function is None:
                    with pytest.raises(StepFailed, match="declined") as failed:
                        await run_agent(runner, "till", agent, "Go.")
                    assert failed.value.error.matches(ValueError)
                    assert failed.value.__cause__ is None or isinstance(failed.value.__cause__, ValueError)
                else:
                    result = await run_agent(runner, "till", agent, "Go.")
                    assert ("sorry, declined" if function is told else "An error occurred") in result.final_output
    assert effects["charge"] == 3


async def test_a_failed_run_is_retried_from_outside(store: MemoryStore, effects: Effects) -> None:
    """`control.retry` lets a failed tool run again; the model is not asked again."""

    async def charge() -> str:
        if effects.happen("charge") and effects["charge"] == 1:
            raise ValueError("declined")
        return "paid"

    model = Script(once(call("charge")))
    agent = Agent("till", tools=[function_tool(charge, failure_error_function=None)], model=model)
    with pytest.raises(StepFailed):
        async with Runner(store, "run") as runner:
            await run_agent(runner, "till", agent, "Go.")
    await control.retry(store, "run", "till/1-charge-call_0")
    async with Runner(store, "run") as runner:
        assert (await run_agent(runner, "till", agent, "Go.")).final_output == "done: paid"
    assert (len(model.asked), effects["charge"]) == (2, 2)


async def test_one_that_fails_cancels_no_other_call(store: MemoryStore, effects: Effects) -> None:
    """A call that runs beside one that fails ends and is recorded: it doesn't happen a second time."""
    begun = asyncio.Event()

    async def slow() -> str:
        begun.set()
        for _ in range(1_000):  # turns of the loop, of which the SDK takes a few until it cancels, however busy the machine is
            await asyncio.sleep(0)
        return effects.happen("slow")

    async def wrong() -> str:
        await begun.wait()
        raise ValueError("wrong")

    tools: list[Any] = [function_tool(slow), function_tool(wrong, failure_error_function=None)]
    agent = Agent("scout", tools=tools, model=Script(once(call("slow"), call("wrong", call_id="call_1"))))
    for _ in range(2):
        with pytest.raises(StepFailed, match="wrong"):
            async with Runner(store, "run") as runner:
                await run_agent(runner, "scout", agent, "Go.")
    assert effects["slow"] == 1
    assert "scout/1-slow-call_0" in await ids(store)


async def test_a_wait_beside_a_call_that_fails_is_not_waited_for(store: MemoryStore) -> None:
    """A tool that is no step and waits is cut short where another call fails the run."""

    async def wrong() -> str:
        raise ValueError("wrong")

    async with Runner(store, "run") as runner:

        async def ask() -> str:
            answer: str = await runner.event("answer", returns=str)
            return answer

        tools: list[Any] = [function_tool(ask), function_tool(wrong, failure_error_function=None)]
        agent = Agent("scout", tools=tools, model=Script(once(call("ask"), call("wrong", call_id="call_1"))))
        with pytest.raises(StepFailed, match="wrong"):
            async with asyncio.timeout(10):
                await run_agent(runner, "scout", agent, "Go.", tools={"ask": False})


async def test_a_timeout_replays(store: MemoryStore, effects: Effects) -> None:
    """A tool that took too long did so on a replay, too, whatever it would take then."""

    @function_tool(timeout=0.05)
    async def slow() -> str:
        effects.happen("slow")
        if effects["slow"] == 1:
            await asyncio.Event().wait()
        return "in time"

    agent = Agent("scout", tools=[slow], model=Script(once(call("slow"))))
    for _ in range(2):
        async with Runner(store, "run") as runner:
            result = await run_agent(runner, "scout", agent, "Go.")
        assert result.final_output == "done: Tool 'slow' timed out after 0.05 seconds."
    assert effects["slow"] == 1


async def test_a_timeout_holds_for_each_attempt(store: MemoryStore, effects: Effects) -> None:
    """A tool that took too long is tried again, with the same time."""

    @function_tool(timeout=0.5)
    async def slow() -> str:
        effects.happen("slow")
        if effects["slow"] == 1:
            await asyncio.Event().wait()
        await asyncio.sleep(0.01)
        return "in time"

    agent = Agent("scout", tools=[slow], model=Script(once(call("slow"))))
    async with Runner(store, "run", max_attempts=2) as runner:
        result = await run_agent(runner, "scout", agent, "Go.", tool={"retry_delay": 0})
    assert result.final_output == "done: in time"
    assert effects["slow"] == 2


async def test_an_interrupted_call_is_no_matter_for_the_model(store: MemoryStore, effects: Effects) -> None:
    """A call at most once that may have happened stops the run; the model can't ask for another one."""
    begun = asyncio.Event()

    @function_tool
    async def charge() -> str:
        effects.happen("charge")
        begun.set()
        await asyncio.Event().wait()
        return "charged"

    model = Script(once(call("charge")))
    agent = Agent("till", tools=[charge], model=model)

    async def main() -> None:
        async with Runner(store, "run") as runner:
            await run_agent(runner, "till", agent, "Go.", tools={"charge": {"at_most_once": True}})

    task = asyncio.create_task(main())
    await asyncio.wait_for(begun.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(StepInterrupted):
        await main()
    assert (len(model.asked), effects["charge"]) == (1, 1)


async def test_a_response_that_no_longer_decodes_is_drift(store: MemoryStore) -> None:
    """The model is not asked again where its recorded response can't be read."""
    model = Script(lambda items: ["hello"])
    async with Runner(store, "run") as runner:
        await runner.scope("greet").step("1-model", dict, returns=Any)
    async with Runner(store, "run", on_drift="warn") as runner:
        with pytest.raises(StepDrift), pytest.warns(StepDrift):
            await run_agent(runner, "greet", Agent("greeter", model=model), "Hi.")
    assert model.asked == []


async def test_a_changed_prompt_is_drift(store: MemoryStore) -> None:
    """Who changes what an agent in flight is told gets the runner's word about it."""
    agent = Agent("greeter", instructions="Be kind.", model=Script(lambda items: ["hello"]))
    async with Runner(store, "run") as runner:
        await run_agent(runner, "greet", agent, "Hi.")
    changed = replace(agent, instructions="Be brief.")
    async with Runner(store, "run", on_drift="raise") as runner:
        with pytest.raises(StepDrift):
            await run_agent(runner, "greet", changed, "Hi.")


async def test_a_tool_that_is_no_step_may_use_the_runner(store: MemoryStore, effects: Effects) -> None:
    """It runs on every replay, and what it asks of the runner is recorded; a wait in it suspends the run."""

    async def main() -> str:
        async with Runner(store, "run", wait_limit=0) as runner:

            @function_tool
            async def ask() -> str:
                effects.happen("asked")
                answer: str = await runner.event("answer", returns=str)
                return answer

            agent = Agent("scout", tools=[ask], model=Script(once(call("ask"))))
            return (await run_agent(runner, "scout", agent, "Go.", tools={"ask": False})).final_output

    with pytest.raises(RunSuspended):
        await main()
    await control.send(store, "run", "answer", "42")
    assert await main() == "done: 42"
    assert effects["asked"] == 2


async def test_an_agent_as_a_tool_is_one_step(store: MemoryStore, effects: Effects) -> None:
    """What the inner agent does is recorded as one call, with models by name as well."""
    inner = Agent("inner", model="small")
    outer = Agent("outer", tools=[inner.as_tool("ask_inner", "Asks.")], model="small")

    def answers(items: list[dict[str, Any]]) -> list[Any]:
        if items[0]["content"] == "inner":
            return [effects.happen("inner")]
        return ["done"] if outputs(items) else [call("ask_inner", '{"input": "inner"}')]

    model = Script(answers)

    class Provider(ModelProvider):
        def get_model(self, model_name: str | None) -> Model:
            return model

    for _ in range(2):
        async with Runner(store, "run") as runner:
            result = await run_agent(runner, "outer", outer, "Go.", run_config=RunConfig(model_provider=Provider()))
        assert result.final_output == "done"
    assert effects["inner"] == 1
    assert await ids(store) == ["outer/1-model", "outer/1-ask_inner-call_0", "outer/2-model"]


async def test_bad_input_is_refused_before_anything_runs(store: MemoryStore) -> None:
    """A misspelt tool, a tool that can't be a step, and an approval inside one are errors at once."""

    @function_tool(needs_approval=True)
    async def refund() -> str:
        return "refunded"

    model = Script(lambda items: ["hello"])
    agent = Agent("till", tools=[refund], model=model)
    boss = Agent("boss", tools=[agent.as_tool("till", "Refunds.")], model=model)
    async with Runner(store, "run") as runner:
        with pytest.raises(ValueError, match=r"tools=\['refnud'\].*available: refund"):
            await run_agent(runner, "one", agent, "Go.", tools={"refnud": {"at_most_once": True}})
        with pytest.raises(TypeError, match="takes a Runner, not None"):
            await run_agent(None, "one", agent, "Go.")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="a str, or a list of the SDK's input items, not None"):
            await run_agent(runner, "one", agent, None)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="or False for a tool that is not a step, not True"):
            await run_agent(runner, "one", agent, "Go.", tools={"refund": True})  # type: ignore[dict-item]
        with pytest.raises(TypeError, match="need approval"):
            await run_agent(runner, "two", boss, "Go.")
        with pytest.raises(TypeError, match="whose run is one step"):
            await run_agent(runner, "three", boss, "Go.", tools={"till": False})
        with pytest.raises(TypeError, match="expected an Agent"):
            await run_agent(runner, "four", "till", "Go.")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="scope"):
            await run_agent(runner, "a/b", agent, "Go.")
    assert model.asked == []
    assert not await store.list("run")


async def test_too_many_turns_are_too_many_again(store: MemoryStore, effects: Effects) -> None:
    """On a replay the limit is passed where it was passed first; the run ends as failed, where its flow says so."""

    @function_tool
    async def look() -> str:
        return effects.happen("look")

    agent = Agent("scout", tools=[look], model=Script(lambda items: [call("look", call_id=f"call_{len(items)}")]))
    for _ in range(2):
        async with Runner(store, "run") as runner:
            with pytest.raises(MaxTurnsExceeded):
                await run_agent(runner, "scout", agent, "Go.", max_turns=2)
    assert effects["look"] == 2

    @flow(fails_on=AgentsException)
    async def scouting(runner: Runner) -> None:
        await run_agent(runner, "scout", agent, "Go.", max_turns=2)

    with pytest.raises(StepFailed, match="MaxTurnsExceeded"):
        await scouting.run(store, run_id="run-2")
    assert (await control.status(store, "run-2")).status == "failed"


async def test_a_run_that_is_cancelled_in_a_request(store: MemoryStore, effects: Effects) -> None:
    """The request is finished and recorded, and the tool that it asked for isn't called; nor in a request that is cut short."""
    asked, answers = asyncio.Event(), asyncio.Event()

    class Slow(Script):
        async def get_response(self, *args: Any, **kwargs: Any) -> Any:
            asked.set()
            await answers.wait()
            return await super().get_response(*args, **kwargs)

    @function_tool
    async def look() -> str:
        return effects.happen("look")

    agent = Agent("scout", tools=[look], model=Slow(once(call("look"))))

    @flow
    async def scouting(runner: Runner) -> None:
        await run_agent(runner, "scout", agent, "Go.")

    async with Runner(store, "run-0") as runner:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await run_agent(runner, "scout", agent, "Go.")
    assert not await store.list("run-0")
    asked.clear()
    running = asyncio.create_task(scouting.run(store, run_id="run"))
    await asyncio.wait_for(asked.wait(), 30)
    await control.cancel(store, "run", reason="enough")
    answers.set()
    with pytest.raises(StepFailed, match="enough"):
        await running
    assert (await control.status(store, "run")).status == "cancelled"
    assert [step for step in await ids(store) if step != "$flow"] == ["scout/1-model"]
    assert not effects
    async with Runner(store, "run-0") as runner:
        assert (await run_agent(runner, "scout", agent, "Go.")).final_output == "done: look"


async def test_a_durable_error_is_never_told_to_the_model(store: MemoryStore) -> None:
    """An error of the runner leaves the agent run as it is, not as the SDK wraps it."""

    async def lose() -> str:
        raise DurableError("the store is away")

    model = Script(once(call("lose")))
    agent = Agent("scout", tools=[function_tool(lose)], model=model)
    async with Runner(store, "run") as runner:
        with pytest.raises(DurableError, match="^the store is away$"):
            await run_agent(runner, "scout", agent, "Go.", tools={"lose": False})
    assert len(model.asked) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": {"max_attempts": 0}}, "model: max_attempts must be at least 1"),
        ({"model": {"at_most_once": True}}, "at_most_once is for tools"),
        ({"model": 3}, "model: options of a step must be a dict"),
        ({"tool": {"retries": 2}}, "tool: unknown option 'retries'"),
        ({"tool": {"approvals": {}}}, "tool: unknown option 'approvals'"),
        ({"tools": 3}, "tools must be a dict"),
        ({"tools": {"look": {"timeout": -1}}}, r"tools\['look'\]: timeout must be"),
        ({"tools": {"look": {"name": 3}}}, r"tools\['look'\]: name must be a str"),
    ],
)
async def test_options_that_cannot_be(store: MemoryStore, options: dict[str, Any], message: str) -> None:
    """They are refused before anything runs: told inside a call, the model would hear of them."""

    @function_tool
    async def look() -> str:
        raise AssertionError

    model = Script(once(call("look")))
    async with Runner(store, "run") as runner:
        with pytest.raises((TypeError, ValueError), match=message):
            await run_agent(runner, "scout", Agent("scout", tools=[look], model=model), "Go.", **options)
    assert model.asked == []


async def test_a_name_that_was_used_before(store: MemoryStore) -> None:
    """A second `run_agent` of that name says what to do: no answer of the first one is taken for its own."""
    agent = Agent("greeter", model=Script(lambda items: ["hello"]))
    async with Runner(store, "run") as runner:
        await run_agent(runner, "greet", agent, "Hi.")
        with pytest.raises(StepReused, match="an agent ran as 'greet' before in this run.*a name of its own"):
            await run_agent(runner, "greet", agent, "Bye.")
        with pytest.raises(StepReused, match="a name of its own"):
            await asyncio.gather(*(run_agent(runner, "both", agent, prompt) for prompt in ("Hi.", "Bye.")))


async def test_an_agent_that_runs_in_a_step(store: MemoryStore) -> None:
    """It can't make steps of its own there, and is told how it can; the model hears nothing of it."""
    inner = Agent("inner", model=Script(lambda items: ["hello"]))
    async with Runner(store, "run") as runner:

        @function_tool
        async def ask() -> str:
            return str((await run_agent(runner, "inner", inner, "Hi.")).final_output)

        outer = Agent("outer", tools=[ask], model=Script(once(call("ask"))))
        with pytest.raises(NestedStep, match=r"inside step 'outer/1-ask-call_0'.*tools={'its_name': False}"):
            await run_agent(runner, "outer", outer, "Go.")
    assert await ids(store) == ["outer/1-model"]


async def test_an_approval_deep_in_an_agent_that_is_a_tool(store: MemoryStore, effects: Effects) -> None:
    """A step can't wait for it: that is an error, on each replay, and never an answer to the model."""

    @function_tool(needs_approval=True)
    async def refund() -> str:
        return effects.happen("refund")

    billing = Agent("billing", tools=[refund], model=Script(lambda items: [call("refund", call_id="call_1")]))
    desk = Agent("desk", handoffs=[billing], model=Script(lambda items: [call("transfer_to_billing")]))
    model = Script(once(call("ask_desk", '{"input": "Refund me."}')))
    boss = Agent("boss", tools=[desk.as_tool("ask_desk", "Asks.")], model=model)
    for _ in range(2):
        async with Runner(store, "run", wait_limit=0) as runner:
            with pytest.raises(DurableError, match="'ask_desk' is an agent.*something in it needs approval"):
                await run_agent(runner, "boss", boss, "Go.")
    assert [record async for record in control.pending(store)] == []
    assert (len(model.asked), effects) == (1, {})


async def test_a_tool_of_whom_a_handoff_chose_that_cannot_be_a_step(store: MemoryStore) -> None:
    """Nobody knew the agent before; its tool is refused before its model is asked."""
    shell = LocalShellTool(executor=lambda request: "done")
    model = Script(lambda items: ["hello"])
    other = Agent("other", tools=[shell], model=model)

    async def choose(context: Any) -> Agent[Any]:
        return other

    chosen: Any = Handoff(
        tool_name="transfer",
        tool_description="",
        input_json_schema={},
        on_invoke_handoff=lambda *_: choose(_),
        agent_name="other",
    )
    start = Agent("start", handoffs=[chosen], model=Script(lambda items: [call("transfer")]))
    async with Runner(store, "run") as runner:
        with pytest.raises(TypeError, match="LocalShellTool of agent 'other' can't be a step"):
            await run_agent(runner, "start", start, "Go.")
    assert model.asked == []
