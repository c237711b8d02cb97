"""What a failure is made of: the steps that failed behind the entry of a race or of a map."""

from __future__ import annotations

from collections.abc import Sequence

from durable_core.errors import Withdrawn
from durable_core.record import StepRecord


def failed_parts(record: StepRecord) -> Sequence[str]:
    """Return the ids of the steps by which a race or a map failed; none for anything else, which failed by itself."""
    failed = record.notes.get("failed")
    if record.status != "failure" or record.kind not in ("first", "map") or not isinstance(failed, list):
        return ()
    names = [name for name in failed if isinstance(name, str)]
    return names if record.kind == "first" else [f"{record.step_id}/{key}" for key in names]


def is_withdrawn(record: StepRecord) -> bool:
    """Tell whether a wait ended because another contender of its race had won."""
    return record.status == "failure" and record.error is not None and record.error.matches(Withdrawn)
