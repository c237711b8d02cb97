"""What the table of a run's entries says, as a program: which entries each act appends, and how the run stands after it.

It shares no code with the library. A run does what its program lists; each step of it has a chain of statuses.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

What = Literal["step", "once", "sleep", "approval", "event"]


class Part(NamedTuple):
    """One thing that a run does: calls a function, or waits."""

    what: What
    step: str
    seconds: float
    """How long it sleeps, or until when somebody has to decide; 0 for ever."""


class Died(Exception):
    """The process was killed."""


class Failed(Exception):
    """A step failed, or a wait."""


class Suspended(Exception):
    """The run waits for somebody or for a time."""


class Interrupted(Exception):
    """A step that may happen once has begun, and nobody knows what came of it."""


class Cancelled(Exception):
    """The flow was told that its run was cancelled."""


class Refusal(Exception):
    """An act that changes nothing but what it names."""


class Run:
    """A run as the table has it."""

    def __init__(self, program: list[Part]) -> None:
        self.program = program
        self.chains: dict[str, list[str]] = {}
        """The statuses of each step's entries, in the order in which the steps began."""
        self.until: dict[str, float] = {}
        self.value: dict[str, str] = {}
        """What was decided, or sent."""
        self.effects: dict[str, int] = {}
        self.broken: set[str] = set()
        """Steps whose functions raise."""
        self.now = 0.0
        self.resolved: set[str] = set()
        """Steps whose outcome was set by hand."""
        self.is_cancelled = self.is_parked = self.ends_cancelled = False
        self.stopped_by = ""
        """The step that the run failed by last, or is parked by."""
        self._appends_left: int | None = None
        self._is_last_recorded = False

    def newest(self, step: str) -> str:
        return self.chains[step][-1] if step in self.chains else ""

    def append(self, step: str, status: str) -> None:
        if self._appends_left == 1:
            self._appends_left = None
            if self._is_last_recorded:
                self.chains.setdefault(step, []).append(status)
            raise Died
        if self._appends_left is not None:
            self._appends_left -= 1
        self.chains.setdefault(step, []).append(status)

    @property
    def status(self) -> str:
        newest = self.newest("$flow")
        if newest == "success":
            return "succeeded"
        if newest == "failure":
            return "cancelled" if self.ends_cancelled else "failed"
        if newest == "waiting" and self.is_parked:
            return "parked"
        if self.is_cancelled:
            return "cancelling"
        return "interrupted" if newest == "started" else "waiting"

    # What a process does that drives the run.

    def drive(self, kill_at: int = 0, *, is_recorded: bool = False) -> None:
        """Drive it until it ends, waits or dies: at the append with number `kill_at`, recorded or not."""
        self._appends_left, self._is_last_recorded = kill_at or None, is_recorded
        try:
            if self.newest("$flow") in ("success", "failure"):
                return
            self.append("$flow", "started")
            try:
                for part in self.program:
                    self._do(part)
            except Failed:
                self.ends_cancelled = False
                self.append("$flow", "failure")
            except Suspended:
                self.is_parked = False
                self.append("$flow", "waiting")
            except Interrupted:
                self.is_parked = True
                self.append("$flow", "waiting")
            except Cancelled:
                self.ends_cancelled = True
                self.append("$flow", "failure")
            else:
                self.append("$flow", "success")
        except Died:
            pass
        finally:
            self._appends_left = None

    def _do(self, part: Part) -> None:
        newest = self.newest(part.step)
        if newest == "success":
            return
        if newest == "failure":
            self.stopped_by = part.step
            raise Failed
        if self.is_cancelled:
            raise Cancelled
        if part.what in ("step", "once"):
            self._call(part, newest)
        else:
            self._wait(part, newest)

    def _call(self, part: Part, newest: str) -> None:
        if part.what == "once":
            if newest == "started":
                self.stopped_by = part.step
                raise Interrupted
            self.append(part.step, "started")
        self.effects[part.step] = self.effects.get(part.step, 0) + 1
        if part.step in self.broken:
            self.stopped_by = part.step
            self.append(part.step, "failure")
            raise Failed
        self.append(part.step, "success")

    def _wait(self, part: Part, newest: str) -> None:
        if newest != "waiting":
            if part.seconds:
                self.until[part.step] = self.now + part.seconds
            self.append(part.step, "waiting")
        if not self._is_over(part.step):
            raise Suspended
        self.append(part.step, "success" if part.what == "sleep" else "failure")
        if part.what != "sleep":
            self.stopped_by = part.step
            raise Failed

    def _is_over(self, step: str) -> bool:
        return step in self.until and self.until[step] <= self.now

    # What others do.

    def start(self) -> None:
        if not self.newest("$flow"):
            self.append("$flow", "waiting")

    def decide(self, step: str, value: str, *, is_event: bool) -> None:
        """Approve or reject, send, or send a failure, whose value is `failure`."""
        newest = self.newest(step)
        status = "failure" if value == "failure" else "success"
        if newest in ("success", "failure"):
            if self.value.get(step) != value:
                raise Refusal
        elif newest in ("", "reopened") and not is_event:
            raise Refusal
        elif newest == "waiting" and self._is_over(step):
            self.append(step, "failure")
            raise Refusal
        else:
            self.append(step, status)
            self.value[step] = value

    def cancel(self) -> None:
        if self.newest("$flow") in ("success", "failure"):
            raise Refusal
        if self.is_cancelled:
            return
        self.is_cancelled = True
        if self.chains["$flow"] == ["waiting"]:
            self.ends_cancelled = True
            self.append("$flow", "failure")
        else:
            self.append("$flow", "reopened")

    def retry(self) -> None:
        """Let a run go on that failed, died or is parked, with the step that stopped it."""
        if self.status not in ("failed", "interrupted", "parked"):
            if self.status == "waiting" and self.newest("$flow") == "reopened":
                return
            raise Refusal
        if self.status != "interrupted" and self.newest(self.stopped_by) in ("failure", "started"):
            self._reopen(self.stopped_by)
        self.append("$flow", "reopened")

    def retry_step(self, step: str) -> None:
        newest = self.newest(step)
        if newest not in ("failure", "started", "reopened") or self.status == "cancelled":
            raise Refusal
        if newest != "reopened":
            self._reopen(step)
        self._goes_on(step, is_changed=newest != "reopened")

    def resolve(self, step: str) -> None:
        newest = self.newest(step)
        if (newest not in ("failure", "started") and step not in self.resolved) or self.status == "cancelled":
            raise Refusal
        if newest != "success":
            self.append(step, "success")
            self.resolved.add(step)
        self._goes_on(step, is_changed=newest != "success")

    def _reopen(self, step: str) -> None:
        self.append(step, "reopened")
        self.value.pop(step, None)

    def _goes_on(self, step: str, *, is_changed: bool) -> None:
        """Let the run go on that a mended step had stopped."""
        if self.status == "failed" or (self.status == "parked" and self.stopped_by == step):
            self.append("$flow", "reopened")
        elif not is_changed:
            raise Refusal

    def fork(self, before: str) -> None:
        """Become the fork: what was decided of the steps that began before one of them."""
        if before not in self.chains:
            raise Refusal
        order = [step for step in self.chains if step != "$flow"]
        kept = [step for step in order[: order.index(before)] if self.newest(step) in ("success", "failure")]
        self.chains = {step: self.chains[step] for step in kept}
        self.append("$flow", "waiting")
        self.is_cancelled = self.is_parked = self.ends_cancelled = False
