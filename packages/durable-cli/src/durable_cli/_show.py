"""One run: its state, the timeline of its steps, and one step in full."""

from __future__ import annotations

import msgspec

from durable_core import Store, control

from ._asked import Asked
from ._output import console, draw, record_json, write_json
from ._steps import Step, Steps


async def show(store: Store, asked: Asked, run_id: str, *, all_steps: bool) -> None:
    """Show a run's state and its steps."""
    entries = await store.list(run_id)
    run = await control.status(store, run_id, entries=entries)
    steps = Steps(entries)
    if asked.as_json:
        write_json({**msgspec.structs.asdict(run), "timeline": [step.as_json() for step in steps.all()]})
        return
    from ._timeline import drawn

    screen = console()
    draw(drawn(run, steps, asked, screen.width, all_steps=all_steps), screen)


async def show_step(store: Store, asked: Asked, run_id: str, step_id: str) -> None:
    """Show one step in full."""
    entries = await store.list(run_id)
    run = await control.status(store, run_id, entries=entries)
    chain = Steps(entries).one(run_id, step_id)
    step = Step(chain[0], chain[-1], len(chain))
    if asked.as_json:
        write_json({**step.as_json(), "entries": [record_json(record) for record in chain]})
        return
    from ._timeline import in_full

    screen = console()
    draw(in_full(run, step, chain), screen)
