"""Records as bytes: msgpack of plain lists, a number for the kind.

Fields are only added at the end of a list. What an older writer left out gets its default, and what a newer one added is passed over, so that
journals stay readable both ways. Many payloads or outcomes are one list, because packing one large value costs a fraction of packing many small
ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgpack

from antfarm.model import (
    BlobRef,
    ConcurrencyLimit,
    Dependency,
    DependencyKind,
    Failure,
    FailureClass,
    JobSpec,
    RetryPolicy,
    TaskState,
    TaskTemplate,
    Timeouts,
)
from services.orchestrator.core import records as r

T = TypeVar("T")
Plain = list[Any]
_Translation = tuple[Callable[[Any], Any], Callable[[Any], Any]]
"""(value -> plain, plain -> value) of a field that msgpack does not know."""


class _Form(Generic[T]):
    """How a value lies in a list: its fields in the order in which they came to be."""

    def __init__(self, cls: type[T], names: str, **translated: _Translation) -> None:
        self._cls = cls
        self._names = tuple(names.split())
        self._out = [(self._names.index(name), out) for name, (out, _) in translated.items()]
        self._in = [(name, inward) for name, (_, inward) in translated.items()]

    def out(self, value: T) -> Plain:
        """The list of a value."""
        plain = [getattr(value, name) for name in self._names]
        for place, out in self._out:
            plain[place] = out(plain[place])
        return plain

    def read(self, plain: Plain) -> T:
        """The value of a list that may be longer or shorter than ours. TypeError when a field without a default is missing."""
        fields = dict(zip(self._names, plain, strict=False))
        for name, inward in self._in:
            if name in fields:
                fields[name] = inward(fields[name])
        return self._cls(**fields)

    @property
    def one(self) -> _Translation:
        """For a field that holds such a value."""
        return self.out, self.read

    @property
    def optional(self) -> _Translation:
        """For a field that holds such a value or None."""
        return (
            lambda value: None if value is None else self.out(value),
            lambda plain: None if plain is None else self.read(plain),
        )

    @property
    def many(self) -> _Translation:
        """For a field that holds a tuple of such values."""
        return lambda values: [self.out(value) for value in values], lambda plain: tuple(map(self.read, plain))


_MAPPING: _Translation = (dict, dict)

_BLOB = _Form(BlobRef, "key size_bytes sha256")
_FAILURE = _Form(Failure, "failure_class kind message traceback log_tail", failure_class=(int, FailureClass))
_DEPENDENCY = _Form(Dependency, "job_id kind offset", kind=(int, DependencyKind))
_TEMPLATE = _Form(
    TaskTemplate,
    "type version retry timeouts resources labels limit at_most_once fence_late_results idempotent common_payload traceparent",
    retry=_Form(RetryPolicy, "max_attempts backoff_initial_ns backoff_max_ns").one,
    timeouts=_Form(Timeouts, "run_ns progress_ns queue_ns total_ns").one,
    resources=_MAPPING,
    labels=_MAPPING,
    limit=_Form(ConcurrencyLimit, "name max_active").optional,
)
_SPEC = _Form(
    JobSpec,
    "template name priority dependencies max_failures labels",
    template=_TEMPLATE.one,
    dependencies=_DEPENDENCY.many,
    labels=_MAPPING,
)


def _ended_out(e: r.EndedTask) -> Plain:
    """By hand, because there is one for every task; a plain success is the shorter list."""
    if e.failure is None and not e.outputs:
        return [e.index, int(e.state), e.epoch, e.attempt, e.run_us, e.result]
    outputs = [_BLOB.out(blob) for blob in e.outputs]
    return [e.index, int(e.state), e.epoch, e.attempt, e.run_us, e.result, outputs, _FAILURE.optional[0](e.failure)]


_STATES = {int(state): state for state in TaskState}
"""Calling the enumeration would be half the time of a restart with many results."""


def _ended_in(p: Plain) -> r.EndedTask:
    ended = r.EndedTask(index=p[0], state=_STATES[p[1]], epoch=p[2], attempt=p[3], run_us=p[4], result=p[5])
    if len(p) > 6:
        ended.outputs = tuple(map(_BLOB.read, p[6]))
    if len(p) > 7:
        ended.failure = _FAILURE.optional[1](p[7])
    return ended


_ENDED: _Translation = (lambda ended: list(map(_ended_out, ended)), lambda plain: list(map(_ended_in, plain)))

_KINDS: dict[int, tuple[type[Any], _Form[Any]]] = {
    number: (cls, _Form(cls, names, **translated))
    for number, cls, names, translated in (
        (1, r.EpochStarted, "epoch wall_ns history_gap", {}),
        (2, r.JobCreated, "job job_id spec wall_ns retry_of", {"spec": _SPEC.one}),
        (3, r.TasksAdded, "job first_index payloads wall_ns", {"payloads": (list, list)}),
        (4, r.JobClosed, "job", {}),
        (5, r.JobPaused, "job paused", {}),
        (6, r.TasksEnded, "job worker_id ended", {"ended": _ENDED}),
        (
            7,
            r.AttemptFailed,
            "job index epoch attempt worker_id failure app_failures crashes infra_failures lost wall_ns pause_ns suspected",
            {"failure": _FAILURE.one},
        ),
        (8, r.AttemptIssued, "job index epoch attempt worker_id", {}),
        (9, r.AttemptReturned, "job index", {}),
        (10, r.JobCancelled, "job cause", {}),
        (11, r.JobEnded, "job wall_ns", {}),
        (12, r.JobPurged, "job", {}),
        (13, r.WorkerSeen, "worker_id orchestrator", {}),
        (14, r.WorkerLeft, "worker_id", {}),
        (15, r.ParentBound, "job_id index epoch attempt template payload wall_ns", {"template": _TEMPLATE.one}),
        (16, r.ParentDone, "job_id index", {}),
        (17, r.ParentsRelayed, "job local count job_id index epoch attempt", {}),
        (18, r.RelaysDone, "job job_id indices", {"indices": (list, list)}),
    )
}
"""Kind -> (class, form). A number is never used again."""

_NUMBERS = {cls: number for number, (cls, _) in _KINDS.items()}

ATTEMPT_KINDS = tuple(_NUMBERS[cls] for cls in (r.AttemptFailed, r.AttemptIssued, r.AttemptReturned))
"""Kinds of records that tell of one attempt while its task goes on."""


def encode(record: r.Record) -> tuple[int, bytes]:
    """(kind, body) of a record."""
    number = _NUMBERS[type(record)]
    return number, msgpack.packb(_KINDS[number][1].out(record))


def decode(kind: int, body: bytes) -> r.Record:
    """The record of a kind and body. ValueError when it is of a kind that this version does not know, or no record at all."""
    if kind not in _KINDS:
        raise ValueError(f"record kind {kind} is unknown to this version")
    try:
        record: r.Record = _KINDS[kind][1].read(msgpack.unpackb(body, strict_map_key=False))
    except (TypeError, ValueError, LookupError, msgpack.UnpackException) as error:
        raise ValueError(f"record of kind {kind} cannot be read: {error}") from None
    return record


def job_of(record: r.Record) -> int:
    """Number of the job that a record belongs to and is purged with; 0 for none."""
    return 0 if isinstance(record, r.JobPurged) else getattr(record, "job", 0)
