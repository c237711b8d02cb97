"""Durable execution for Python, on the store you already run."""

from ._waiting.approval import Decision
from .clock import Clock, SystemClock
from .context import StepContext, current_step
from .errors import (
    AlreadyDecided,
    ChildStopped,
    CopyConflict,
    CorruptLog,
    DeadlinePassed,
    DurableError,
    LockLost,
    NestedStep,
    NotFound,
    Refused,
    ResultNotRecorded,
    RunBusy,
    RunCancelled,
    RunSuspended,
    SomeFailed,
    StepDrift,
    StepFailed,
    StepInterrupted,
    StepReused,
    StoreError,
    UnrecordableValue,
    Withdrawn,
)
from .events import OnEvent, StepEvent
from .flow import Flow, flow
from .options import Delay, FlowOptions, Recovered, RetryOn, RunnerOptions, StepOptions, exponential
from .record import StepError, StepRecord
from .runner import Runner
from .store import (
    Holder,
    Lease,
    OpenableStore,
    Store,
    StoreTransaction,
    SupportsConnection,
    SupportsHolder,
    SupportsLock,
    SupportsPolling,
    SupportsRuns,
    SupportsScan,
    SupportsTransaction,
)
from .stores.batcher import Batcher
from .stores.lines import RecordLines
from .stores.memory import MemoryStore
from .stores.opening import open_store
from .stores.urls import StoreURL

__all__ = [
    "AlreadyDecided",
    "Batcher",
    "ChildStopped",
    "Clock",
    "CopyConflict",
    "CorruptLog",
    "DeadlinePassed",
    "Decision",
    "Delay",
    "DurableError",
    "Flow",
    "FlowOptions",
    "Holder",
    "Lease",
    "LockLost",
    "MemoryStore",
    "NestedStep",
    "NotFound",
    "OnEvent",
    "OpenableStore",
    "RecordLines",
    "Recovered",
    "Refused",
    "ResultNotRecorded",
    "RetryOn",
    "RunBusy",
    "RunCancelled",
    "RunSuspended",
    "Runner",
    "RunnerOptions",
    "SomeFailed",
    "StepContext",
    "StepDrift",
    "StepError",
    "StepEvent",
    "StepFailed",
    "StepInterrupted",
    "StepOptions",
    "StepRecord",
    "StepReused",
    "Store",
    "StoreError",
    "StoreTransaction",
    "StoreURL",
    "SupportsConnection",
    "SupportsHolder",
    "SupportsLock",
    "SupportsPolling",
    "SupportsRuns",
    "SupportsScan",
    "SupportsTransaction",
    "SystemClock",
    "UnrecordableValue",
    "Withdrawn",
    "current_step",
    "exponential",
    "flow",
    "open_store",
]
