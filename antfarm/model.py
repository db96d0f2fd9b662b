"""Values that the whole farm speaks about: tasks, jobs, outcomes, failures.

Pure: no I/O, no clock, no protobuf, so that the deciding cores may use it. The numbers of the enumerations equal those of
the protocol, which lets adapters pass them through; `antfarm.wire` holds the rest of the translation.

Payloads and results are bytes and stay bytes here: only `antfarm.payload` knows what is in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NewType

WorkerId = NewType("WorkerId", str)
"""Stable name of a worker, from its credential or its state directory."""
JobId = NewType("JobId", str)
"""Name of a job, unique in its orchestrator."""
SessionId = NewType("SessionId", str)
"""One attached pair of Work Queue and Report Queue streams."""

PAYLOAD_BYTES_MAX = 64 * 1024
"""Inline payloads and results; larger values travel by reference."""
MESSAGE_BYTES_MAX = 4 * 1024 * 1024
"""One gRPC message, both ways."""
BATCH_BYTES_MAX = 1024 * 1024
"""What a sender packs into one frame of many payloads or results; far enough below the message limit."""
SMALL_BLOB_BYTES_MAX = 1024 * 1024
"""Content of a blob that travels in one message with others; what is larger goes by a stream, in pieces."""
BLOBS_TOGETHER_MAX = 64
"""Small blobs in one call to Storage."""
BYTES_TOGETHER_MAX = 2 * 1024 * 1024
"""Their content: both sides hold all of it in memory."""
ERROR_TEXT_BYTES_MAX = 16 * 1024
LOG_TAIL_BYTES_MAX = 64 * 1024
KEY_BYTES_MAX = 512
PROTOCOL_MAJOR = 1
PROTOCOL_MINOR = 2
COLUMNS_MINOR = 1
"""Minor version from which on assignments and outcomes may travel as columns."""
CONVERSE_MINOR = 2
"""Minor version from which on an orchestrator answers Converse."""
PRIORITY_MAX = 10

SECOND_NS = 1_000_000_000
DURATION_NS_MAX = 100 * 365 * 86_400 * SECOND_NS
"""A hundred years, the longest duration that counts: a sum of two still fits into 63 bits, which the journal relies on."""


class TaskState(IntEnum):
    """Where a task stands. The last five are terminal and never change."""

    WAITING = 1
    QUEUED = 2
    ACTIVE = 3
    SUCCEEDED = 4
    FAILED = 5
    DEAD_LETTER = 6
    CANCELLED = 7
    EXPIRED = 8

    @property
    def terminal(self) -> bool:
        """True when the task has ended."""
        return self >= TaskState.SUCCEEDED


class JobState(IntEnum):
    """Where a job stands; derived from its tasks."""

    OPEN = 1
    RUNNING = 2
    SUCCEEDED = 3
    FAILED = 4
    CANCELLED = 5

    @property
    def terminal(self) -> bool:
        """True when the job has ended."""
        return self >= JobState.SUCCEEDED


class FailureClass(IntEnum):
    """Why something did not succeed; decides which budget it counts on."""

    PERMANENT = 1
    APP = 2
    CRASH = 3
    INFRA = 4
    BENIGN = 5
    DEPENDENCY = 6
    CANCELLED = 7
    EXPIRED = 8


PROCESS_LOST_KIND = "process lost"
"""Kind of a failure of class INFRA: the process that ran the attempt died, and others ran in it too. Each of them is a suspect."""


class Ending(IntEnum):
    """How a worker says that an attempt ended."""

    SUCCEEDED = 1
    FAILED = 2
    TIMED_OUT = 3
    RELEASED = 4
    REVOKED = 5


class VerdictCode(IntEnum):
    """What became of a report. The first five are final: the worker forgets the report."""

    ACCEPTED = 1
    DUPLICATE = 2
    SUPERSEDED = 3
    FENCED = 4
    UNKNOWN_TASK = 5
    NOT_OWNER = 6
    RETRY = 7

    @property
    def final(self) -> bool:
        """True when the worker may forget the report."""
        return self <= VerdictCode.UNKNOWN_TASK


class DependencyKind(IntEnum):
    """Which tasks of the other job a dependency means."""

    EACH = 1
    ALL = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobRef:
    """An object in Storage together with what it must contain: its size and its SHA-256."""

    key: str
    size_bytes: int
    sha256: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What went wrong: fields for programs, words for people."""

    failure_class: FailureClass
    kind: str = ""
    message: str = ""
    traceback: str = ""
    log_tail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Retries after application failures. Pauses double from the initial one and are drawn from [0, pause]."""

    max_attempts: int = 1
    backoff_initial_ns: int = SECOND_NS
    backoff_max_ns: int = 60 * SECOND_NS


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Limits in nanoseconds; None means no limit. See the protocol's Timeouts for who keeps which."""

    run_ns: int | None = None
    progress_ns: int | None = None
    queue_ns: int | None = None
    total_ns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConcurrencyLimit:
    """At most `max_active` assigned attempts under one name, over all jobs and workers of an orchestrator."""

    name: str
    max_active: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTemplate:
    """What all tasks of a job have in common. Fields as in the protocol's TaskTemplate."""

    type: str
    version: str = ""
    retry: RetryPolicy = RetryPolicy()
    timeouts: Timeouts = Timeouts()
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    limit: ConcurrencyLimit | None = None
    at_most_once: bool = False
    fence_late_results: bool = False
    idempotent: bool = False
    common_payload: bytes = b""
    traceparent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependency:
    """Tasks that wait for tasks of another job: EACH, task i for task i + offset; ALL, each for the whole job."""

    job_id: JobId
    kind: DependencyKind
    offset: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """What a client says about a job once."""

    template: TaskTemplate
    name: str = ""
    priority: int = 0
    dependencies: tuple[Dependency, ...] = ()
    max_failures: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """The recorded outcome of one task: of one whole attempt, or of none where none was involved (attempt 0)."""

    index: int
    state: TaskState
    attempt: int = 0
    result: bytes = b""
    outputs: tuple[BlobRef, ...] = ()
    failure: Failure | None = None
    worker_id: str = ""
    run_us: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """A job as it stands. Durations in seconds; `duration_s` is None until it has ended."""

    job_id: JobId
    spec: JobSpec
    state: JobState
    paused: bool = False
    task_count: int = 0
    counts: Mapping[TaskState, int] = field(default_factory=dict)
    retried_count: int = 0
    age_s: float = 0.0
    duration_s: float | None = None
    retry_of: str = ""
    cause: str = ""
    type_paused: str = ""
    """Why the orchestrator gives out no tasks of its type, and when the next is tried; empty when it does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that explains how a task or a job stands; each field is one safe line. `why` and `help` may be empty."""

    what: str
    why: str = ""
    help: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """How a task or a job stands, in words: `str(explanation)` for people."""

    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        return "\n".join(
            f"{mark}{text}"
            for finding in self.findings
            for mark, text in (("", finding.what), ("    why:  ", finding.why), ("    help: ", finding.help))
            if text
        )
