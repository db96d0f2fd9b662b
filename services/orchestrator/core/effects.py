"""Effects: what the core wants done. `after` is the sequence number of the record that must be durable before; 0 waits for none.

An acknowledgement waits for what it acknowledges, an at-most-once assignment for its token; an ordinary assignment leaves at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from antfarm.errors import AntFarmError
from antfarm.model import Failure, SessionId, TaskState, TaskTemplate, VerdictCode
from services.orchestrator.core.events import HeldToken


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """Answers a request. `error` is raised to the caller instead of an answer; what is answered the servicer reads from the views."""

    request: int
    after: int
    existed: bool = False
    error: AntFarmError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """Accepts a worker's session."""

    session: SessionId
    after: int
    epoch: int
    lease_ns: int
    heartbeat_ns: int
    revoked: Sequence[HeldToken]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """Ends a session with an error."""

    session: SessionId
    error: AntFarmError
    after: int = 0


@dataclass(slots=True, kw_only=True)
class AssignedTask:
    """One assignment of a group. Not frozen: made on the hot path."""

    index: int
    attempt: int
    payload: bytes
    remaining_ns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SendTasks:
    """One Tasks frame: per job, its number and its assignments. Frames are counted, so each effect is exactly one frame."""

    session: SessionId
    after: int
    epoch: int
    groups: Sequence[tuple[int, Sequence[AssignedTask]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SendRevoke:
    """Attempts that a worker should stop."""

    session: SessionId
    after: int
    tokens: Sequence[HeldToken]
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SendDrain:
    """Asks a worker to drain."""

    session: SessionId
    limit_ns: int
    after: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AckHeartbeat:
    """Answers a heartbeat."""

    session: SessionId
    number: int
    revoked: Sequence[HeldToken]
    after: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SendVerdicts:
    """Verdicts on reports of one session."""

    session: SessionId
    after: int
    code: VerdictCode
    report_nos: Sequence[int]
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPlan:
    """The plan of a parent's task has succeeded: read its result and come back with ParentExpanded."""

    parent: tuple[str, int]
    result_seq: int
    job: int
    after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportParent:
    """A parent's task has ended here: report it up-stream until a final verdict comes.

    `result_of` names the local task (job number, index, record) whose result is the parent's; None with a failure.
    """

    parent: tuple[str, int]
    epoch: int
    attempt: int
    after: int
    state: TaskState
    failure: Failure | None = None
    result_of: tuple[int, int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StartParent:
    """A parent's token is bound durably: tell up-stream that it has started."""

    parent: tuple[str, int]
    epoch: int
    attempt: int
    template: TaskTemplate
    after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """Something that an operator should be able to find in the log: ids only."""

    text: str
    after: int = 0


Effect = (
    Reply
    | Welcome
    | Refuse
    | SendTasks
    | SendRevoke
    | SendDrain
    | AckHeartbeat
    | SendVerdicts
    | ReadPlan
    | ReportParent
    | StartParent
    | Audit
)
