"""Frames of the protocol to the worker's values and back; the only place of the worker that knows both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from antfarm import wire
from antfarm.link import OutcomeParts
from antfarm.link.estimate import Estimate
from antfarm.model import LOG_TAIL_BYTES_MAX, BlobRef, Ending, Failure, FailureClass
from antfarm.v1 import report_queue_pb2, work_queue_pb2
from services.worker.core.attempt import Attempt, Group

_SUCCEEDED = int(Ending.SUCCEEDED)
MEMORY = "memory_bytes"
"""Resource that is also enforced: what a task may take beyond the interpreter and the apps."""


def group_from_wire(message: work_queue_pb2.TaskGroup, *, is_async: bool, estimate: Estimate) -> Group:
    """What the attempts of a message share."""
    template = message.template
    cost = dict(template.resources)
    cost.setdefault("cpu", 1.0)
    timeouts = template.timeouts
    return Group(
        job_id=message.job_id,
        epoch=message.epoch,
        type=template.type,
        is_async=is_async,
        estimate=estimate,
        cost=cost,
        run_timeout_ns=wire.duration_from_wire(timeouts.run) if timeouts.HasField("run") else 0,
        progress_timeout_ns=wire.duration_from_wire(timeouts.progress) if timeouts.HasField("progress") else 0,
        at_most_once=template.at_most_once,
        exclusive=template.fence_late_results,
        memory_bytes=int(cost.get(MEMORY, 0)),
        common_payload=template.common_payload,
        input_count=len(message.inputs),
    )


def success(attempt: Attempt, run_us: int, result: bytes, saved: Sequence[Any] = ()) -> OutcomeParts:
    """The outcome of an attempt that returned."""
    outcome: OutcomeParts = {
        "index": attempt.index,
        "attempt": attempt.attempt,
        "ending": _SUCCEEDED,
        "result": result,
        "run_us": run_us,
    }
    if saved:
        outcome["outputs"] = [wire.blob_to_wire(BlobRef(key=k, size_bytes=n, sha256=digest)) for k, n, digest in saved]
    return outcome


def failure(
    attempt: Attempt,
    failure_class: int,
    kind: str,
    message: str,
    trace: str = "",
    *,
    run_us: int = 0,
    ending: Ending = Ending.FAILED,
) -> OutcomeParts:
    """The outcome of an attempt that failed; texts are cut to their limits."""
    cut = wire.cut_failure(
        Failure(
            failure_class=FailureClass(failure_class),
            kind=kind,
            message=message,
            traceback=trace,
            log_tail=attempt.log.text if attempt.log else "",
        )
    )
    return OutcomeParts(
        index=attempt.index,
        attempt=attempt.attempt,
        ending=ending.value,
        failure=wire.failure_to_wire(cut),
        run_us=run_us,
    )


def handed_back(attempt: Attempt, ending: Ending, *, never_started: bool = False) -> OutcomeParts:
    """The outcome of an attempt that was revoked or released."""
    return OutcomeParts(
        index=attempt.index,
        attempt=attempt.attempt,
        ending=ending.value,
        never_started=never_started,
    )


def word(attempt: Attempt, now_ns: int) -> report_queue_pb2.Running:
    """A word of a running attempt, with all news since the last one; they count as said."""
    message = report_queue_pb2.Running(
        job_id=attempt.group.job_id,
        epoch=attempt.group.epoch,
        index=attempt.index,
        attempt=attempt.attempt,
        running_for=wire.duration_to_wire(now_ns - (attempt.started_ns or now_ns)),
        progress_text=attempt.progress_text,
        log=_tail(attempt.unsent_log.take()) if attempt.unsent_log else "",
    )
    if attempt.progress is not None:
        message.progress = attempt.progress
    return message


def _tail(text: str) -> str:
    if not text:
        return ""
    return text.encode("utf-8", "backslashreplace")[-LOG_TAIL_BYTES_MAX:].decode("utf-8", "ignore")


def result_row(message: wire.Arrived) -> list[Any]:
    """A recorded outcome as children get it. There may be a hundred thousand for one task, so no value is made of each in between."""
    if isinstance(message, wire.Succeeded):
        index, state, attempt, result, worker_id, run_us = message
        return [index, state, attempt, result, [], None, worker_id, run_us]
    failed = wire.failure_from_wire(message.failure) if message.HasField("failure") else None
    return [
        message.index,
        message.state,
        message.attempt,
        message.result,
        [(blob.key, blob.size_bytes, blob.sha256) for blob in map(wire.blob_from_wire, message.outputs)],
        failed and [failed.failure_class.value, failed.kind, failed.message, failed.traceback, failed.log_tail],
        message.worker_id,
        message.run_duration.ToMicroseconds(),
    ]
