"""Effects: what the core wants done. `after` is the sequence number of the record that must be durable before; 0 waits for none.

An acknowledgement waits for what it acknowledges, an at-most-once assignment for its token; an ordinary assignment leaves at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from antfarm.errors import AntFarmError
from antfarm.model import Failure, SessionId, VerdictCode
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
    app_failures: int = 0
    """Retries that the task has used."""


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


class ParentEnd(NamedTuple):
    """A task from up-stream that has ended here."""

    token: HeldToken
    local: int
    """Index of the task here whose end is its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportParents:
    """Tasks from up-stream have ended here, as the record `seq` says: report them until a final verdict comes."""

    seq: int
    ends: Sequence[ParentEnd]
    after: int
    took_ns: int | None = None
    """How long the parent was bound, where it had jobs of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseParents:
    """Tasks from up-stream are given back to it, at no cost."""

    tokens: Sequence[HeldToken]
    never_started: bool
    after: int
    app_failures: Mapping[HeldToken, int]
    """Retries that were used here, of those that have used some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailParent:
    """A task from up-stream has failed here, and no record says so."""

    token: HeldToken
    failure: Failure
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
    | ReportParents
    | ReleaseParents
    | FailParent
    | Audit
)
