"""Hypothesis strategies for values of `antfarm.model` within the limits that the protocol states."""

from __future__ import annotations

from hypothesis import strategies as st

from antfarm import model

UINT32 = st.integers(0, 2**32 - 1)
UINT64 = st.integers(0, 2**64 - 1)
SINT32 = st.integers(-(2**31), 2**31 - 1)
text = st.text(max_size=30)
durations = st.integers(0, model.DURATION_NS_MAX)
labels = st.dictionaries(text, text, max_size=3)

blobs = st.builds(model.BlobRef, key=text, size_bytes=UINT64, sha256=st.binary(max_size=32))
failures = st.builds(
    model.Failure,
    failure_class=st.sampled_from(model.FailureClass),
    kind=text,
    message=text,
    traceback=text,
    log_tail=text,
)
retries = st.builds(
    model.RetryPolicy,
    max_attempts=st.integers(1, 2**32 - 1),  # 0 on the wire means the default
    backoff_initial_ns=durations,
    backoff_max_ns=durations,
)
timeouts = st.builds(
    model.Timeouts, **{name: st.none() | durations for name in ("run_ns", "progress_ns", "queue_ns", "total_ns")}
)
templates = st.builds(
    model.TaskTemplate,
    type=text,
    version=text,
    retry=retries,
    timeouts=timeouts,
    resources=st.dictionaries(text, st.floats(allow_nan=False), max_size=3),
    labels=labels,
    limit=st.none() | st.builds(model.ConcurrencyLimit, name=text, max_active=UINT32),
    at_most_once=st.booleans(),
    fence_late_results=st.booleans(),
    idempotent=st.booleans(),
    common_payload=st.binary(max_size=40),
    traceparent=text,
)
dependencies = st.builds(
    model.Dependency,
    job_id=text.map(model.JobId),
    kind=st.sampled_from(model.DependencyKind),
    offset=st.integers(-(2**63), 2**63 - 1),
)
specs = st.builds(
    model.JobSpec,
    template=templates,
    name=text,
    priority=SINT32,
    dependencies=st.lists(dependencies, max_size=3).map(tuple),
    max_failures=st.none() | UINT64,
    labels=labels,
)
statuses = st.builds(
    model.JobStatus,
    job_id=text.map(model.JobId),
    spec=specs,
    state=st.sampled_from(model.JobState),
    paused=st.booleans(),
    task_count=UINT64,
    counts=st.dictionaries(st.sampled_from(model.TaskState), st.integers(1, 2**64 - 1), max_size=8),
    retried_count=UINT64,
    age_s=st.integers(0, 10**9).map(float),
    duration_s=st.none() | st.integers(0, 10**9).map(float),
    retry_of=text,
    cause=text,
)
results = st.builds(
    model.TaskResult,
    index=UINT64,
    state=st.sampled_from(model.TaskState),
    attempt=UINT32,
    result=st.binary(max_size=40),
    outputs=st.lists(blobs, max_size=3).map(tuple),
    failure=st.none() | failures,
    worker_id=text,
    run_us=st.integers(0, model.DURATION_NS_MAX // 1000),
)
tokens = st.lists(st.tuples(text, UINT64, UINT64, UINT32), max_size=20)
