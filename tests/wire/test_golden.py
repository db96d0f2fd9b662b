"""The bytes of the protocol stay what they are: workers of other languages and journals of older versions read them.

A difference here means that a released peer no longer understands us. Never change a line of `golden.txt`; add lines for new
messages (the failure prints the bytes).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from antfarm import errors, model, wire
from antfarm.v1 import blob_pb2, common_pb2, job_pb2, report_queue_pb2, work_queue_pb2

HELD = [("days", 3, 9, 1), ("days", 300, 9, 2), ("other", 0, 8, 1)]


def template() -> model.TaskTemplate:
    """A template with every field set."""
    return model.TaskTemplate(
        type="clouds.download",
        version="1",
        retry=model.RetryPolicy(max_attempts=5, backoff_initial_ns=500_000_000, backoff_max_ns=30 * 10**9),
        timeouts=model.Timeouts(run_ns=600 * 10**9, progress_ns=1, queue_ns=0, total_ns=3600 * 10**9),
        resources={"cpu": 1.5},
        labels={"zone": "north"},
        limit=model.ConcurrencyLimit(name="nasa", max_active=4),
        at_most_once=True,
        fence_late_results=True,
        idempotent=True,
        common_payload=b'{"box":1}',
        traceparent="00-ab",
    )


def spec() -> model.JobSpec:
    """A job that waits for two others."""
    return model.JobSpec(
        name="clouds-2021",
        template=model.TaskTemplate(type="t"),
        priority=-5,
        dependencies=(
            model.Dependency(job_id=model.JobId("a"), kind=model.DependencyKind.EACH, offset=-1),
            model.Dependency(job_id=model.JobId("b"), kind=model.DependencyKind.ALL),
        ),
        max_failures=0,
        labels={"who": "me"},
    )


FAILURE = model.Failure(
    failure_class=model.FailureClass.CRASH, kind="signal SIGSEGV", message="died", traceback="tb", log_tail="last line"
)
SAMPLES: dict[str, Callable[[], Message]] = {
    "template": lambda: wire.template_to_wire(template()),
    "spec": lambda: wire.spec_to_wire(spec()),
    "job": lambda: wire.status_to_wire(
        model.JobStatus(
            job_id=model.JobId("j"),
            spec=spec(),
            state=model.JobState.FAILED,
            paused=True,
            task_count=7,
            counts={model.TaskState.SUCCEEDED: 6, model.TaskState.DEAD_LETTER: 1},
            retried_count=2,
            age_s=3.5,
            duration_s=2.25,
            retry_of="i",
            cause="asked",
        )
    ),
    "result": lambda: wire.result_to_wire(
        model.TaskResult(
            index=300,
            state=model.TaskState.SUCCEEDED,
            attempt=2,
            result=b"42",
            outputs=(model.BlobRef(key="tasks/j/300/9-2/p.png", size_bytes=70_000, sha256=bytes(range(32))),),
            worker_id="w-1",
            run_us=1_250_000,
        )
    ),
    "failed result": lambda: wire.result_to_wire(
        model.TaskResult(index=0, state=model.TaskState.FAILED, failure=FAILURE)
    ),
    "create job": lambda: job_pb2.CreateJobRequest(
        job_id="days", spec=wire.spec_to_wire(spec()), payloads=[b"[1]", b"[2]"], close=True
    ),
    "append": lambda: job_pb2.AppendTasksRequest(job_id="days", first_index=300, payloads=[b"[3]"], close=True),
    "stream results": lambda: job_pb2.StreamResultsRequest(job_id="days", cursor=5, follow=True, indices=[0, 300]),
    "hello": lambda: work_queue_pb2.PullTasksRequest(
        hello=work_queue_pb2.Hello(
            protocol_major=1,
            protocol_minor=0,
            worker_id="w-1",
            incarnation=bytes(16),
            slots=2,
            window=4,
            task_types=["a", "b"],
            labels={"zone": "north"},
            resources={"cpu": 2},
            max_epoch_seen=8,
            held=wire.tokens_to_wire(HELD),
            descendants=["o-2"],
            orchestrator=True,
            host="node7",
            software="antfarm 0.1",
        )
    ),
    "welcome": lambda: work_queue_pb2.PullTasksResponse(
        welcome=work_queue_pb2.Welcome(
            epoch=9,
            owner=bytes(range(16)),
            session_id="s1",
            heartbeat=Duration(seconds=3),
            lease=Duration(seconds=12),
            revoked=wire.tokens_to_wire(HELD[:1]),
            storage_address="127.0.0.1:50052",
            orchestrator_id="o-1",
        )
    ),
    "credit": lambda: work_queue_pb2.PullTasksRequest(credit=work_queue_pb2.Credit(window=4)),
    "heartbeat": lambda: work_queue_pb2.PullTasksRequest(
        heartbeat=work_queue_pb2.Heartbeat(number=7, tasks_frames_received=3, held=wire.tokens_to_wire(HELD))
    ),
    "heartbeat ack": lambda: work_queue_pb2.PullTasksResponse(
        heartbeat_ack=work_queue_pb2.HeartbeatAck(number=7, revoked=wire.tokens_to_wire(HELD[2:]))
    ),
    "goodbye": lambda: work_queue_pb2.PullTasksRequest(goodbye=work_queue_pb2.Goodbye(cause="drained")),
    "tasks": lambda: work_queue_pb2.PullTasksResponse(
        tasks=work_queue_pb2.Tasks(
            groups=[
                work_queue_pb2.TaskGroup(
                    job_id="days",
                    epoch=9,
                    template=common_pb2.TaskTemplate(type="t"),
                    inputs=[common_pb2.Dependency(job_id="a", kind=common_pb2.DEPENDENCY_KIND_EACH, offset=2)],
                    assignments=[
                        work_queue_pb2.Assignment(index=3, attempt=1, payload=b"[1]", remaining=Duration(seconds=60)),
                        work_queue_pb2.Assignment(index=4, attempt=2, payload=b"[2]"),
                    ],
                )
            ]
        )
    ),
    "tasks in columns": lambda: work_queue_pb2.PullTasksResponse(
        tasks=work_queue_pb2.Tasks(
            groups=[
                work_queue_pb2.TaskGroup(
                    job_id="days",
                    epoch=9,
                    columns=work_queue_pb2.AssignmentColumns(indices=[3, 300], attempts=[1, 2], payloads=[b"[1]", b""]),
                )
            ]
        )
    ),
    "revoke": lambda: work_queue_pb2.PullTasksResponse(
        revoke=work_queue_pb2.Revoke(attempts=wire.tokens_to_wire(HELD[:2]), cause="cancelled")
    ),
    "drain": lambda: work_queue_pb2.PullTasksResponse(drain=work_queue_pb2.Drain(limit=Duration(seconds=30))),
    "report hello": lambda: report_queue_pb2.PushReportsRequest(hello=report_queue_pb2.ReportHello(session_id="s1")),
    "reports": lambda: report_queue_pb2.PushReportsRequest(
        reports=report_queue_pb2.Reports(
            outcomes=[
                report_queue_pb2.OutcomeGroup(
                    job_id="days",
                    epoch=9,
                    outcomes=[
                        report_queue_pb2.Outcome(
                            report_no=1,
                            index=3,
                            attempt=1,
                            ending=report_queue_pb2.ENDING_SUCCEEDED,
                            result=b"6",
                            run_us=9,
                        ),
                        report_queue_pb2.Outcome(
                            report_no=2,
                            index=4,
                            attempt=2,
                            ending=report_queue_pb2.ENDING_FAILED,
                            failure=wire.failure_to_wire(FAILURE),
                        ),
                        report_queue_pb2.Outcome(
                            report_no=3, index=5, attempt=1, ending=report_queue_pb2.ENDING_RELEASED, never_started=True
                        ),
                    ],
                )
            ],
            running=[
                report_queue_pb2.Running(
                    job_id="days",
                    epoch=9,
                    index=6,
                    attempt=1,
                    running_for=Duration(nanos=250_000_000),
                    progress=0.0,
                    progress_text="half",
                    log="line\n",
                )
            ],
        )
    ),
    "reports in columns": lambda: report_queue_pb2.PushReportsRequest(
        reports=report_queue_pb2.Reports(
            outcomes=[
                report_queue_pb2.OutcomeGroup(
                    job_id="days",
                    epoch=9,
                    successes=report_queue_pb2.Successes(
                        report_nos=[1, 2], indices=[3, 300], attempts=[1, 2], run_us=[9, 0], results=[b"6", b""]
                    ),
                )
            ]
        )
    ),
    "results in columns": lambda: job_pb2.StreamResultsResponse(
        succeeded=[
            job_pb2.SucceededTasks(
                worker_id="node7", indices=[3, 300], attempts=[1, 2], run_us=[9, 0], results=[b"6", b""]
            )
        ],
        cursor=7,
    ),
    "verdicts": lambda: report_queue_pb2.PushReportsResponse(
        verdicts=[
            report_queue_pb2.Verdict(code=report_queue_pb2.VERDICT_CODE_ACCEPTED, report_nos=[1, 2, 300]),
            report_queue_pb2.Verdict(
                code=report_queue_pb2.VERDICT_CODE_RETRY,
                report_nos=[4],
                retry_after=Duration(seconds=1),
                detail="later",
            ),
        ]
    ),
    "write header": lambda: blob_pb2.WriteBlobRequest(
        header=blob_pb2.WriteBlobHeader(key="a/b", size_bytes=0, sha256=bytes(32))
    ),
    "write chunk": lambda: blob_pb2.WriteBlobRequest(chunk=b"abc"),
    "read blob": lambda: blob_pb2.ReadBlobRequest(key="a/b", offset=1, length=300),
}


def golden() -> dict[str, bytes]:
    """The committed bytes by name."""
    lines = (Path(__file__).parent / "golden.txt").read_text().splitlines()
    return {name: bytes.fromhex(text) for name, _, text in (line.partition(": ") for line in lines)}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_bytes_of_a_message_do_not_change(name: str) -> None:
    message = SAMPLES[name]()
    sent = message.SerializeToString(deterministic=True)
    assert golden().get(name, b"").hex() == sent.hex(), f"the bytes of today:\n{name}: {sent.hex()}"
    assert type(message).FromString(golden()[name]) == message


def test_there_are_no_golden_bytes_without_a_sample() -> None:
    assert set(golden()) == set(SAMPLES)


def test_the_status_details_of_an_error_do_not_change() -> None:
    code, text, details = wire.error_to_status(errors.Overloaded("full", 1.5))
    assert (code.value[0], text) == (8, "full")
    assert details.hex() == (
        "0808120466756c6c1a41"
        "0a28747970652e676f6f676c65617069732e636f6d2f676f6f676c652e7270632e4572726f72496e666f"
        "12150a0a4f5645524c4f414445441207616e746661726d"
        "1a360a28747970652e676f6f676c65617069732e636f6d2f676f6f676c652e7270632e5265747279496e666f120a0a0808011080cab5ee01"
    )
