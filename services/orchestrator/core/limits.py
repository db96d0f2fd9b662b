"""What a job may look like. One clear line says which limit a submission breaks and what would mend it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from antfarm.errors import InvalidArgument, PayloadTooLarge
from antfarm.model import DURATION_NS_MAX, PAYLOAD_BYTES_MAX, PRIORITY_MAX, JobSpec, TaskTemplate

_JOB_ID = re.compile(r"(?!\.\.?(/|$))[A-Za-z0-9._-]+(/(?!\.\.?(/|$))[A-Za-z0-9._-]+)*")
"""Segments as in Storage keys, because outputs lie under their job's id."""
_TYPE = re.compile(r"[A-Za-z0-9._:<>-]+")
JOB_ID_BYTES_MAX = 256
PARENT_ID_BYTES_MAX = 380
"""Of a job of the orchestrator above: what is added at each level must leave room for an output's key."""
TYPE_BYTES_MAX = 128
NAME_BYTES_MAX = 256
LABELS_BYTES_MAX = 16 * 1024
DEPENDENCIES_MAX = 16
EPOCH_MAX = 1 << 31
"""Epochs above it are nobody's, and records have no room for them."""
EPOCH_SEEN_MAX = EPOCH_MAX - (1 << 20)
"""What a worker says that it has seen raises the epoch this far at most, so that a million starts are left below EPOCH_MAX."""
ATTEMPT_MAX = 1 << 31
"""Attempt numbers above it are nobody's."""
PLAN_BYTES_MAX = 256 << 20
"""Of all arguments that a plan makes: they become one record, and the journal takes none of a billion bytes."""
AMOUNT_MAX = 1e15
"""Of one resource, of a task or a worker: bytes of a petabyte, and still sums of many that are exact and no infinity."""


def check_job(job_id: str, spec: JobSpec) -> None:
    """InvalidArgument when the job's id or spec breaks a limit."""
    _check_id(job_id, JOB_ID_BYTES_MAX)
    check_spec(spec)


def check_parent(job_id: str, template: TaskTemplate) -> None:
    """InvalidArgument when a task of the orchestrator above could not be a job here. Its own parents may have made its id longer than a client's."""
    _check_id(job_id, PARENT_ID_BYTES_MAX)
    check_spec(JobSpec(template=template))


def _check_id(job_id: str, bytes_max: int) -> None:
    if not _JOB_ID.fullmatch(job_id) or len(job_id) > bytes_max:
        raise InvalidArgument(
            f"job id {job_id[:80]!r}: use at most {bytes_max} of letters, digits and . _ - with / between segments, none of them . or .."
        )


def check_spec(spec: JobSpec) -> None:
    """InvalidArgument when a spec breaks a limit."""
    template = spec.template
    if not _TYPE.fullmatch(template.type) or len(template.type) > TYPE_BYTES_MAX:
        raise InvalidArgument(
            f"task type {template.type[:80]!r}: use at most {TYPE_BYTES_MAX} of letters, digits and . _ : -"
        )
    if len(spec.name.encode()) > NAME_BYTES_MAX:
        raise InvalidArgument(f"job name is longer than {NAME_BYTES_MAX} bytes: shorten it")
    if not -PRIORITY_MAX <= spec.priority <= PRIORITY_MAX:
        raise InvalidArgument(f"priority {spec.priority} is outside -{PRIORITY_MAX} to {PRIORITY_MAX}: give one within")
    if len(template.common_payload) > PAYLOAD_BYTES_MAX:
        raise PayloadTooLarge(
            f"common arguments are {len(template.common_payload)} bytes, the limit is {PAYLOAD_BYTES_MAX}: keep them in Storage"
        )
    if len(spec.dependencies) > DEPENDENCIES_MAX:
        raise InvalidArgument(
            f"{len(spec.dependencies)} dependencies, at most {DEPENDENCIES_MAX} are possible: put tasks that are waited for together into one job"
        )
    for labels in (spec.labels, template.labels):
        if sum(len(k.encode()) + len(v.encode()) for k, v in labels.items()) > LABELS_BYTES_MAX:
            raise InvalidArgument(f"labels are more than {LABELS_BYTES_MAX} bytes: use fewer or shorter ones")
    for name, text in (("version", template.version), ("traceparent", template.traceparent)):
        if len(text.encode()) > NAME_BYTES_MAX:
            raise InvalidArgument(f"the task's {name} is longer than {NAME_BYTES_MAX} bytes: shorten it")
    if template.limit is not None and (
        template.limit.max_active < 1 or not 0 < len(template.limit.name) <= TYPE_BYTES_MAX
    ):
        raise InvalidArgument("a concurrency limit needs a name and a max_active of at least 1")
    for name in ("run_ns", "progress_ns", "queue_ns", "total_ns"):
        value = getattr(template.timeouts, name)
        if value is not None and value <= 0:
            raise InvalidArgument(f"timeout {name.removesuffix('_ns')} must be above 0; leave it out for no limit")
    if not all(0 <= ns <= DURATION_NS_MAX for ns in (template.retry.backoff_initial_ns, template.retry.backoff_max_ns)):
        raise InvalidArgument("the pauses between attempts must be of 0 s to a hundred years")
    check_resources(template.resources)


def check_resources(resources: Mapping[str, float]) -> None:
    """InvalidArgument when what a task takes or a worker has is no amount that can be counted with."""
    if not all(0 <= amount <= AMOUNT_MAX for amount in resources.values()):  # NaN is neither
        raise InvalidArgument(f"resources must be numbers from 0 to {AMOUNT_MAX:g}")
    if sum(len(name.encode()) for name in resources) > NAME_BYTES_MAX:
        raise InvalidArgument(f"names of resources are more than {NAME_BYTES_MAX} bytes: use fewer or shorter ones")


def check_plan(payloads: Sequence[bytes]) -> None:
    """PayloadTooLarge when one is above the inline limit, or all are more than one record may hold."""
    check_payloads(payloads)
    size = sum(map(len, payloads))
    if size > PLAN_BYTES_MAX:
        raise PayloadTooLarge(
            f"its tasks are {size >> 20} MiB of arguments, the limit is {PLAN_BYTES_MAX >> 20} MiB: keep large ones in Storage, or submit several smaller requests"
        )


def check_payloads(payloads: Sequence[bytes]) -> None:
    """PayloadTooLarge when one is above the inline limit."""
    largest = max(map(len, payloads), default=0)
    if largest > PAYLOAD_BYTES_MAX:
        raise PayloadTooLarge(
            f"a payload is {largest} bytes, the limit is {PAYLOAD_BYTES_MAX}: keep large values in Storage and send their reference"
        )
