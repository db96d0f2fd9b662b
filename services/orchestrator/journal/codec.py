"""Records as bytes: msgpack of plain lists, a number for the kind.

Fields are only added at the end of a list, and readers fill in what an older writer left out, so that journals stay readable. Many
payloads or outcomes are one list, because packing one large value costs a fraction of packing many small ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack

from antfarm.model import (
    BlobRef,
    ConcurrencyLimit,
    Dependency,
    DependencyKind,
    Failure,
    FailureClass,
    JobId,
    JobSpec,
    RetryPolicy,
    TaskState,
    TaskTemplate,
    Timeouts,
    WorkerId,
)
from services.orchestrator.core import records as r

Plain = list[Any]


def _failure_out(failure: Failure | None) -> Plain | None:
    if failure is None:
        return None
    return [int(failure.failure_class), failure.kind, failure.message, failure.traceback, failure.log_tail]


def _failure_in(plain: Plain | None) -> Failure | None:
    if plain is None:
        return None
    return Failure(
        failure_class=FailureClass(plain[0]), kind=plain[1], message=plain[2], traceback=plain[3], log_tail=plain[4]
    )


def _template_out(t: TaskTemplate) -> Plain:
    return [
        t.type,
        t.version,
        [t.retry.max_attempts, t.retry.backoff_initial_ns, t.retry.backoff_max_ns],
        [t.timeouts.run_ns, t.timeouts.progress_ns, t.timeouts.queue_ns, t.timeouts.total_ns],
        dict(t.resources),
        dict(t.labels),
        None if t.limit is None else [t.limit.name, t.limit.max_active],
        t.at_most_once,
        t.fence_late_results,
        t.idempotent,
        t.common_payload,
        t.traceparent,
    ]


def _template_in(p: Plain) -> TaskTemplate:
    return TaskTemplate(
        type=p[0],
        version=p[1],
        retry=RetryPolicy(max_attempts=p[2][0], backoff_initial_ns=p[2][1], backoff_max_ns=p[2][2]),
        timeouts=Timeouts(run_ns=p[3][0], progress_ns=p[3][1], queue_ns=p[3][2], total_ns=p[3][3]),
        resources=p[4],
        labels=p[5],
        limit=None if p[6] is None else ConcurrencyLimit(name=p[6][0], max_active=p[6][1]),
        at_most_once=p[7],
        fence_late_results=p[8],
        idempotent=p[9],
        common_payload=p[10],
        traceparent=p[11],
    )


def _spec_out(s: JobSpec) -> Plain:
    dependencies = [[d.job_id, int(d.kind), d.offset] for d in s.dependencies]
    return [_template_out(s.template), s.name, s.priority, dependencies, s.max_failures, dict(s.labels)]


def _spec_in(p: Plain) -> JobSpec:
    return JobSpec(
        template=_template_in(p[0]),
        name=p[1],
        priority=p[2],
        dependencies=tuple(Dependency(job_id=JobId(d[0]), kind=DependencyKind(d[1]), offset=d[2]) for d in p[3]),
        max_failures=p[4],
        labels=p[5],
    )


def _ended_out(e: r.EndedTask) -> Plain:
    if e.failure is None and not e.outputs:
        return [e.index, int(e.state), e.epoch, e.attempt, e.run_us, e.result]
    outputs = [[b.key, b.size_bytes, b.sha256] for b in e.outputs]
    return [e.index, int(e.state), e.epoch, e.attempt, e.run_us, e.result, outputs, _failure_out(e.failure)]


def _ended_in(p: Plain) -> r.EndedTask:
    ended = r.EndedTask(index=p[0], state=TaskState(p[1]), epoch=p[2], attempt=p[3], run_us=p[4], result=p[5])
    if len(p) > 6:
        ended.outputs = tuple(BlobRef(key=b[0], size_bytes=b[1], sha256=b[2]) for b in p[6])
        ended.failure = _failure_in(p[7])
    return ended


_Out = Callable[[Any], Plain]
_In = Callable[[Plain], r.Record]

_KINDS: list[tuple[int, type[Any], _Out, _In]] = [
    (
        1,
        r.EpochStarted,
        lambda x: [x.epoch, x.wall_ns, x.history_gap],
        lambda p: r.EpochStarted(epoch=p[0], wall_ns=p[1], history_gap=p[2]),
    ),
    (
        2,
        r.JobCreated,
        lambda x: [x.job, x.job_id, _spec_out(x.spec), x.wall_ns, x.retry_of],
        lambda p: r.JobCreated(job=p[0], job_id=JobId(p[1]), spec=_spec_in(p[2]), wall_ns=p[3], retry_of=p[4]),
    ),
    (
        3,
        r.TasksAdded,
        lambda x: [x.job, x.first_index, list(x.payloads), x.wall_ns],
        lambda p: r.TasksAdded(job=p[0], first_index=p[1], payloads=p[2], wall_ns=p[3]),
    ),
    (4, r.JobClosed, lambda x: [x.job], lambda p: r.JobClosed(job=p[0])),
    (5, r.JobPaused, lambda x: [x.job, x.paused], lambda p: r.JobPaused(job=p[0], paused=p[1])),
    (
        6,
        r.TasksEnded,
        lambda x: [x.job, x.worker_id, [_ended_out(e) for e in x.ended]],
        lambda p: r.TasksEnded(job=p[0], worker_id=p[1], ended=[_ended_in(e) for e in p[2]]),
    ),
    (
        7,
        r.AttemptFailed,
        lambda x: [
            x.job, x.index, x.epoch, x.attempt, x.worker_id, _failure_out(x.failure), x.app_failures, x.crashes, x.infra_failures,
            x.lost,
        ],
        lambda p: r.AttemptFailed(
            job=p[0], index=p[1], epoch=p[2], attempt=p[3], worker_id=p[4], failure=_failure_in(p[5]),  # type: ignore[arg-type]
            app_failures=p[6], crashes=p[7], infra_failures=p[8], lost=p[9],
        ),
    ),
    (
        8,
        r.AttemptIssued,
        lambda x: [x.job, x.index, x.epoch, x.attempt, x.worker_id],
        lambda p: r.AttemptIssued(job=p[0], index=p[1], epoch=p[2], attempt=p[3], worker_id=p[4]),
    ),
    (9, r.AttemptReturned, lambda x: [x.job, x.index], lambda p: r.AttemptReturned(job=p[0], index=p[1])),
    (10, r.JobCancelled, lambda x: [x.job, x.cause], lambda p: r.JobCancelled(job=p[0], cause=p[1])),
    (11, r.JobEnded, lambda x: [x.job, x.wall_ns], lambda p: r.JobEnded(job=p[0], wall_ns=p[1])),
    (12, r.JobPurged, lambda x: [x.job], lambda p: r.JobPurged(job=p[0])),
    (
        13,
        r.WorkerSeen,
        lambda x: [x.worker_id, x.orchestrator],
        lambda p: r.WorkerSeen(worker_id=WorkerId(p[0]), orchestrator=p[1]),
    ),
    (14, r.WorkerLeft, lambda x: [x.worker_id], lambda p: r.WorkerLeft(worker_id=WorkerId(p[0]))),
    (
        15,
        r.ParentBound,
        lambda x: [x.job_id, x.index, x.epoch, x.attempt, _template_out(x.template), x.payload],
        lambda p: r.ParentBound(
            job_id=p[0], index=p[1], epoch=p[2], attempt=p[3], template=_template_in(p[4]), payload=p[5]
        ),
    ),
    (16, r.ParentDone, lambda x: [x.job_id, x.index], lambda p: r.ParentDone(job_id=p[0], index=p[1])),
]  # fmt: skip

_OUT = {cls: (number, out) for number, cls, out, _ in _KINDS}
_IN = {number: inward for number, _, _, inward in _KINDS}


def encode(record: r.Record) -> tuple[int, bytes]:
    """(kind, body) of a record."""
    number, out = _OUT[type(record)]
    return number, msgpack.packb(out(record))


def decode(kind: int, body: bytes) -> r.Record:
    """The record of a kind and body. ValueError when it is of a kind that this version does not know, or no record at all."""
    inward = _IN.get(kind)
    if inward is None:
        raise ValueError(f"record kind {kind} is unknown to this version")
    try:
        return inward(msgpack.unpackb(body, strict_map_key=False))
    except (TypeError, IndexError, KeyError, msgpack.UnpackException, msgpack.ExtraData) as error:
        raise ValueError(f"record of kind {kind} cannot be read: {error}") from None


def job_of(record: r.Record) -> int:
    """Number of the job that a record belongs to and is purged with; 0 for none."""
    return 0 if isinstance(record, r.JobPurged) else getattr(record, "job", 0)
