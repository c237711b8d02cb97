"""What it means for a run that an exception left its flow."""

from __future__ import annotations

from durable_core.errors import DurableError, StepFailed


def keeps_from_going_on(error: BaseException) -> bool:
    """Tell whether an exception says nothing of how the run ends, such as a lost lock: run it again."""
    if isinstance(error, BaseExceptionGroup):
        return any(map(keeps_from_going_on, error.exceptions))
    return isinstance(error, DurableError) and not isinstance(error, StepFailed)


def is_failed_step(error: BaseException, run_id: str) -> bool:
    """Tell whether an exception is the failure of a step of the run, or a group of nothing else."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_failed_step(each, run_id) for each in error.exceptions)
    return isinstance(error, StepFailed) and error.run_id == run_id


def failed_steps(error: BaseException, run_id: str) -> list[StepFailed]:
    """Return the failures of the run's steps that left its flow: alone, in groups, or behind what they led to."""
    found: dict[str, StepFailed] = {}
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        each = waiting.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, StepFailed) and is_failed_step(each, run_id):
            found.setdefault(each.step_id, each)
            continue
        if isinstance(each, BaseExceptionGroup):
            waiting.extend(each.exceptions)
        waiting.extend(behind for behind in (each.__cause__, each.__context__) if behind is not None)
    return [*found.values()]
