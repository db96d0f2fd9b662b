"""Records as bytes: nothing is lost on the way, older and newer writers are understood, and what is no record is refused."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from services.orchestrator.journal.codec import decode, encode, job_of

texts = st.text(max_size=20)
contents = st.binary(max_size=40)
numbers = st.integers(0, (1 << 63) - 1)
flags = st.booleans()
durations = st.none() | numbers
labels = st.dictionaries(texts, texts, max_size=3)

failures = st.builds(
    Failure, failure_class=st.sampled_from(FailureClass), kind=texts, message=texts, traceback=texts, log_tail=texts
)
blobs = st.builds(BlobRef, key=texts, size_bytes=numbers, sha256=contents)
templates = st.builds(
    TaskTemplate,
    type=texts,
    version=texts,
    retry=st.builds(RetryPolicy, max_attempts=numbers, backoff_initial_ns=numbers, backoff_max_ns=numbers),
    timeouts=st.builds(Timeouts, run_ns=durations, progress_ns=durations, queue_ns=durations, total_ns=durations),
    resources=st.dictionaries(texts, st.floats(allow_nan=False), max_size=3),
    labels=labels,
    limit=st.none() | st.builds(ConcurrencyLimit, name=texts, max_active=numbers),
    at_most_once=flags,
    fence_late_results=flags,
    idempotent=flags,
    common_payload=contents,
    traceparent=texts,
)
specs = st.builds(
    JobSpec,
    template=templates,
    name=texts,
    priority=st.integers(-10, 10),
    dependencies=st.lists(
        st.builds(
            Dependency,
            job_id=texts.map(JobId),
            kind=st.sampled_from(DependencyKind),
            offset=st.integers(-(1 << 62), 1 << 62),
        ),
        max_size=2,
    ).map(tuple),
    max_failures=st.none() | numbers,
    labels=labels,
)
ended_tasks = st.builds(
    r.EndedTask,
    index=numbers,
    state=st.sampled_from([state for state in TaskState if state.terminal]),
    epoch=numbers,
    attempt=numbers,
    result=contents,
    outputs=st.lists(blobs, max_size=2).map(tuple),
    failure=st.none() | failures,
    run_us=numbers,
)
token = {"index": numbers, "epoch": numbers, "attempt": numbers}

RECORDS: dict[type[Any], st.SearchStrategy[Any]] = {
    r.EpochStarted: st.builds(r.EpochStarted, epoch=numbers, wall_ns=numbers, history_gap=flags),
    r.JobCreated: st.builds(r.JobCreated, job=numbers, job_id=texts, spec=specs, wall_ns=numbers, retry_of=texts),
    r.TasksAdded: st.builds(
        r.TasksAdded, job=numbers, first_index=numbers, payloads=st.lists(contents, max_size=4), wall_ns=numbers
    ),
    r.JobClosed: st.builds(r.JobClosed, job=numbers),
    r.JobPaused: st.builds(r.JobPaused, job=numbers, paused=flags),
    r.TasksEnded: st.builds(r.TasksEnded, job=numbers, worker_id=texts, ended=st.lists(ended_tasks, max_size=3)),
    r.AttemptFailed: st.builds(
        r.AttemptFailed, job=numbers, worker_id=texts, failure=failures, app_failures=numbers, crashes=numbers,
        infra_failures=numbers, lost=flags, **token,
    ),
    r.AttemptIssued: st.builds(r.AttemptIssued, job=numbers, worker_id=texts, **token),
    r.AttemptReturned: st.builds(r.AttemptReturned, job=numbers, index=numbers),
    r.JobCancelled: st.builds(r.JobCancelled, job=numbers, cause=texts),
    r.JobEnded: st.builds(r.JobEnded, job=numbers, wall_ns=numbers),
    r.JobPurged: st.builds(r.JobPurged, job=numbers),
    r.WorkerSeen: st.builds(r.WorkerSeen, worker_id=texts, orchestrator=flags),
    r.WorkerLeft: st.builds(r.WorkerLeft, worker_id=texts),
    r.ParentBound: st.builds(r.ParentBound, job_id=texts, template=templates, payload=contents, **token),
    r.ParentDone: st.builds(r.ParentDone, job_id=texts, index=numbers),
    r.ParentsRelayed: st.builds(
        r.ParentsRelayed, job=numbers, local=numbers, count=numbers, job_id=texts, index=numbers, epoch=numbers, attempt=numbers
    ),
    r.RelaysDone: st.builds(r.RelaysDone, job=numbers, job_id=texts, indices=st.lists(numbers, max_size=3)),
}  # fmt: skip

any_record = st.one_of(*RECORDS.values())


def test_every_kind_of_record_is_covered_here() -> None:
    assert set(RECORDS) == set(r.Record.__args__)


@pytest.mark.parametrize("cls", RECORDS, ids=lambda cls: cls.__name__)
@settings(max_examples=40)
@given(data=st.data())
def test_a_record_comes_back_as_it_went(cls: type[Any], data: st.DataObject) -> None:
    record = data.draw(RECORDS[cls])
    again = decode(*encode(record))
    assert type(again) is cls
    assert again == record


@settings(max_examples=40)
@given(record=any_record, more=st.lists(st.none() | numbers | texts | st.lists(texts, max_size=2), max_size=3))
def test_fields_that_a_newer_writer_added_are_passed_over(record: r.Record, more: list[Any]) -> None:
    kind, body = encode(record)
    assert decode(kind, msgpack.packb([*msgpack.unpackb(body, strict_map_key=False), *more])) == record


def test_fields_that_a_newer_writer_added_inside_are_passed_over() -> None:
    """Templates, failures, outcomes and their parts grow like records."""
    spec = JobSpec(
        template=TaskTemplate(type="t", limit=ConcurrencyLimit(name="l", max_active=2)),
        dependencies=(Dependency(job_id=JobId("a"), kind=DependencyKind.EACH, offset=1),),
    )
    failure = Failure(failure_class=FailureClass.APP, kind="k", message="m", traceback="t", log_tail="l")
    blob = BlobRef(key="k", size_bytes=1, sha256=b"s")
    ended = r.EndedTask(index=1, state=TaskState.FAILED, outputs=(blob,), failure=failure)
    for record in (
        r.JobCreated(job=1, job_id=JobId("j"), spec=spec, wall_ns=1),
        r.TasksEnded(job=1, worker_id="w", ended=[ended]),
    ):
        kind, body = encode(record)
        assert decode(kind, msgpack.packb(_lengthened(msgpack.unpackb(body), keep=b"payloads"))) == record


def _lengthened(plain: Any, keep: bytes) -> Any:
    """Every list of fields with a field more; lists of values (of lists) are no lists of fields."""
    if not isinstance(plain, list):
        return plain
    inner = [_lengthened(value, keep) for value in plain]
    of_values = bool(plain) and all(isinstance(value, list) for value in plain)
    return inner if of_values else [*inner, "from the future"]


OLDER: list[tuple[r.Record, int]] = [
    (r.EpochStarted(epoch=3, wall_ns=4), 2),
    (r.JobCreated(job=1, job_id=JobId("j"), spec=JobSpec(template=TaskTemplate(type="t")), wall_ns=5), 4),
    (
        r.AttemptFailed(
            job=1, index=2, epoch=3, attempt=4, worker_id="w", failure=Failure(failure_class=FailureClass.APP),
            app_failures=1, crashes=0, infra_failures=0,
        ),
        9,
    ),
    (r.WorkerSeen(worker_id=WorkerId("w")), 1),
]  # fmt: skip
"""Records whose last fields have defaults -> how many fields have none."""


@pytest.mark.parametrize(("record", "required"), OLDER, ids=lambda value: type(value).__name__)
def test_fields_that_an_older_writer_left_out_get_their_defaults(record: r.Record, required: int) -> None:
    kind, body = encode(record)
    plain = msgpack.unpackb(body)
    assert len(plain) > required
    for length in range(required, len(plain)):
        assert decode(kind, msgpack.packb(plain[:length])) == record
    with pytest.raises(ValueError, match=f"record of kind {kind} cannot be read"):
        decode(kind, msgpack.packb(plain[: required - 1]))


def test_fields_that_an_older_writer_left_out_inside_get_their_defaults() -> None:
    spec = JobSpec(template=TaskTemplate(type="t"))
    assert decode(2, msgpack.packb([1, "j", [["t"]], 5])) == r.JobCreated(
        job=1, job_id=JobId("j"), spec=spec, wall_ns=5
    )
    partly = msgpack.packb([1, "j", [["t", "2", [3], [None, 7]], "name"], 5])
    template = TaskTemplate(type="t", version="2", retry=RetryPolicy(max_attempts=3), timeouts=Timeouts(progress_ns=7))
    expected = JobSpec(template=template, name="name")
    assert decode(2, partly) == r.JobCreated(job=1, job_id=JobId("j"), spec=expected, wall_ns=5)
    with_failure = msgpack.packb([1, "w", [[4, 5, 1, 1, 9, b"", [], [2, "k"]], [5, 5, 1, 1, 9, b"", []]]])
    first = r.EndedTask(
        index=4, state=TaskState.FAILED, epoch=1, attempt=1, run_us=9,
        failure=Failure(failure_class=FailureClass.APP, kind="k"),
    )  # fmt: skip
    second = r.EndedTask(index=5, state=TaskState.FAILED, epoch=1, attempt=1, run_us=9)
    assert decode(6, with_failure) == r.TasksEnded(job=1, worker_id="w", ended=[first, second])


def test_the_bytes_of_a_record_stay_as_they_are() -> None:
    """Journals outlive versions: a change of these bytes makes old journals unreadable."""
    spec = JobSpec(
        template=TaskTemplate(type="t"), dependencies=(Dependency(job_id=JobId("a"), kind=DependencyKind.ALL),)
    )
    outcome = r.EndedTask(index=1, state=TaskState.SUCCEEDED, epoch=2, attempt=3, result=b"4", run_us=5)
    records: dict[str, r.Record] = {
        "epoch": r.EpochStarted(epoch=1, wall_ns=2),
        "job": r.JobCreated(job=1, job_id=JobId("j"), spec=spec, wall_ns=2),
        "tasks": r.TasksAdded(job=1, first_index=2, payloads=[b"p"], wall_ns=3),
        "ended": r.TasksEnded(job=1, worker_id="w", ended=[outcome]),
    }
    assert {name: (encode(record)[0], encode(record)[1].hex()) for name, record in records.items()} == {
        "epoch": (1, "930102c2"),
        "job": (
            2,
            "9501a16a969ca174a09301ce3b9aca00cf0000000df847580094c0c0c0c08080c0c2c2c2c400a0a0009193a1610200c08002a0",
        ),
        "tasks": (3, "94010291c4017003"),
        "ended": (6, "9301a17791960104020305c40134"),
    }


@settings(max_examples=40)
@given(kind=st.integers(0, 20), body=contents)
def test_what_is_no_record_is_refused(kind: int, body: bytes) -> None:
    try:
        record = decode(kind, body)
    except ValueError as error:
        words = str(error)
    else:
        words = "a record" if type(record) in RECORDS else "something else"
    assert words.startswith(("a record", f"record kind {kind} is unknown", f"record of kind {kind} cannot be read"))


@settings(max_examples=40)
@given(record=any_record, cut=st.integers(1, 30))
def test_a_record_cut_short_is_refused(record: r.Record, cut: int) -> None:
    kind, body = encode(record)
    with pytest.raises(ValueError, match=f"record of kind {kind} cannot be read"):
        decode(kind, body[: max(len(body) - cut, 0)])


def test_records_belong_to_their_job_but_the_record_of_its_end_outlives_it() -> None:
    assert job_of(r.JobClosed(job=7)) == 7
    assert job_of(r.JobPurged(job=7)) == 0
    assert job_of(r.EpochStarted(epoch=1, wall_ns=1)) == 0
    assert job_of(r.ParentDone(job_id="j", index=1)) == 0
