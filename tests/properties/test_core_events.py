"""Every event that the wire can make, in any state: the core returns or refuses, never raises, and what it records can be written down."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from orchestrator_harness import Harness, each, failure, whole

from antfarm.model import (
    BlobRef,
    ConcurrencyLimit,
    Ending,
    Failure,
    FailureClass,
    JobSpec,
    RetryPolicy,
    SessionId,
    TaskTemplate,
    Timeouts,
    WorkerId,
)
from services.orchestrator.core import effects, events

u32 = st.sampled_from([0, 1, 2, 3, 1 << 31, (1 << 32) - 1])
u64 = st.sampled_from([0, 1, 2, 3, 4, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1])
ns = st.sampled_from([0, 1, 10**9, 10**12, 3 * 10**18])
numbers = st.sampled_from([0.0, 1.0, 4.0, 1e300, float("inf"), float("nan"), -1.0])
job_ids = st.sampled_from(
    ["a", "b", "open", "once", "new1", "new2", "up/top/0/tasks", "up/x/1/plan", "", "no good", "x" * 300]
)
sessions = st.sampled_from([SessionId("w1.1"), SessionId("w2.1"), SessionId("gone"), SessionId("fresh")])
worker_ids = st.sampled_from([WorkerId("w1"), WorkerId("w2"), WorkerId("new")])
texts = st.sampled_from(["", "why", "ü\n\x00" * 20])
parent_tasks = st.builds(events.ParentTask, st.sampled_from([0, 1, (1 << 64) - 1]), u32, st.sampled_from([b"", b"[]"]))
parent_tokens = st.lists(st.tuples(st.just("top"), u64, u64, u32), max_size=3)
payload_lists = st.lists(st.sampled_from([b"", b"0", b"1", b"x" * 70_000]), max_size=3)
held = st.lists(st.tuples(job_ids, u64, u64, u32), max_size=4)
failures = st.none() | st.builds(Failure, failure_class=st.sampled_from(FailureClass), kind=texts, message=texts)
templates = st.builds(
    TaskTemplate,
    type=st.sampled_from(["t", "s", "u", ""]),
    retry=st.builds(RetryPolicy, max_attempts=u32, backoff_initial_ns=ns, backoff_max_ns=ns),
    timeouts=st.builds(Timeouts, run_ns=st.none() | ns, queue_ns=st.none() | ns, total_ns=st.none() | ns),
    resources=st.dictionaries(st.sampled_from(["cpu", "gpu", ""]), numbers, max_size=2),
    labels=st.dictionaries(texts, texts, max_size=1),
    limit=st.none() | st.builds(ConcurrencyLimit, name=st.sampled_from(["web", ""]), max_active=u32),
    at_most_once=st.booleans(),
    fence_late_results=st.booleans(),
)
specs = st.builds(
    JobSpec,
    template=templates,
    priority=st.integers(-12, 12),
    dependencies=st.lists(
        st.builds(each, st.sampled_from(["a", "open", "nope"]), st.sampled_from([0, 1, -1, 1 << 62, -(1 << 63)]))
        | st.builds(whole, st.sampled_from(["a", "open"])),
        max_size=2,
    ).map(tuple),
    max_failures=st.none() | u64,
)
outcomes = st.builds(
    events.Outcome,
    report_no=u64,
    index=u64,
    attempt=u32,
    ending=st.sampled_from(Ending),
    result=st.sampled_from([b"", b"r"]),
    outputs=st.just(()) | st.just((BlobRef(key="k", size_bytes=(1 << 64) - 1, sha256=b"x" * 32),)),
    failure=failures,
    run_us=u64,
    never_started=st.booleans(),
    app_failures=u32,
)
request = st.just(7)
any_event = st.one_of(
    st.builds(events.CreateJob, request=request, job_id=job_ids, spec=specs, payloads=payload_lists, close=st.booleans()),
    st.builds(events.AppendTasks, request=request, job_id=job_ids, first_index=u64, payloads=payload_lists, close=st.booleans()),
    st.builds(events.CloseJob, request=request, job_id=job_ids),
    st.builds(events.CancelJob, request=request, job_id=job_ids, cause=texts),
    st.builds(events.CancelTask, request=request, job_id=job_ids, index=u64, cause=texts),
    st.builds(events.PauseJob, request=request, job_id=job_ids, paused=st.booleans()),
    st.builds(events.RetryJob, request=request, job_id=job_ids, new_job_id=job_ids),
    st.builds(events.PurgeJob, request=request, job_id=job_ids),
    st.builds(
        events.Attach, session=st.just(SessionId("fresh")), worker_id=worker_ids, incarnation=st.sampled_from([b"w1-1", b"other"]),
        protocol_major=st.sampled_from([0, 1, 2]), slots=u32, window=u32, task_types=st.just(frozenset(["t", "s:plan"])),
        resources=st.dictionaries(st.sampled_from(["cpu", "gpu"]), numbers, max_size=2), max_epoch_seen=u64, held=held,
        orchestrator=st.booleans(),
    ),
    st.builds(events.Detach, session=sessions),
    st.builds(events.Goodbye, session=sessions),
    st.builds(events.Credit, session=sessions, window=u32),
    st.builds(events.Heartbeat, session=sessions, number=u64, frames_received=u64, held=held),
    st.builds(events.Outcomes, session=sessions, job_id=job_ids, epoch=u64, outcomes=st.lists(outcomes, max_size=3)),
    st.builds(
        events.Running, session=sessions, job_id=job_ids, epoch=u64, index=u64, attempt=u32, running_for_ns=ns,
        progress=st.none() | numbers, progress_text=texts,
    ),
    st.builds(events.DrainWorker, request=request, worker_id=worker_ids, drain=st.booleans(), limit_ns=ns),
    st.builds(
        events.ParentsAssigned, job_id=st.sampled_from(["top", "x"]), epoch=u64, template=templates, tasks=st.lists(parent_tasks, max_size=3), since_epoch=u64,
    ),
    st.builds(events.ParentsRevoked, tokens=parent_tokens, cause=texts),
    st.builds(events.ParentsDrained, over=st.booleans()),
    st.builds(
        events.ParentExpanded, parent=st.sampled_from([("top", 0), ("x", 1), ("no", 5)]), plan=st.integers(0, 9), template=st.none() | templates,
        payloads=payload_lists, failure=failures,
    ),
    st.builds(events.ParentsAcked, tokens=parent_tokens),
    st.builds(events.DiskLow, low=st.booleans()),
    st.builds(events.Tick, wall_ns=st.sampled_from([0, 10**18, 4 * 10**18])),
)  # fmt: skip


def busy_farm() -> Harness:
    """Something of everything under way."""
    farm = Harness()
    worker = farm.worker("w1", slots=3, types=("t", "s:plan"))
    farm.worker("w2", slots=1)
    farm.create("a", 3)
    farm.create("once", 2, at_most_once=True)
    farm.create("open", 2, close=False, dependencies=(each("a"),))
    farm.create("b", 1, dependencies=(whole("a"),), limit=ConcurrencyLimit(name="web", max_active=1))
    worker.take()
    token = next(iter(worker.held))
    worker.report(token, Ending.FAILED, failure=failure(FailureClass.INFRA))
    farm.do(
        events.ParentsAssigned(
            job_id="top", epoch=1, template=TaskTemplate(type="s"), tasks=[events.ParentTask(0, 1, b"[]")]
        )
    )
    farm.drop()
    return farm


@pytest.mark.slow
@settings(max_examples=400, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(any_event, st.sampled_from([0, 1, 250_000_000, 20_000_000_000])), min_size=1, max_size=8))
def test_the_core_returns_or_refuses_whatever_it_is_told(steps: list[tuple[Any, int]]) -> None:
    farm = busy_farm()
    fresh = SessionId("fresh")
    for number, (event, passed_ns) in enumerate(steps):
        if isinstance(event, events.Attach):
            fresh = SessionId(f"fresh{number}")  # no two streams have the same
        if getattr(event, "session", None) == "fresh":
            event = replace(event, session=fresh)
        farm.now += passed_ns
        farm.do(event)
        farm.claim_all(effects.Reply)
    farm.drop()
    farm.restart()
