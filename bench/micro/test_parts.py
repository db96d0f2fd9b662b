"""The parts of one task's way through the orchestrator, in the order of that way."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from antfarm import wire
from antfarm.model import Ending, JobSpec, TaskState, TaskTemplate
from antfarm.v1 import job_pb2, report_queue_pb2, work_queue_pb2
from bench.micro.conftest import TASKS
from services.orchestrator.core import events, records
from services.orchestrator.core.machine import Core
from services.orchestrator.core.turn import CoreConfig
from services.orchestrator.journal import codec
from services.orchestrator.journal.sqlite import SqliteJournal
from services.orchestrator.servicers.queues import _outcome

PAYLOAD = b"sixteen bytes ok"
ENDED = [
    records.EndedTask(index=index, state=TaskState.SUCCEEDED, epoch=1, attempt=1, result=PAYLOAD, run_us=12)
    for index in range(TASKS)
]
OUTCOMES = [
    events.Outcome(report_no=index + 1, index=index, attempt=1, ending=Ending.SUCCEEDED, result=PAYLOAD, run_us=12)
    for index in range(TASKS)
]


class _Farm:
    """A core with a worker that takes a batch at once."""

    def __init__(self, number: int = 0) -> None:
        self.core, self.now = Core(CoreConfig(), random.Random(1)), 1
        self.job_id = f"j{number}"
        self.core.handle(events.Recover(wall_ns=1), self.now)
        self.core.handle(
            events.Attach(
                session="s",
                worker_id="w",
                incarnation=b"i",
                protocol_major=1,
                slots=1,
                window=TASKS,
                task_types=frozenset({"t"}),
                dial=1,
            ),
            self.now,
        )

    def submit(self) -> None:
        """A job of a batch."""
        spec = JobSpec(template=TaskTemplate(type="t"))
        self.core.handle(
            events.CreateJob(request=1, job_id=self.job_id, spec=spec, payloads=[PAYLOAD] * TASKS, close=True), self.now
        )

    def place(self) -> None:
        """Give it out."""
        self.core.place(self.now)

    def report(self) -> None:
        """All succeed."""
        self.core.handle(events.Outcomes(session="s", job_id=self.job_id, epoch=1, outcomes=OUTCOMES), self.now)


def _prepared(*steps: str) -> Any:
    def setup() -> tuple[tuple[_Farm], dict[str, Any]]:
        farm = _Farm()
        for step in steps:
            getattr(farm, step)()
        return (farm,), {}

    return setup


def test_core_takes_a_submission(per_task: Any) -> None:
    per_task(_Farm.submit, _prepared())


def test_core_places(per_task: Any) -> None:
    per_task(_Farm.place, _prepared("submit"))


def test_core_takes_reports(per_task: Any) -> None:
    per_task(_Farm.report, _prepared("submit", "place"))


def test_assignments_to_the_wire(per_task: Any) -> None:
    template = wire.template_to_wire(TaskTemplate(type="t"))

    def build() -> bytes:
        frame = work_queue_pb2.PullTasksResponse()
        add = frame.tasks.groups.add(job_id="j", epoch=1, template=template).assignments.add
        for index in range(TASKS):
            add(index=index, attempt=1, payload=PAYLOAD)
        return frame.SerializeToString()

    per_task(build)


def test_reports_from_the_wire(per_task: Any) -> None:
    frame = report_queue_pb2.PushReportsRequest()
    group = frame.reports.outcomes.add(job_id="j", epoch=1)
    for index in range(TASKS):
        group.outcomes.add(report_no=index + 1, index=index, attempt=1, ending=1, result=PAYLOAD, run_us=12)
    content = frame.SerializeToString()

    def read() -> int:
        message = report_queue_pb2.PushReportsRequest.FromString(content)
        return sum(len([_outcome(one) for one in group.outcomes]) for group in message.reports.outcomes)

    assert read() == TASKS
    per_task(read)


def test_results_to_the_wire(per_task: Any) -> None:
    def build() -> bytes:
        message = job_pb2.StreamResultsResponse()
        for ended in ENDED:
            wire.ended_to_wire(ended, "w", message.results.add)
        return message.SerializeToString()

    per_task(build)


def test_outcomes_to_a_record(per_task: Any) -> None:
    record = records.TasksEnded(job=1, worker_id="w", ended=ENDED)
    per_task(lambda: codec.encode(record))


def test_outcomes_from_a_record(per_task: Any) -> None:
    kind, body = codec.encode(records.TasksEnded(job=1, worker_id="w", ended=ENDED))
    per_task(lambda: codec.decode(kind, body))


def test_journal_commits_outcomes(per_task: Any, tmp_path: Path) -> None:
    """One record of a batch a commit, synced: what the disk costs when batches are no larger."""
    journal = SqliteJournal(tmp_path)
    numbers = iter(range(1, 1_000_000))
    record = records.TasksEnded(job=1, worker_id="w", ended=ENDED)
    per_task(lambda: journal.append([(next(numbers), record)]))
    journal.close()
