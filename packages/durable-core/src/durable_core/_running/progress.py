"""Publishing progress: each call adds an entry, which others follow."""

from __future__ import annotations

from durable_core._log.news import news_of, published
from durable_core._system.ids import check_own_id
from durable_core._values.returns import record_any

from .call import use_id
from .run import Run


async def publish(run: Run, step_id: str, value: object) -> None:
    """Append the value as the next entry of the id, unless an earlier run appended the entry of this call."""
    step_id = check_own_id("step_id", step_id)
    use_id(run, step_id, "published")
    result = record_any(value, f"what is published as {step_id!r}")
    await run.ready()
    async with run.publishing:
        number = run.published.get(step_id, 0)
        latest = run.log.latest(step_id)
        if latest is not None:
            run.check_kind(latest, "published")
        if latest is None or latest.revision < number:
            run.lock.check()
            await run.log.claim(run.entry(step_id, latest, kind="published", result=result))
            news_of(published(run.id)).wake()
        run.published[step_id] = number + 1
