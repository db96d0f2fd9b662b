"""What the golden journals hold, by version, and how one is made: `python golden_journals.py N`. See golden/README.md."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

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

GOLDEN = Path(__file__).with_name("golden")
SECOND = 1_000_000_000
T = 1_764_000_000 * SECOND

_TEMPLATE = TaskTemplate(
    type="golden.task",
    version="7",
    retry=RetryPolicy(max_attempts=4, backoff_initial_ns=SECOND // 2, backoff_max_ns=9 * SECOND),
    timeouts=Timeouts(run_ns=60 * SECOND, progress_ns=5 * SECOND, queue_ns=3600 * SECOND, total_ns=7200 * SECOND),
    resources={"cpu": 0.5, "gpu": 1.0},
    labels={"zone": "north"},
    limit=ConcurrencyLimit(name="licence", max_active=3),
    at_most_once=True,
    fence_late_results=True,
    idempotent=True,
    common_payload=b'{"common":1}',
    traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
)
_PLAIN = TaskTemplate(type="golden.plain")
_FAILURE = Failure(
    failure_class=FailureClass.APP, kind="ValueError", message="no", traceback="Traceback ...", log_tail="last words\n"
)
_BLOB = BlobRef(key="tasks/rich/0/1-1/out", size_bytes=3, sha256=bytes(range(32)))

_VERSION_1: list[r.Record] = [
    r.EpochStarted(epoch=1, wall_ns=T),
    r.WorkerSeen(worker_id=WorkerId("w1")),
    r.WorkerSeen(worker_id=WorkerId("down"), orchestrator=True),
    r.JobCreated(
        job=1,
        job_id=JobId("rich"),
        spec=JobSpec(template=_TEMPLATE, name="a name", priority=5, max_failures=2, labels={"who": "me"}),
        wall_ns=T + 1,
    ),
    r.TasksAdded(job=1, first_index=0, payloads=[b"zero", b"", b"two", bytes(300)], wall_ns=T + 2),
    r.AttemptIssued(job=1, index=2, epoch=1, attempt=1, worker_id="w1"),
    r.AttemptReturned(job=1, index=2),
    r.AttemptFailed(
        job=1, index=3, epoch=1, attempt=1, worker_id="w1", failure=_FAILURE, app_failures=1, crashes=0,
        infra_failures=0, lost=False, wall_ns=T + 3, pause_ns=SECOND,
    ),
    r.AttemptFailed(
        job=1, index=3, epoch=1, attempt=2, worker_id="down",
        failure=Failure(failure_class=FailureClass.INFRA, kind="lost", message="silent"),
        app_failures=1, crashes=0, infra_failures=1, lost=True,
    ),
    r.TasksEnded(
        job=1, worker_id="w1",
        ended=[
            r.EndedTask(index=0, state=TaskState.SUCCEEDED, epoch=1, attempt=1, result=b"done", outputs=(_BLOB,), run_us=12),
            r.EndedTask(index=1, state=TaskState.FAILED, epoch=1, attempt=4, failure=_FAILURE, run_us=1),
        ],
    ),
    r.JobCreated(
        job=2, job_id=JobId("dependent"),
        spec=JobSpec(template=_PLAIN, dependencies=(Dependency(job_id=JobId("rich"), kind=DependencyKind.EACH, offset=0),)),
        wall_ns=T + 4, retry_of="rich",
    ),
    r.TasksAdded(job=2, first_index=0, payloads=[b"a", b"b"], wall_ns=T + 5),
    r.JobClosed(job=2),
    r.JobPaused(job=2, paused=True),
    r.JobCreated(job=3, job_id=JobId("gone"), spec=JobSpec(template=_PLAIN), wall_ns=T + 6),
    r.JobCancelled(job=3, cause="not wanted"),
    r.JobEnded(job=3, wall_ns=T + 7),
    r.JobCreated(job=4, job_id=JobId("cancelled"), spec=JobSpec(template=_PLAIN), wall_ns=T + 8),
    r.TasksAdded(job=4, first_index=0, payloads=[b"x"], wall_ns=T + 9),
    r.JobCancelled(job=4, cause="changed my mind"),
    r.JobEnded(job=4, wall_ns=T + 10),
    r.EpochStarted(epoch=9, wall_ns=T + 11, history_gap=True),
    r.JobPurged(job=3),
    r.WorkerLeft(worker_id=WorkerId("down")),
    r.ParentBound(job_id="above", index=4, epoch=3, attempt=2, template=_TEMPLATE, payload=b"plan"),
    r.ParentBound(job_id="above", index=5, epoch=3, attempt=1, template=_PLAIN, payload=b""),
    r.ParentDone(job_id="above", index=5),
    r.JobCreated(job=5, job_id=JobId("up/above/7/relay-5"), spec=JobSpec(template=_PLAIN), wall_ns=T + 12),
    r.TasksAdded(job=5, first_index=0, payloads=[b"7", b"8", b"9"], wall_ns=T + 12),
    r.JobClosed(job=5),
    r.ParentsRelayed(job=5, local=0, count=3, job_id="above", index=7, epoch=3, attempt=1),
    r.ParentsRelayed(job=5, local=1, count=1, job_id="above", index=8, epoch=3, attempt=2),
    r.RelaysDone(job=5, job_id="above", indices=[7]),
]  # fmt: skip

RECORDS = {"1": _VERSION_1}
"""What was written, in order from record 1 on. A purge takes what is of its job with it."""


def write(version: str) -> None:
    """Make the journal of a version."""
    from services.orchestrator.journal.sqlite import SqliteJournal

    target = GOLDEN / f"{version}.sqlite"
    if target.exists():
        raise SystemExit(f"{target} exists; what a version wrote never changes")
    with tempfile.TemporaryDirectory() as directory:
        journal = SqliteJournal(Path(directory))
        rows = list(enumerate(RECORDS[version], 1))
        for start in range(0, len(rows), 5):
            journal.append(rows[start : start + 5])
        journal.close()
        shutil.copyfile(Path(directory) / "journal.sqlite", target)


if __name__ == "__main__":
    write(sys.argv[1])
