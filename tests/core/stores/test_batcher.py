"""Many concurrent submissions, few flushes; nobody's trouble is another's."""

import asyncio
import gc
from collections.abc import Sequence
from contextlib import suppress

import pytest

from durable_core.errors import StoreError
from durable_core.stores.batcher import Batcher


class Refused(Exception):
    """What a server says to a batch with a bad row in it."""


class Log:
    """A place whose flushes are held back until told, and which can be told to fail."""

    def __init__(self, **options: int) -> None:
        self.batcher = Batcher(self.flush, size=len, refused=Refused, **options)
        self.batches: list[list[str]] = []
        self.open = asyncio.Event()
        self.entered = asyncio.Event()
        self.failures: dict[str, BaseException] = {}
        self.stuck = ""
        self.is_stuck = asyncio.Event()

    async def flush(self, items: Sequence[str]) -> list[str]:
        self.batches.append(list(items))
        self.entered.set()
        await self.open.wait()
        if items[0] == self.stuck:
            self.is_stuck.set()
            await asyncio.Event().wait()
        for item in items:
            if item in self.failures:
                raise self.failures[item]
        return [item.upper() for item in items]

    async def begin(self, *followers: str, leader: str = "leader") -> list[asyncio.Task[str]]:
        """Start a flush of `leader` and let `followers` gather behind it."""
        tasks = [asyncio.create_task(self.batcher.submit(item)) for item in (leader, *followers)]
        await self.entered.wait()
        await asyncio.sleep(0)
        return tasks


async def test_an_idle_batcher_flushes_at_once_and_adds_no_task() -> None:
    """Alone, a caller awaits its own flush in its own task."""
    log = Log()
    log.open.set()
    tasks_seen: list[int] = []

    async def flush(items: Sequence[str]) -> Sequence[str]:
        tasks_seen.append(len(asyncio.all_tasks()))
        return await log.flush(items)

    batcher = Batcher(flush, size=len)
    for item in ("a", "b", "c"):
        assert await batcher.submit(item) == item.upper()
    assert log.batches == [["a"], ["b"], ["c"]]
    assert tasks_seen == [1, 1, 1]
    assert len(asyncio.all_tasks()) == 1


async def test_what_gathers_during_a_flush_goes_in_one() -> None:
    """While a flush is in flight, the next batch gathers, and each caller gets the result of its own item."""
    log = Log()
    tasks = await log.begin("a", "b", "c")
    assert log.batches == [["leader"]]
    log.open.set()
    assert await asyncio.gather(*tasks) == ["LEADER", "A", "B", "C"]
    assert log.batches == [["leader"], ["a", "b", "c"]]


async def test_callers_that_submit_again_at_once_stay_in_one_batch() -> None:
    """A loop of appends in each of many tasks settles into one flush for all of them a round."""
    log = Log()
    log.open.set()

    async def loop(name: str) -> None:
        for _ in range(10):
            await log.batcher.submit(name)

    # Every flush really waits, as a disk or a server does.
    log.open.clear()
    tasks = [asyncio.create_task(loop(f"task {number}")) for number in range(20)]
    await log.entered.wait()
    log.open.set()
    await asyncio.gather(*tasks)
    assert sum(map(len, log.batches)) == 200
    assert len(log.batches) <= 12


async def test_it_is_idle_again_after_a_busy_time() -> None:
    """When all is drained, the next caller is alone again, and no task is left."""
    log = Log()
    tasks = await log.begin("a", "b")
    log.open.set()
    await asyncio.gather(*tasks)
    while len(asyncio.all_tasks()) > 1:
        await asyncio.sleep(0)
    assert await log.batcher.submit("later") == "LATER"
    assert log.batches[-1] == ["later"]
    assert len(asyncio.all_tasks()) == 1


async def test_who_comes_as_the_last_batch_ends_is_served() -> None:
    """Nobody falls between a batcher that is busy and one that is idle, whatever the turn of the loop."""
    for turns in range(12):
        log = Log()
        tasks = await log.begin("a")
        log.open.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        assert await asyncio.gather(log.batcher.submit("late"), *tasks) == ["LATE", "LEADER", "A"]


async def test_a_batch_is_bounded_in_items() -> None:
    """No flush gets more than `max_items`, and the order is that of submission."""
    log = Log(max_items=3)
    tasks = await log.begin(*"abcdefg")
    log.open.set()
    await asyncio.gather(*tasks)
    assert log.batches == [["leader"], ["a", "b", "c"], ["d", "e", "f"], ["g"]]


async def test_a_batch_is_bounded_in_bytes() -> None:
    """No flush gets more than `max_bytes`, except one item that is larger by itself."""
    log = Log(max_bytes=10)
    tasks = await log.begin("a" * 6, "b" * 4, "c", "d" * 30, "e" * 9, "f", "g")
    log.open.set()
    await asyncio.gather(*tasks)
    assert [list(map(len, batch)) for batch in log.batches[1:]] == [[6, 4], [1], [30], [9, 1], [1]]


async def test_a_refused_batch_goes_again_row_by_row() -> None:
    """The bad item alone fails; the others are written, each alone."""
    log = Log()
    log.failures["bad"] = Refused("bad row")
    tasks = await log.begin("a", "bad", "b")
    log.open.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results == ["LEADER", "A", log.failures["bad"], "B"]
    assert log.batches == [["leader"], ["a", "bad", "b"], ["a"], ["bad"], ["b"]]


async def test_a_refused_batch_of_two_goes_again_row_by_row() -> None:
    """The smallest batch there is keeps its good item, too."""
    log = Log()
    log.failures["bad"] = Refused("bad row")
    tasks = await log.begin("a", "bad")
    log.open.set()
    assert await asyncio.gather(*tasks, return_exceptions=True) == ["LEADER", "A", log.failures["bad"]]


async def test_another_error_goes_to_all_of_the_batch() -> None:
    """A connection lost is everyone's; nobody is tried again behind their back."""
    log = Log()
    log.failures["a"] = OSError("gone")
    tasks = await log.begin("a", "b")
    log.open.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results == ["LEADER", log.failures["a"], log.failures["a"]]
    assert await log.batcher.submit("later") == "LATER"


@pytest.mark.parametrize("failure", [Refused("row"), OSError("gone")])
async def test_the_leaders_failure_is_its_own(failure: Exception) -> None:
    """When the flush in flight fails, those who gathered behind it are flushed all the same."""
    log = Log()
    log.failures["leader"] = failure
    tasks = await log.begin("a", "b")
    log.open.set()
    assert await asyncio.gather(*tasks, return_exceptions=True) == [failure, "A", "B"]


async def test_a_flush_with_too_few_results_fails_its_batch() -> None:
    """A backend's mistake is an error for its callers, never an endless wait."""
    entered, go = asyncio.Event(), asyncio.Event()

    async def flush(items: Sequence[str]) -> Sequence[str]:
        entered.set()
        await go.wait()
        return items[:1]

    batcher = Batcher(flush, size=len)
    tasks = [asyncio.create_task(batcher.submit(item)) for item in "abc"]
    await entered.wait()
    go.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[0] == "a"
    assert [str(result) for result in results[1:]] == ["flush returned 1 results for 2 items"] * 2


async def test_an_item_whose_size_cannot_be_told_fails_alone() -> None:
    """An error of `size` is raised to the caller whose item it is."""

    def size(item: str) -> int:
        if item == "odd":
            raise ValueError("no size")
        return len(item)

    log = Log()
    log.batcher = Batcher(log.flush, size=size)
    tasks = await log.begin("a", "odd", "b")
    log.open.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[:2] == ["LEADER", "A"]
    assert results[3] == "B"
    assert isinstance(results[2], ValueError)


async def test_a_cancelled_leader_takes_nobody_along() -> None:
    """The flush in flight is cancelled with its caller; those behind it are flushed."""
    log = Log()
    tasks = await log.begin("a", "b")
    tasks[0].cancel()
    log.open.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == ["A", "B"]


async def test_a_cancelled_follower_takes_nobody_along() -> None:
    """One who gave up while the batch gathered isn't in it, and the others are."""
    log = Log()
    tasks = await log.begin("a", "b", "c")
    tasks[2].cancel()
    log.open.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results.pop(2), asyncio.CancelledError)
    assert results == ["LEADER", "A", "C"]
    assert log.batches == [["leader"], ["a", "c"]]


async def test_a_follower_cancelled_during_its_flush_takes_nobody_along() -> None:
    """Its item may have been written; the batch goes on."""
    log = Log()
    tasks = await log.begin("a", "b")
    tasks[0].cancel()  # so that the second flush is in flight, and waits
    log.entered.clear()
    await log.entered.wait()
    assert log.batches[-1] == ["a", "b"]
    tasks[1].cancel()
    log.open.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError, asyncio.CancelledError, str]


@pytest.mark.parametrize("limit", ["max_items", "max_bytes"])
async def test_a_full_batch_is_under_way_before_the_last_one_is_answered(limit: str) -> None:
    """The callers of one batch work while the next is written; a batch that may still grow waits for them."""
    log = Log(**{limit: 2})
    under_way: dict[str, list[str]] = {}

    async def caller(item: str) -> None:
        assert await log.batcher.submit(item) == item.upper()
        under_way[item] = log.batches[-1]

    tasks = [asyncio.create_task(caller(item)) for item in ("leader", "a", "b", "c", "d", "e")]
    await log.entered.wait()
    log.open.set()
    await asyncio.gather(*tasks)
    assert under_way["a"] == under_way["b"] == ["c", "d"]
    assert under_way["c"] == under_way["d"] == ["c", "d"]
    assert under_way["e"] == ["e"]


async def test_when_all_are_cancelled_it_is_idle_again() -> None:
    """Nothing hangs, nothing is left behind, and the next caller is served."""
    log = Log()
    tasks = await log.begin("a", "b", "c")
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    log.open.set()
    assert await log.batcher.submit("later") == "LATER"
    assert log.batches == [["leader"], ["later"]]


async def test_a_flush_cancelled_from_within_is_an_error_not_a_cancellation() -> None:
    """A driver that lets a cancellation of its own escape does not cancel the callers, nor stop the batches behind."""
    log = Log(max_items=2)
    log.failures["a"] = asyncio.CancelledError()
    tasks = await log.begin("a", "b", "c")
    log.open.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [str, StoreError, StoreError, str]


@pytest.mark.parametrize("refused", [False, True])
async def test_when_the_drain_is_cancelled_nobody_waits_for_ever(refused: bool) -> None:
    """Whoever cancels every task of the loop leaves those who go on waiting an error, and a batcher that works."""
    log = Log(max_items=3)
    log.failures["a"] = Refused("row")
    log.stuck = "b" if refused else "a"  # in the middle of going row by row, or in a batch
    tasks = await log.begin("a", "b", "c", "d")
    log.entered.clear()
    log.open.set()
    await log.is_stuck.wait()
    (drain,) = (task for task in asyncio.all_tasks() if task.get_name() == "durable-batcher")
    drain.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [str, Refused if refused else StoreError, *[StoreError] * 3]
    log.stuck = ""
    assert await log.batcher.submit("later") == "LATER"


async def test_a_drain_cancelled_before_its_first_turn_leaves_nobody_waiting() -> None:
    """Nor does it keep the batcher busy for ever."""
    log = Log()
    tasks = await log.begin("a", "b")
    log.open.set()
    while not (drains := [task for task in asyncio.all_tasks() if task.get_name() == "durable-batcher"]):
        await asyncio.sleep(0)
    drains[0].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [str, StoreError, StoreError]
    assert await log.batcher.submit("later") == "LATER"


async def test_when_the_drain_is_cancelled_over_a_full_batch_nothing_overlaps() -> None:
    """What is under way ends before the next flush begins, and its failure is no complaint of the loop."""
    at_once: list[int] = []
    active = 0

    async def flush(items: Sequence[int]) -> Sequence[int]:
        nonlocal active
        active += 1
        at_once.append(active)
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)  # a driver that tells its server, and finds the connection cut
            raise OSError("cut") from None
        finally:
            active -= 1
        return items

    batcher = Batcher(flush, size=lambda _: 0, max_items=2)

    async def caller(item: int) -> int:
        answer = await batcher.submit(item)
        if item == 1:
            (drain,) = (task for task in asyncio.all_tasks() if task.get_name() == "durable-batcher")
            drain.cancel()
            await asyncio.wait((drain,))
            assert await batcher.submit(7) == 7
        return answer

    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    answers = await asyncio.gather(*map(caller, range(7)), return_exceptions=True)
    assert answers[:3] == [0, 1, 2]
    assert [type(answer) for answer in answers[3:]] == [OSError, OSError, int, int]  # the driver made it an error of one batch
    assert set(at_once) == {1}
    gc.collect()
    assert complaints == []


class TestLoops:
    """What happens to a batcher when its loop ends."""

    def test_a_loop_that_ends_over_a_busy_batcher(self) -> None:
        """`asyncio.run` cancels all; nothing hangs or complains, and the next loop finds the batcher idle."""
        logs: list[Log] = []

        async def abandon() -> None:
            logs.append(Log())
            tasks.extend(await logs[0].begin("a", "b"))

        async def resume() -> str:
            logs[0].open = asyncio.Event()
            logs[0].open.set()
            return await logs[0].batcher.submit("later")

        tasks: list[asyncio.Task[str]] = []
        asyncio.run(abandon())
        assert all(task.cancelled() for task in tasks)
        assert asyncio.run(resume()) == "LATER"

    @pytest.mark.parametrize("collected", [False, True], ids=["kept", "collected"])
    @pytest.mark.parametrize("drained", [False, True], ids=["leader", "drain"])
    def test_a_loop_closed_over_unfinished_tasks(self, drained: bool, collected: bool) -> None:
        """A loop closed without cancelling anything leaves a batcher that the next loop can use, for its own items alone."""
        loop = asyncio.new_event_loop()
        log: Log | None = None

        async def abandon() -> tuple[Log, list[asyncio.Task[str]]]:
            log = Log()
            tasks = await log.begin("a", "b")
            if drained:
                tasks[0].cancel()
                log.entered.clear()
                await log.entered.wait()
            return log, tasks

        log, tasks = loop.run_until_complete(abandon())
        complaints: list[object] = []
        loop.set_exception_handler(lambda _, context: complaints.append(context["message"]))
        loop.close()
        unfinished = [task for task in [*tasks, log.batcher._drain] if task is not None and not task.done()]

        def collect() -> None:
            for task in unfinished:
                with suppress(RuntimeError):
                    task.get_coro().close()  # what the interpreter does when it collects them
                task._log_destroy_pending = False  # type: ignore[attr-defined]

        async def resume() -> str:
            log.open = asyncio.Event()
            log.open.set()
            answer = await asyncio.wait_for(log.batcher.submit("later"), 10)
            while len(asyncio.all_tasks()) > 1:
                await asyncio.sleep(0)
            return answer

        if collected:
            collect()
        flushed = len(log.batches)
        assert asyncio.run(resume()) == "LATER"
        assert log.batches[flushed:] == [["later"]]
        collect()
        assert complaints == []
