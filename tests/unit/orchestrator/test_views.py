"""What people and clients see: nothing counts as ended before it is durable, and results come in the order of their records."""

from __future__ import annotations

import asyncio

import pytest
from orchestrator_harness import Harness, Worker

from antfarm.errors import Overloaded
from antfarm.model import (
    BATCH_BYTES_MAX,
    BlobRef,
    Failure,
    FailureClass,
    JobState,
    SessionId,
    TaskState,
    VerdictCode,
)
from antfarm.v1 import work_queue_pb2
from antfarm.wire import result_from_wire, results_in
from services.orchestrator.core import effects, waiting
from services.orchestrator.core.health import probation_text
from services.orchestrator.core.records import EndedTask, JobCancelled, Record, TasksEnded
from services.orchestrator.core.state import Probation
from services.orchestrator.runtime.logbook import Logbook
from services.orchestrator.runtime.results import ResultCache, first_part
from services.orchestrator.runtime.sessions import FRAMES_WAITING_MAX, Session
from services.orchestrator.runtime.views import (
    all_durable,
    job_status,
    result_seqs,
    results_of,
    task_state,
)
from services.orchestrator.servicers import outcomes
from services.orchestrator.servicers.outcomes import RESULTS_IN_MESSAGE_MAX


def done(farm: Harness, count: int = 2) -> Worker:
    worker = farm.worker(slots=count)
    farm.create("j", count)
    worker.take()
    return worker


def test_a_job_has_ended_when_its_last_outcome_is_durable(farm: Harness) -> None:
    worker = done(farm)
    job = farm.job("j")
    farm.autocommit = False
    worker.send("j", 1, [worker.outcome(token) for token in list(worker.held)])
    assert job.state is JobState.SUCCEEDED
    status = job_status(job, durable_seq=farm.durable_seq, wall_ns=farm.wall_ns)
    assert (status.state, status.duration_s) == (JobState.RUNNING, None)
    assert task_state(job, 0, durable_seq=farm.durable_seq) is TaskState.ACTIVE
    assert result_seqs(job, 0, farm.durable_seq, None) == []
    assert not all_durable(job, [0], farm.durable_seq)
    farm.commit()
    status = job_status(job, durable_seq=farm.durable_seq, wall_ns=farm.wall_ns)
    assert status.state is JobState.SUCCEEDED
    assert status.duration_s is not None
    assert dict(status.counts) == {TaskState.SUCCEEDED: 2}
    assert task_state(job, 0, durable_seq=farm.durable_seq) is TaskState.SUCCEEDED
    assert all_durable(job, [0, 1], farm.durable_seq)
    assert not all_durable(job, [2], farm.durable_seq)
    worker.verdicts()


def test_results_are_found_behind_a_cursor_and_by_index(farm: Harness) -> None:
    worker = done(farm, 4)
    for token in list(worker.held):
        worker.report(token)
    job = farm.job("j")
    seqs = list(job.result_seqs)
    assert len(seqs) == 4
    assert result_seqs(job, 0, farm.durable_seq, None) == seqs
    assert result_seqs(job, seqs[1], farm.durable_seq, None) == seqs[2:]
    assert result_seqs(job, 0, farm.durable_seq, [3, 1, 99]) == [seqs[1], seqs[3]]
    assert result_seqs(job, seqs[1], farm.durable_seq, [3, 1]) == [seqs[3]]
    assert result_seqs(job, 0, seqs[0], None) == seqs[:1]


def test_a_cancel_is_the_outcome_of_those_that_it_ended(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", 4)
    worker.take()
    worker.run()
    worker.take()
    farm.cancel_task("j", 3)
    farm.cancel("j", "enough")
    farm.drop()
    job = farm.job("j")
    record = farm.journal.read([job.cancelled_seq])[0][1]
    assert [result.index for result in results_of(record, job, None)] == [1, 2]
    assert [result.index for result in results_of(record, job, frozenset([2, 0, 9]))] == [2]
    (result,) = results_of(record, job, frozenset([1]))
    assert (result.state, result.failure and result.failure.message) == (TaskState.CANCELLED, "enough")


def ended(count: int, result: bytes = b"r") -> Record:
    tasks = [EndedTask(index=i, state=TaskState.SUCCEEDED, epoch=1, attempt=1, result=result) for i in range(count)]
    return TasksEnded(job=1, worker_id="w", ended=tasks)


@pytest.mark.parametrize("columns", [False, True])
def test_messages_are_bounded_and_their_cursors_resume_without_a_gap(farm: Harness, columns: bool) -> None:
    farm.create("j", 1)
    job = farm.job("j")
    found = [(10, ended(3)), (11, ended(RESULTS_IN_MESSAGE_MAX * 2)), (15, ended(1))]
    messages = list(outcomes.messages(found, job, None, 7, columns=columns, last=True))
    assert [len(results_in(message)) for message in messages] == [RESULTS_IN_MESSAGE_MAX] * 2 + [4]
    assert [message.cursor for message in messages] == [10, 10, 15]
    assert [message.last for message in messages] == [False, False, True]
    big = list(outcomes.messages([(20, ended(40, b"x" * 60_000))], job, None, 15, columns=columns, last=False))
    assert not any(message.last for message in big)
    assert [message.cursor for message in big] == [15] * (len(big) - 1) + [20]
    assert [result.index for message in big for result in results_in(message)] == list(range(40))
    assert max(message.ByteSize() for message in big) <= BATCH_BYTES_MAX + 1_000
    assert min(message.ByteSize() for message in big[:-1]) > BATCH_BYTES_MAX - 61_000
    assert list(outcomes.messages([], job, None, 9, columns=columns, last=True)) == []


def test_columns_say_what_messages_of_their_own_say(farm: Harness) -> None:
    """Of several workers, with what only a message of its own can say between them, and of the wanted tasks alone."""
    farm.create("j", 1)
    job = farm.job("j")
    blob = BlobRef(key="k", size_bytes=1, sha256=bytes(32))
    failure = Failure(failure_class=FailureClass.APP, kind="k", message="m")
    of_first = [
        EndedTask(index=7, state=TaskState.SUCCEEDED, epoch=1, attempt=2, result=b"7", run_us=1_500_000),
        EndedTask(index=3, state=TaskState.SUCCEEDED, epoch=1, attempt=1, result=b"3", outputs=(blob,)),
        EndedTask(index=4, state=TaskState.FAILED, epoch=1, attempt=3, failure=failure),
        EndedTask(index=1, state=TaskState.SUCCEEDED, epoch=1, attempt=1, result=b""),
    ]
    of_second = [EndedTask(index=2, state=TaskState.SUCCEEDED, epoch=2, attempt=1, result=b"2", run_us=9)]
    found: list[tuple[int, Record]] = [
        (10, TasksEnded(job=1, worker_id="w1", ended=of_first)),
        (11, TasksEnded(job=1, worker_id="w2", ended=of_second)),
    ]
    for wanted in (None, frozenset([7, 4, 2])):
        (alone,) = outcomes.messages(found, job, wanted, 7, columns=False, last=True)
        (packed,) = outcomes.messages(found, job, wanted, 7, columns=True, last=True)
        both = [
            sorted((result_from_wire(one) for one in results_in(message)), key=lambda result: result.index)
            for message in (alone, packed)
        ]
        assert both[0] == both[1]
        assert [result.index for result in both[0]] == ([1, 2, 3, 4, 7] if wanted is None else [2, 4, 7])
        assert not alone.succeeded
        assert [(list(group.indices), group.worker_id) for group in packed.succeeded] == [
            ([7, 1] if wanted is None else [7], "w1"),
            ([2], "w2"),
        ]


def test_the_cache_keeps_the_newest_within_its_bound() -> None:
    cache = ResultCache(bytes_max=10_000)
    cache.add([(seq, ended(1, b"x" * 3_000)) for seq in range(1, 6)])
    assert [seq for seq in range(1, 6) if cache.get(seq) is not None] == [3, 4, 5]
    cache.add([(6, JobCancelled(job=1, cause=""))])
    assert cache.get(6) == JobCancelled(job=1, cause="")
    cache.add([(7, ended(1, b"x" * 20_000))])
    assert cache.get(7) is None


def test_a_reader_keeps_a_part_of_some_size_and_one_record_at_least() -> None:
    small = [(seq, ended(10)) for seq in range(1, 33)]
    assert first_part(small) == small
    large = [(seq, ended(16, b"x" * 60_000)) for seq in range(1, 33)]
    assert first_part(large) == large[:4]
    assert first_part([(7, ended(1, b"x" * 5_000_000)), *small]) == [(7, ended(1, b"x" * 5_000_000))]
    assert first_part([]) == []


def test_logs_are_kept_from_their_end_and_of_the_latest_tasks(farm: Harness) -> None:
    farm.create("j", 3)
    book = Logbook(farm.state.by_id, tasks_max=2)
    book.add(("j", 0), "a" * 70_000)
    cursor, text = book.read(("j", 0), 0)
    assert (cursor, len(text)) == (70_000, 64 * 1024)
    news = book.news
    book.add(("j", 0), "end")
    assert news.is_set()
    assert book.read(("j", 0), cursor) == (70_003, "end")
    assert book.read(("j", 0), 70_003) == (70_003, "")
    book.add(("j", 1), "x")
    book.add(("j", 2), "y")
    assert book.read(("j", 0), 0) == (0, "")


def test_who_follows_a_log_that_was_let_go_of_misses_nothing_of_what_comes(farm: Harness) -> None:
    farm.create("j", 2)
    book = Logbook(farm.state.by_id, tasks_max=1)
    book.add(("j", 0), "hello world")
    cursor, _ = book.read(("j", 0), 0)
    book.add(("j", 1), "x")
    for text in ("hi there", " and more than before"):
        book.add(("j", 0), text)
        cursor, seen = book.read(("j", 0), cursor)
        assert seen == text
    assert book.read(("j", 0), 0)[1] == "hi there and more than before"


def test_a_log_goes_with_its_job_and_is_not_that_of_another_job_of_its_id(farm: Harness) -> None:
    farm.create("j", 1)
    book = Logbook(farm.state.by_id)
    book.add(("j", 0), "old")
    farm.cancel("j")
    farm.purge("j")
    assert book.read(("j", 0), 0) == (0, "")
    farm.create("j", 1)
    assert book.read(("j", 0), 0) == (0, "")
    book.add(("j", 0), "new")
    assert book.read(("j", 0), 0)[1] == "new"


async def test_nothing_leaves_before_the_welcome() -> None:
    session = Session(SessionId("s"))
    session.send(frame(2))
    session.send(frame(3))
    session.welcome(frame(1))
    session.send(frame(4))
    assert [number(f) for f in await session.frames()] == [1, 2, 3, 4]


async def test_verdicts_that_gather_are_merged_by_code() -> None:
    session = Session(SessionId("s"))
    for no, code in ((1, 1), (2, 2), (3, 1)):
        session.send_verdicts(
            effects.SendVerdicts(session=session.id, after=0, code=VerdictCode(code), report_nos=[no])
        )
    response = await session.verdicts()
    assert [(v.code, list(v.report_nos)) for v in response.verdicts] == [(1, [1, 3]), (2, [2])]


async def test_a_worker_that_does_not_read_loses_its_session_and_not_our_memory() -> None:
    session = Session(SessionId("s"))
    session.welcome(frame(0))
    for i in range(FRAMES_WAITING_MAX * 2):
        session.send(frame(i))
    assert session._frames == []
    assert "does not read" in str(session.error)


def frame(beat: int) -> work_queue_pb2.PullTasksResponse:
    return work_queue_pb2.PullTasksResponse(heartbeat_ack=work_queue_pb2.HeartbeatAck(number=beat))


def number(message: work_queue_pb2.PullTasksResponse) -> int:
    return message.heartbeat_ack.number


async def test_the_two_streams_of_a_session_end_with_errors_of_their_own() -> None:
    session = Session(SessionId("s"))
    error = Overloaded("full", retry_after_s=2.0)
    session.end(error)
    ends = [(await asyncio.gather(wait(), return_exceptions=True))[0] for wait in (session.frames, session.verdicts)]
    assert [(type(end), str(end), end.retry_after_s) for end in ends] == [(Overloaded, "full", 2.0)] * 2
    assert len({id(end) for end in (error, *ends)}) == 3
    assert error.__traceback__ is None


def test_what_a_worker_is_reserved_for_is_said(farm: Harness) -> None:
    worker = farm.worker(slots=2)
    farm.create("s", 1)
    for _ in range(2):
        worker.take()
        worker.die()
    farm.create("other", 2)
    farm.wait(4, beating=[worker])
    (task,) = farm.state.alone
    assert waiting.reservation(farm.state, task) == "becomes empty for s/0, which is suspected of bringing workers down"
    worker.run(worker.take())
    assert waiting.reservation(farm.state, task) == "runs s/0, which is suspected of bringing workers down"
    farm.drop()


def test_what_happens_next_to_who_is_on_probation_is_said() -> None:
    probation = Probation(cause="three failed", pause_ns=30, due_ns=30_000_000_000)
    assert probation_text(probation, 0) == "three failed; one task is tried in 30s"
    assert probation_text(probation, 31_000_000_000) == "three failed; the next task is tried"
    probation.canary, probation.canary_on = (1, 0), "w1"
    assert probation_text(probation, 31_000_000_000) == "three failed; one task is being tried on w1"
