"""What a job may look like. One clear line says which limit a submission breaks and what would mend it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from antfarm.errors import InvalidArgument, PayloadTooLarge
from antfarm.model import PAYLOAD_BYTES_MAX, PRIORITY_MAX, JobSpec

_JOB_ID = re.compile(r"(?!\.\.?(/|$))[A-Za-z0-9._-]+(/(?!\.\.?(/|$))[A-Za-z0-9._-]+)*")
"""Segments as in Storage keys, because outputs lie under their job's id."""
_TYPE = re.compile(r"[A-Za-z0-9._:<>-]+")
JOB_ID_BYTES_MAX = 256
TYPE_BYTES_MAX = 128
NAME_BYTES_MAX = 256
LABELS_BYTES_MAX = 16 * 1024
DEPENDENCIES_MAX = 16


def check_job(job_id: str, spec: JobSpec) -> None:
    """InvalidArgument when the job's id or spec breaks a limit."""
    if not _JOB_ID.fullmatch(job_id) or len(job_id) > JOB_ID_BYTES_MAX:
        raise InvalidArgument(
            f"job id {job_id[:80]!r}: use at most {JOB_ID_BYTES_MAX} of letters, digits and . _ - with / between segments, none of them . or .."
        )
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
    if not all(amount >= 0 and math.isfinite(amount) for amount in template.resources.values()):
        raise InvalidArgument("resources must be numbers of at least 0")
    if sum(len(name.encode()) for name in template.resources) > NAME_BYTES_MAX:
        raise InvalidArgument(f"names of resources are more than {NAME_BYTES_MAX} bytes: use fewer or shorter ones")


def check_payloads(payloads: Sequence[bytes]) -> None:
    """PayloadTooLarge when one is above the inline limit."""
    largest = max(map(len, payloads), default=0)
    if largest > PAYLOAD_BYTES_MAX:
        raise PayloadTooLarge(
            f"a payload is {largest} bytes, the limit is {PAYLOAD_BYTES_MAX}: keep large values in Storage and send their reference"
        )
