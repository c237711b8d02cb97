"""The views, one module for each page. A view collects the content; the template with its name draws it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from durable_web._door import View

from . import inbox, run, runs, step, work

PAGES: Final[Mapping[str, View]] = {
    "": inbox.view,
    "runs": runs.view,
    "run": run.view,
    "step": step.view,
    "work": work.view,
}
"""The pages by their paths."""
STREAMS: Final[Mapping[str, View]] = {"live/inbox": inbox.live, "live/run": run.live, "live/step": step.live}
"""The streams by their paths. They stay open and send changes."""
