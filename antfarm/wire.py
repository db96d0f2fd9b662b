"""Translation between the protocol's messages and `antfarm.model`, and between status codes and `antfarm.errors`.

Pure, both ways, and nothing else: no decision is taken here. Frames of the hot path (assignments, outcomes, verdicts) are read and
built in place by the adapters, because a value in between would cost more than the work on it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from enum import IntEnum
from itertools import repeat
from typing import Any, NamedTuple, Protocol, TypeVar

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from antfarm import errors, model
from antfarm.v1 import common_pb2, job_pb2, work_queue_pb2

DOMAIN = "antfarm"

_E = TypeVar("_E", bound=IntEnum)

# ---- durations ------------------------------------------------------------------------------------------------------


def duration_to_wire(ns: int) -> duration_pb2.Duration:
    """A Duration of `ns` nanoseconds; negative ones become 0."""
    seconds, nanos = divmod(max(ns, 0), model.SECOND_NS)
    return duration_pb2.Duration(seconds=seconds, nanos=nanos)


def duration_from_wire(message: duration_pb2.Duration) -> int:
    """Nanoseconds of a Duration; negative ones become 0, absurd ones a hundred years."""
    return min(max(message.seconds * model.SECOND_NS + message.nanos, 0), model.DURATION_NS_MAX)


def seconds_to_wire(seconds: float) -> duration_pb2.Duration:
    """A Duration of `seconds`."""
    return duration_to_wire(int(seconds * model.SECOND_NS))


# ---- values ---------------------------------------------------------------------------------------------------------


def blob_to_wire(blob: model.BlobRef) -> common_pb2.BlobRef:
    """Model to wire."""
    return common_pb2.BlobRef(key=blob.key, size_bytes=blob.size_bytes, sha256=blob.sha256)


def blob_from_wire(message: common_pb2.BlobRef) -> model.BlobRef:
    """Wire to model."""
    return model.BlobRef(key=message.key, size_bytes=message.size_bytes, sha256=message.sha256)


def failure_to_wire(failure: model.Failure) -> common_pb2.Failure:
    """Model to wire; the sender cut the texts to their limits before (`cut_failure`)."""
    return common_pb2.Failure(
        failure_class=failure.failure_class.value,  # type: ignore[arg-type]
        kind=failure.kind,
        message=failure.message,
        traceback=failure.traceback,
        log_tail=failure.log_tail,
    )


def failure_from_wire(message: common_pb2.Failure) -> model.Failure:
    """Wire to model, texts cut to their limits; a class that this side does not know counts as APP."""
    return cut_failure(
        model.Failure(
            failure_class=_enum(model.FailureClass, message.failure_class, model.FailureClass.APP),
            kind=message.kind,
            message=message.message,
            traceback=message.traceback,
            log_tail=message.log_tail,
        )
    )


def cut_failure(failure: model.Failure) -> model.Failure:
    """The failure with every text within its limit: messages keep their start, tracebacks both ends, logs their tail.

    Lone surrogates, which Python makes of file names that are not UTF-8, are written as escapes, because the wire refuses them.
    """
    limit = model.ERROR_TEXT_BYTES_MAX
    return model.Failure(
        failure_class=failure.failure_class,
        kind=_head(failure.kind, 256),
        message=_head(failure.message, limit),
        traceback=_both_ends(failure.traceback, limit),
        log_tail=_tail(failure.log_tail, model.LOG_TAIL_BYTES_MAX),
    )


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _head(text: str, limit: int) -> str:
    return _utf8(text)[:limit].decode("utf-8", "ignore")


def _tail(text: str, limit: int) -> str:
    return _utf8(text)[-limit:].decode("utf-8", "ignore")


def _both_ends(text: str, limit: int) -> str:
    raw = _utf8(text)
    if len(raw) <= limit:
        return raw.decode()
    half = limit // 2 - 16
    return f"{_head(text, half)}\n ...cut...\n{_tail(text, half)}"


def _enum(cls: type[_E], number: int, default: _E) -> _E:
    try:
        return cls(number)
    except ValueError:
        return default


def template_to_wire(template: model.TaskTemplate) -> common_pb2.TaskTemplate:
    """Model to wire."""
    message = common_pb2.TaskTemplate(
        type=template.type,
        version=template.version,
        retry=common_pb2.RetryPolicy(
            max_attempts=template.retry.max_attempts,
            backoff_initial=duration_to_wire(template.retry.backoff_initial_ns),
            backoff_max=duration_to_wire(template.retry.backoff_max_ns),
        ),
        resources=dict(template.resources),
        labels=dict(template.labels),
        at_most_once=template.at_most_once,
        fence_late_results=template.fence_late_results,
        idempotent=template.idempotent,
        common_payload=template.common_payload,
        traceparent=template.traceparent,
    )
    for name in ("run", "progress", "queue", "total"):
        ns = getattr(template.timeouts, f"{name}_ns")
        if ns is not None:
            getattr(message.timeouts, name).CopyFrom(duration_to_wire(ns))
    if template.limit is not None:
        message.limit.name, message.limit.max_active = template.limit.name, template.limit.max_active
    return message


def template_from_wire(message: common_pb2.TaskTemplate) -> model.TaskTemplate:
    """Wire to model; absent fields take their stated defaults."""
    timeouts = {
        f"{name}_ns": duration_from_wire(getattr(message.timeouts, name)) if message.timeouts.HasField(name) else None
        for name in ("run", "progress", "queue", "total")
    }
    retry = message.retry
    default = model.RetryPolicy()
    return model.TaskTemplate(
        type=message.type,
        version=message.version,
        retry=model.RetryPolicy(
            max_attempts=retry.max_attempts or default.max_attempts,
            backoff_initial_ns=duration_from_wire(retry.backoff_initial)
            if retry.HasField("backoff_initial")
            else default.backoff_initial_ns,
            backoff_max_ns=duration_from_wire(retry.backoff_max)
            if retry.HasField("backoff_max")
            else default.backoff_max_ns,
        ),
        timeouts=model.Timeouts(**timeouts),
        resources=dict(message.resources),
        labels=dict(message.labels),
        limit=model.ConcurrencyLimit(name=message.limit.name, max_active=message.limit.max_active)
        if message.HasField("limit")
        else None,
        at_most_once=message.at_most_once,
        fence_late_results=message.fence_late_results,
        idempotent=message.idempotent,
        common_payload=message.common_payload,
        traceparent=message.traceparent,
    )


def task_state_from_wire(number: int) -> model.TaskState:
    """Wire to model; how a task ended that this side does not know counts as FAILED."""
    return _enum(model.TaskState, number, model.TaskState.FAILED)


def dependency_to_wire(dependency: model.Dependency) -> common_pb2.Dependency:
    """Model to wire."""
    return common_pb2.Dependency(job_id=dependency.job_id, kind=dependency.kind.value, offset=dependency.offset)  # type: ignore[arg-type]


def dependency_from_wire(message: common_pb2.Dependency) -> model.Dependency:
    """Wire to model. InvalidArgument for a kind that this side does not know: guessing would run tasks too early."""
    try:
        kind = model.DependencyKind(message.kind)
    except ValueError:
        raise errors.InvalidArgument(f"dependency on {message.job_id}: kind {message.kind} is not supported") from None
    return model.Dependency(job_id=model.JobId(message.job_id), kind=kind, offset=message.offset)


def _dependency_told(message: common_pb2.Dependency) -> model.Dependency:
    """Of a job that is there: it keeps nobody from reading about it, and to wait for all of the other job is the most that it can mean."""
    kind = _enum(model.DependencyKind, message.kind, model.DependencyKind.ALL)
    return model.Dependency(job_id=model.JobId(message.job_id), kind=kind, offset=message.offset)


def spec_to_wire(spec: model.JobSpec) -> job_pb2.JobSpec:
    """Model to wire."""
    message = job_pb2.JobSpec(
        name=spec.name,
        template=template_to_wire(spec.template),
        priority=spec.priority,
        dependencies=[dependency_to_wire(d) for d in spec.dependencies],
        labels=dict(spec.labels),
    )
    if spec.max_failures is not None:
        message.max_failures = spec.max_failures
    return message


def spec_from_wire(
    message: job_pb2.JobSpec, read: Callable[[common_pb2.Dependency], model.Dependency] = dependency_from_wire
) -> model.JobSpec:
    """Wire to model, dependencies by `read`."""
    return model.JobSpec(
        name=message.name,
        template=template_from_wire(message.template),
        priority=message.priority,
        dependencies=tuple(read(d) for d in message.dependencies),
        max_failures=message.max_failures if message.HasField("max_failures") else None,
        labels=dict(message.labels),
    )


def status_to_wire(status: model.JobStatus) -> job_pb2.Job:
    """Model to wire."""
    message = job_pb2.Job(
        job_id=status.job_id,
        spec=spec_to_wire(status.spec),
        state=status.state.value,  # type: ignore[arg-type]
        paused=status.paused,
        task_count=status.task_count,
        counts=[job_pb2.StateCount(state=s.value, count=n) for s, n in status.counts.items() if n],  # type: ignore[arg-type]
        retried_count=status.retried_count,
        age=seconds_to_wire(status.age_s),
        retry_of=status.retry_of,
        cause=status.cause,
        type_paused=status.type_paused,
    )
    if status.duration_s is not None:
        message.duration.CopyFrom(seconds_to_wire(status.duration_s))
    return message


def status_from_wire(message: job_pb2.Job) -> model.JobStatus:
    """Wire to model."""
    return model.JobStatus(
        job_id=model.JobId(message.job_id),
        spec=spec_from_wire(message.spec, _dependency_told),
        state=_enum(model.JobState, message.state, model.JobState.RUNNING),
        paused=message.paused,
        task_count=message.task_count,
        counts={model.TaskState(c.state): c.count for c in message.counts if 1 <= c.state <= 8},
        retried_count=message.retried_count,
        age_s=duration_from_wire(message.age) / model.SECOND_NS,
        duration_s=duration_from_wire(message.duration) / model.SECOND_NS if message.HasField("duration") else None,
        retry_of=message.retry_of,
        cause=message.cause,
        type_paused=message.type_paused,
    )


class Ended(Protocol):
    """What a TaskResult says, but for the worker: a record says that once for many."""

    @property
    def index(self) -> int: ...
    @property
    def state(self) -> model.TaskState: ...
    @property
    def attempt(self) -> int: ...
    @property
    def result(self) -> bytes: ...
    @property
    def outputs(self) -> Sequence[model.BlobRef]: ...
    @property
    def failure(self) -> model.Failure | None: ...
    @property
    def run_us(self) -> int: ...


def result_to_wire(result: model.TaskResult) -> common_pb2.TaskResult:
    """Model to wire."""
    return ended_to_wire(result, result.worker_id, common_pb2.TaskResult)


def ended_to_wire(ended: Ended, worker_id: str, make: Callable[..., common_pb2.TaskResult]) -> common_pb2.TaskResult:
    """A TaskResult from its parts.

    Args:
        make: makes the message; the `add` of a repeated field makes it in its place, which saves a copy.
    """
    message = make(
        index=ended.index, state=ended.state, attempt=ended.attempt, result=ended.result, worker_id=worker_id
    )
    if ended.outputs:
        message.outputs.extend(blob_to_wire(b) for b in ended.outputs)
    if ended.failure is not None:
        message.failure.CopyFrom(failure_to_wire(ended.failure))
    if ended.run_us:
        duration = message.run_duration  # FromMicroseconds takes as long as all the rest
        duration.seconds, us = divmod(ended.run_us, 1_000_000)
        duration.nanos = us * 1_000
    return message


_Row = TypeVar("_Row", bound=tuple[Any, ...])


def _tuples(kind: type[_Row], rows: Iterable[tuple[Any, ...]]) -> list[_Row]:
    """Named tuples of rows that have all fields: `_make` takes three times as long, because each call passes through Python."""
    return list(map(tuple.__new__, repeat(kind), rows))


class Assigned(NamedTuple):
    """An attempt that was assigned."""

    index: int  # type: ignore[assignment]  # hides a method of tuples that nobody needs
    attempt: int
    payload: bytes
    remaining_ns: int | None
    """Until the total deadline; None: there is none."""
    app_failures: int


def assigned_in(group: work_queue_pb2.TaskGroup) -> list[Assigned]:
    """The attempts of a group, those in columns first."""
    columns = group.columns
    rows = zip(columns.indices, columns.attempts, columns.payloads, repeat(None), repeat(0), strict=False)
    found = _tuples(Assigned, rows)
    for one in group.assignments:
        remaining_ns = duration_from_wire(one.remaining) if one.HasField("remaining") else None
        found.append(Assigned(one.index, one.attempt, one.payload, remaining_ns, one.app_failures))
    return found


def assigned_pairs(group: work_queue_pb2.TaskGroup) -> list[tuple[int, int]]:
    """(index, attempt) of each, in the same order."""
    pairs = list(zip(group.columns.indices, group.columns.attempts, strict=False))
    pairs.extend([(one.index, one.attempt) for one in group.assignments])
    return pairs


def keep_assigned(group: work_queue_pb2.TaskGroup, kept: Collection[int]) -> None:
    """Strike all from a group but those at these positions in that order."""
    columns = group.columns
    count = len(columns.indices)
    lists: tuple[Any, ...] = (columns.indices, columns.attempts, columns.payloads)
    for column in lists:
        values = [value for position, value in enumerate(column) if position in kept]
        del column[:]
        column.extend(values)
    for position in reversed(range(len(group.assignments))):
        if count + position not in kept:
            del group.assignments[position]


class Succeeded(NamedTuple):
    """A TaskResult that came in columns, under the same names as far as a success has them."""

    index: int  # type: ignore[assignment]  # hides a method of tuples that nobody needs
    state: int
    attempt: int
    result: bytes
    worker_id: str
    run_us: int


Arrived = common_pb2.TaskResult | Succeeded
"""An outcome as it came."""


def results_in(message: job_pb2.StreamResultsResponse) -> list[Arrived]:
    """The outcomes of a message, those in columns first."""
    found: list[Arrived] = []
    for group in message.succeeded:
        state, worker_id = repeat(model.TaskState.SUCCEEDED.value), repeat(group.worker_id)
        rows = zip(group.indices, state, group.attempts, group.results, worker_id, group.run_us, strict=False)
        found.extend(_tuples(Succeeded, rows))
    found.extend(message.results)
    return found


def result_from_wire(message: Arrived) -> model.TaskResult:
    """Wire to model."""
    if isinstance(message, Succeeded):
        return model.TaskResult(
            index=message.index,
            state=model.TaskState.SUCCEEDED,
            attempt=message.attempt,
            result=message.result,
            worker_id=message.worker_id,
            run_us=message.run_us,
        )
    return model.TaskResult(
        index=message.index,
        state=task_state_from_wire(message.state),
        attempt=message.attempt,
        result=message.result,
        outputs=tuple(blob_from_wire(b) for b in message.outputs),
        failure=failure_from_wire(message.failure) if message.HasField("failure") else None,
        worker_id=message.worker_id,
        run_us=message.run_duration.ToMicroseconds() if message.HasField("run_duration") else 0,
    )


# ---- tokens ---------------------------------------------------------------------------------------------------------

Token = tuple[str, int, int, int]
"""(job_id, index, epoch, attempt): names one attempt."""


def findings_to_wire(explanation: model.Explanation) -> list[common_pb2.Finding]:
    """Model to wire."""
    return [common_pb2.Finding(what=each.what, why=each.why, help=each.help) for each in explanation.findings]


def findings_from_wire(messages: Iterable[common_pb2.Finding]) -> model.Explanation:
    """Wire to model."""
    return model.Explanation(
        findings=tuple(model.Finding(what=each.what, why=each.why, help=each.help) for each in messages)
    )


def tokens_to_wire(tokens: list[Token] | tuple[Token, ...]) -> list[work_queue_pb2.HeldGroup]:
    """Tokens grouped by job and epoch."""
    groups: dict[tuple[str, int], work_queue_pb2.HeldGroup] = {}
    for job_id, index, epoch, attempt in tokens:
        group = groups.get((job_id, epoch))
        if group is None:
            group = groups[job_id, epoch] = work_queue_pb2.HeldGroup(job_id=job_id, epoch=epoch)
        group.indices.append(index)
        group.attempts.append(attempt)
    return list(groups.values())


def tokens_from_wire(groups: object) -> list[Token]:
    """Tokens of repeated HeldGroup. InvalidArgument when indices and attempts do not pair."""
    tokens: list[Token] = []
    for group in groups:  # type: ignore[attr-defined]
        if len(group.indices) != len(group.attempts):
            raise errors.InvalidArgument("held: indices and attempts differ in number")
        job_id, epoch = group.job_id, group.epoch
        tokens.extend(
            (job_id, index, epoch, attempt) for index, attempt in zip(group.indices, group.attempts, strict=True)
        )
    return tokens


# ---- errors ---------------------------------------------------------------------------------------------------------

_CODES: dict[type[errors.AntFarmError], grpc.StatusCode] = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidKey: grpc.StatusCode.INVALID_ARGUMENT,
    errors.DigestMismatch: grpc.StatusCode.INVALID_ARGUMENT,
    errors.PayloadTooLarge: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.JobNotFound: grpc.StatusCode.NOT_FOUND,
    errors.TaskNotFound: grpc.StatusCode.NOT_FOUND,
    errors.WorkerNotFound: grpc.StatusCode.NOT_FOUND,
    errors.BlobNotFound: grpc.StatusCode.NOT_FOUND,
    errors.SessionNotFound: grpc.StatusCode.NOT_FOUND,
    errors.Conflict: grpc.StatusCode.ALREADY_EXISTS,
    errors.WorkerIdInUse: grpc.StatusCode.ALREADY_EXISTS,
    errors.WrongState: grpc.StatusCode.FAILED_PRECONDITION,
    errors.JobClosed: grpc.StatusCode.FAILED_PRECONDITION,
    errors.JobNotEnded: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NothingToRetry: grpc.StatusCode.FAILED_PRECONDITION,
    errors.DependencyNotFound: grpc.StatusCode.FAILED_PRECONDITION,
    errors.IncarnationLost: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Cycle: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ProtocolUnsupported: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Gap: grpc.StatusCode.OUT_OF_RANGE,
    errors.OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.Draining: grpc.StatusCode.UNAVAILABLE,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DiskFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.DataLoss: grpc.StatusCode.DATA_LOSS,
    errors.Internal: grpc.StatusCode.INTERNAL,
    # The roots of the two families come last: a reason means the first class that has it.
    errors.UserError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Weather: grpc.StatusCode.UNAVAILABLE,
}
"""Which status code each error travels as."""

_BY_REASON = {cls.reason: cls for cls in reversed(_CODES)}
_BY_CODE: dict[grpc.StatusCode, type[errors.AntFarmError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidArgument,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: errors.Conflict,
    grpc.StatusCode.FAILED_PRECONDITION: errors.WrongState,
    grpc.StatusCode.OUT_OF_RANGE: errors.OutOfRange,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: errors.PermissionDenied,
    grpc.StatusCode.UNIMPLEMENTED: errors.ProtocolUnsupported,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.CANCELLED: errors.Unavailable,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Overloaded,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.DATA_LOSS: errors.DataLoss,
}

STATUS_DETAILS_KEY = "grpc-status-details-bin"
"""Trailing metadata that carries google.rpc.Status with ErrorInfo and RetryInfo."""


def error_to_status(error: errors.AntFarmError) -> tuple[grpc.StatusCode, str, bytes]:
    """(code, one line, google.rpc.Status bytes for STATUS_DETAILS_KEY) of one of our errors."""
    code = next(_CODES[cls] for cls in [*type(error).__mro__, errors.Internal] if cls in _CODES)
    text = _head(str(error), 2048)
    status = status_pb2.Status(code=code.value[0], message=text)
    info = any_pb2.Any()
    info.Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN))
    status.details.append(info)
    if isinstance(error, errors.Weather) and error.retry_after_s is not None:
        retry = any_pb2.Any()
        retry.Pack(error_details_pb2.RetryInfo(retry_delay=seconds_to_wire(error.retry_after_s)))
        status.details.append(retry)
    return code, text, status.SerializeToString()


def error_from_rpc(error: grpc.aio.AioRpcError) -> errors.AntFarmError:
    """Our error of a failed call: by ErrorInfo where the peer sent one, else by its canonical code."""
    try:
        reason, retry_after_s = _status_details(error)
    except DecodeError:  # whoever sent it, the canonical code still holds
        reason, retry_after_s = "", None
    if not reason and error.details() == _LOST_STATUS:
        return errors.Unavailable("the connection was lost in the middle of a call")
    if not reason and error.code() is grpc.StatusCode.UNIMPLEMENTED and error.details() == _NO_SUCH_METHOD:
        return errors.ProtocolUnsupported(NOT_SERVED)
    cls = _BY_REASON.get(reason) or _BY_CODE.get(error.code(), errors.Internal)
    text = _plain(error.details() or error.code().name)
    if issubclass(cls, errors.Weather):
        return cls(text, retry_after_s)
    return cls(text)


def rpc_error_of(status: bytes) -> grpc.aio.AioRpcError:
    """The error of a call that ends with this google.rpc.Status in its trailing metadata."""
    try:
        message = status_pb2.Status.FromString(status)
    except DecodeError:
        message = status_pb2.Status(message="it was refused in words of another version")
    code = _CODES_BY_NUMBER.get(message.code, grpc.StatusCode.UNKNOWN)
    details = grpc.aio.Metadata((STATUS_DETAILS_KEY, status))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), details, details=message.message)


_CODES_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}
_NO_SUCH_METHOD = "Method not found!"
"""What gRPC's servers say of a call that nobody has registered with them."""
NOT_SERVED = "another program answers there than the one that is asked for, or another version of it: check the address"
"""Text of an error when the peer does not know the call at all, e.g. Storage in the place of an orchestrator."""
_LOST_STATUS = "Internal error from Core"
"""What gRPC puts in the place of the status of a call that ended while something was written into it (github.com/grpc/grpc/issues/36066)."""
CONNECTION_REFUSED = "connection refused"
"""Text of an error when nobody listens at an address."""
_CAUSES = (
    ("Connection refused", CONNECTION_REFUSED),
    ("name not found", "the name cannot be resolved"),
    ("WRONG_VERSION_NUMBER", "it serves without TLS: leave out --tls-cert, --tls-key and --tls-ca"),
    ("CERTIFICATE_VERIFY_FAILED", "its certificate is expired or not of the CA that --tls-ca gives"),
    ("Hostname Verification", "its certificate is not for this name: use one of the names in the certificate"),
    ("http1.x server", "a web server answers there"),
    ("Socket closed", "it hung up at once: if it asks for TLS, give --tls-cert, --tls-key and --tls-ca of its CA"),
)
"""What gRPC's long stories of a connection that was not made come down to."""


def _plain(details: str) -> str:
    if details.startswith(("failed to connect to all addresses", "errors resolving")):
        return next((plain for sign, plain in _CAUSES if sign in details), details)
    return details


def _status_details(error: grpc.aio.AioRpcError) -> tuple[str, float | None]:
    """(our reason, pause before a retry) as far as the peer sent them."""
    reason, retry_after_s = "", None
    for key, value in error.trailing_metadata() or ():
        if key != STATUS_DETAILS_KEY:
            continue
        status = status_pb2.Status.FromString(value if isinstance(value, bytes) else value.encode())
        for detail in status.details:
            info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if detail.Unpack(info) and info.domain == DOMAIN:
                reason = info.reason
            elif detail.Unpack(retry):
                retry_after_s = duration_from_wire(retry.retry_delay) / model.SECOND_NS
    return reason, retry_after_s
