"""What clients get of a running orchestrator over a real socket: jobs, results, tasks, workers, the server itself."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from scripted import (
    FAILED,
    PATIENCE_S,
    RELEASED,
    SUCCEEDED,
    Running,
    counts,
    orchestrator,
    payloads_of,
    poll,
    refusal,
    to_the_end,
)

from antfarm import net, wire
from antfarm.errors import Conflict, Gap, Internal, Unavailable, UserError, Weather
from antfarm.model import PAYLOAD_BYTES_MAX
from antfarm.v1 import common_pb2, job_pb2, job_pb2_grpc, report_queue_pb2, system_pb2, task_pb2, worker_pb2
from services.orchestrator.journal.base import JournalBroken
from services.orchestrator.runtime.driver import Driver
from services.orchestrator.runtime.results import ResultCache
from services.orchestrator.servicers import jobs as servicer
from services.orchestrator.settings import OrchestratorSettings

pytestmark = pytest.mark.slow

KEEPS_PAYLOADS = {"CreateJobRequest", "AppendTasksRequest", "CreateJob", "AppendTasks"}
"""Messages and events."""


@pytest.fixture
async def farm(tmp_path: Path) -> AsyncIterator[Running]:
    async with orchestrator(tmp_path / "state") as running:
        yield running


def batches(job_id: str, count: int, size: int, *, first: int = 0, close: bool = True) -> list[Any]:
    """AppendTasks batches of `size` tasks."""
    return [
        job_pb2.AppendTasksRequest(
            job_id=job_id,
            first_index=start,
            payloads=payloads_of(min(size, count - start), start),
            close=close and start + size >= count,
        )
        for start in range(first, count, size)
    ]


async def append(farm: Running, requests: list[Any]) -> int:
    answer = await farm.jobs.AppendTasks(iter(requests), timeout=PATIENCE_S)
    return int(answer.task_count)


# ---- submission ------------------------------------------------------------------------------------------------------


async def test_ten_thousand_tasks_in_batches_run_and_are_read_in_any_way(farm: Running) -> None:
    await farm.create("big", 0, close=False)
    assert await append(farm, batches("big", 10_000, 700)) == 10_000
    job = await farm.job("big")
    assert (job.state, job.task_count, counts(job)) == (job_pb2.JOB_STATE_RUNNING, 10_000, {"QUEUED": 10_000})

    statuses: list[job_pb2.Job] = []

    async def watch() -> None:
        call = farm.jobs.WatchJob(job_pb2.WatchJobRequest(job_id="big"), timeout=PATIENCE_S)
        statuses.extend([message.job async for message in call])

    watching = asyncio.create_task(watch())
    following = asyncio.create_task(farm.messages("big", follow=True))
    worker = farm.worker(slots=500, window=2_000)
    await worker.attach()
    await worker.work(10_000)
    messages = await following
    await watching
    await worker.drop()

    assert len(worker.given) == len(set(worker.given)) == 10_000
    followed = [result for message in messages for result in message.results]
    assert {result.index: result.result for result in followed} == {i: b"%d" % i for i in range(10_000)}
    assert len(followed) == 10_000
    assert {(result.state, result.attempt, result.worker_id) for result in followed} == {
        (common_pb2.TASK_STATE_SUCCEEDED, 1, "w1")
    }
    done = [counts(status).get("SUCCEEDED", 0) for status in statuses]
    assert done == sorted(done)
    assert statuses[-1].state == job_pb2.JOB_STATE_SUCCEEDED
    assert counts(statuses[-1]) == {"SUCCEEDED": 10_000}
    assert all(status.state == job_pb2.JOB_STATE_RUNNING for status in statuses[:-1])

    again = await farm.messages("big")
    assert [r.index for m in again for r in m.results] == [r.index for r in followed]
    assert all(len(message.results) <= 4_096 for message in again)
    middle = messages[len(messages) // 2].cursor
    rest = [r.index for m in messages if m.cursor > middle for r in m.results]
    assert [r.index for r in await farm.results("big", cursor=middle)] == rest
    assert await farm.results("big", cursor=messages[-1].cursor) == []
    wanted = {3, 4_711, 9_999}
    assert {r.index for r in await farm.results("big", indices=wanted)} == wanted
    assert [r.index for r in await farm.results("big", indices=[7, 10_000, 1 << 40], follow=True)] == [7]


async def test_an_appending_that_broke_is_resumed_and_changes_nothing_twice(farm: Running) -> None:
    await farm.create("j", 0, close=False)
    pieces = batches("j", 100, 10)
    call = farm.jobs.AppendTasks(timeout=PATIENCE_S)
    for piece in pieces[:4]:
        await call.write(piece)

    async def arrived() -> bool:
        return (await farm.job("j")).task_count == 40

    await poll(arrived)
    call.cancel()
    # From before the break on: what is there already is recognised.
    assert await append(farm, batches("j", 100, 30, first=30)) == 100
    assert await append(farm, pieces) == 100
    payloads = [
        (await farm.tasks.GetTask(task_pb2.GetTaskRequest(job_id="j", index=index))).payload
        for index in (0, 35, 39, 40, 99)
    ]
    assert payloads == [b"[0]", b"[35]", b"[39]", b"[40]", b"[99]"]


async def test_the_same_creation_again_answers_existed_and_keeps_one_job(farm: Running) -> None:
    first = await farm.create("j", 3)
    second = await farm.create("j", 3)
    assert (first.existed, second.existed) == (False, True)
    assert second.job.task_count == 3
    made = (await farm.create("", 1)).job.job_id
    assert made.startswith("job-")
    assert (await farm.job(made)).task_count == 1


async def test_what_is_wrong_with_a_submission_is_told_by_its_reason(farm: Running) -> None:
    await farm.create("open", 2, close=False)
    await farm.create("closed", 2)
    piece = job_pb2.AppendTasksRequest
    cases: list[tuple[Any, str]] = [
        (farm.create("closed", 2, type="another"), "CONFLICT"),
        (farm.create("closed", [b"[7]"]), "CONFLICT"),
        (farm.create("closed", 3), "JOB_CLOSED"),
        (farm.create("a job", 1), "INVALID_FIELD"),
        (farm.create("../up", 1), "INVALID_FIELD"),
        (farm.create("up/j/0/tasks", 1), "INVALID_FIELD"),
        (farm.create("j", 1, type=""), "INVALID_FIELD"),
        (farm.create("j", 1, dependencies=[common_pb2.Dependency(job_id="closed")]), "INVALID_FIELD"),
        (
            farm.create(
                "j", 1, dependencies=[common_pb2.Dependency(job_id="none", kind=common_pb2.DEPENDENCY_KIND_ALL)]
            ),
            "DEPENDENCY_NOT_FOUND",
        ),
        (farm.create("j", [bytes(PAYLOAD_BYTES_MAX + 1)]), "PAYLOAD_TOO_LARGE"),
        (farm.create("j", 1, common_payload=bytes(PAYLOAD_BYTES_MAX + 1)), "PAYLOAD_TOO_LARGE"),
        (append(farm, [piece(job_id="open", first_index=3, payloads=[b"1"])]), "GAP"),
        (append(farm, [piece(job_id="open", first_index=0, payloads=[b"1"])]), "CONFLICT"),
        (append(farm, [piece(job_id="closed", first_index=2, payloads=[b"1"])]), "JOB_CLOSED"),
        (append(farm, [piece(job_id="none", payloads=[b"1"])]), "JOB_NOT_FOUND"),
        (append(farm, [piece(job_id="open"), piece(job_id="closed")]), "INVALID_FIELD"),
        (append(farm, []), "JOB_NOT_FOUND"),
    ]
    for number, (call, reason) in enumerate(cases):
        try:
            error = await refusal(call)
        except AssertionError:
            raise AssertionError(f"case {number} was not refused {reason}") from None
        assert error.reason == reason, error
        assert isinstance(error, UserError)
        assert "\n" not in str(error)
    assert [(await farm.job(job_id)).task_count for job_id in ("open", "closed")] == [2, 2]
    assert (await refusal(farm.job("j"))).reason == "JOB_NOT_FOUND"


async def test_a_batch_is_taken_whole_or_not_at_all(farm: Running) -> None:
    await farm.create("j", 0, close=False)
    bad = [b"[0]", bytes(PAYLOAD_BYTES_MAX + 1), b"[2]"]
    error = await refusal(append(farm, [job_pb2.AppendTasksRequest(job_id="j", payloads=bad)]))
    assert error.reason == "PAYLOAD_TOO_LARGE"
    assert (await farm.job("j")).task_count == 0


async def test_a_message_beyond_the_limit_is_refused_by_the_transport_and_others_are_served(farm: Running) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await farm.create("j", [bytes(60_000)] * 80)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await farm.create("j", [bytes(60_000)] * 60)


# ---- jobs ------------------------------------------------------------------------------------------------------------


async def test_jobs_are_listed_in_pages_newest_first(farm: Running) -> None:
    for number in range(7):
        await farm.create(f"j{number}", 1, name="odd" if number % 2 else "even")

    async def pages(**fields: Any) -> list[list[str]]:
        found, token = [], ""
        while True:
            request = job_pb2.ListJobsRequest(page_token=token, **fields)
            answer = await farm.jobs.ListJobs(request)
            found.append([job.job_id for job in answer.jobs])
            token = answer.next_page_token
            if not token:
                return found

    assert await pages(page_size=3) == [["j6", "j5", "j4"], ["j3", "j2", "j1"], ["j0"]]
    assert await pages(name="odd", page_size=2) == [["j5", "j3"], ["j1"]]
    assert await pages(name="none") == [[]]
    for token in ("x", "²", "-1", "9" * 5_000):
        error = await refusal(farm.jobs.ListJobs(job_pb2.ListJobsRequest(page_token=token)))
        assert error.reason == "INVALID_FIELD", token


async def test_a_paused_job_is_not_given_out_until_it_is_resumed(farm: Running) -> None:
    await farm.create("j", 2)
    answer = await farm.jobs.PauseJob(job_pb2.PauseJobRequest(job_id="j"))
    assert answer.job.paused
    worker = farm.worker(slots=2)
    await worker.attach()
    await worker.beat()
    assert worker.given == []
    await farm.restart()
    assert (await farm.job("j")).paused
    await worker.attach()
    await worker.beat()
    assert worker.given == []
    answer = await farm.jobs.ResumeJob(job_pb2.ResumeJobRequest(job_id="j"))
    assert not answer.job.paused
    await worker.work(2)
    assert (await farm.job("j")).state == job_pb2.JOB_STATE_SUCCEEDED
    await worker.drop()


async def test_a_failed_job_is_retried_as_a_new_one_and_an_ended_one_is_purged(farm: Running) -> None:
    await farm.create("j", 3)
    worker = farm.worker(slots=3)
    await worker.attach()
    first, second, third = await worker.tasks(3)
    failure = common_pb2.Failure(failure_class=common_pb2.FAILURE_CLASS_APP, kind="ValueError", message="no")
    assert await worker.report(first) == ["ACCEPTED"]
    assert (await refusal(farm.jobs.PurgeJob(job_pb2.PurgeJobRequest(job_id="j")))).reason == "JOB_NOT_ENDED"
    assert await worker.report(second, third, ending=FAILED, failure=failure) == ["ACCEPTED"] * 2
    job = await farm.job("j")
    assert (job.state, counts(job)) == (job_pb2.JOB_STATE_FAILED, {"SUCCEEDED": 1, "FAILED": 2})

    request = job_pb2.RetryJobRequest(job_id="j", new_job_id="j-again")
    again = (await farm.jobs.RetryJob(request)).job
    assert (again.task_count, again.retry_of) == (2, "j")
    assert (await farm.jobs.RetryJob(request)).job.task_count == 2
    assert sorted(worker.held[token] for token in await worker.tasks(2)) == sorted(
        [b"[%d]" % t[1] for t in (second, third)]
    )
    await worker.work(2)
    assert (await farm.job("j-again")).state == job_pb2.JOB_STATE_SUCCEEDED
    error = await refusal(farm.jobs.RetryJob(job_pb2.RetryJobRequest(job_id="j-again", new_job_id="x")))
    assert error.reason == "NOTHING_TO_RETRY"

    await farm.jobs.PurgeJob(job_pb2.PurgeJobRequest(job_id="j"))
    for call in (farm.job("j"), farm.results("j"), farm.jobs.WatchJob(job_pb2.WatchJobRequest(job_id="j"))):
        assert (await refusal(call)).reason == "JOB_NOT_FOUND"
    await farm.restart()
    assert (await refusal(farm.job("j"))).reason == "JOB_NOT_FOUND"
    assert len(await farm.results("j-again")) == 2
    await worker.drop()


async def test_a_cancelled_job_ends_at_once_and_its_worker_is_told(farm: Running) -> None:
    await farm.create("j", 4)
    worker = farm.worker(slots=2)
    await worker.attach()
    running = await worker.tasks(2)
    answer = await farm.jobs.CancelJob(job_pb2.CancelJobRequest(job_id="j", cause="enough"))
    assert answer.job.state == job_pb2.JOB_STATE_CANCELLED
    assert (answer.job.cause, counts(answer.job)) == ("enough", {"CANCELLED": 4})
    await worker.until(lambda: set(worker.revoked) == set(running))
    # A success that was on its way counts no more.
    assert await worker.report(*running) == ["SUPERSEDED"] * 2
    assert [(r.state, r.failure.message) for r in await farm.results("j", follow=True)] == [
        (common_pb2.TASK_STATE_CANCELLED, "enough")
    ] * 4
    assert len(worker.given) == 2
    await worker.drop()


async def test_a_watch_and_a_followed_stream_end_when_the_server_stops_and_are_resumed(farm: Running) -> None:
    await farm.create("j", 2)
    worker = farm.worker()
    await worker.attach()
    await worker.work(1)
    call = farm.jobs.StreamResults(job_pb2.StreamResultsRequest(job_id="j", follow=True), timeout=PATIENCE_S)
    message = await call.read()
    watch = farm.jobs.WatchJob(job_pb2.WatchJobRequest(job_id="j"), timeout=PATIENCE_S)
    assert counts((await watch.read()).job)["SUCCEEDED"] == 1
    channel = farm.channel
    farm._channel = net.open_channel(farm.address, None)  # the old one lives on, to see how its calls end
    ended = [asyncio.create_task(refusal(to_the_end(each))) for each in (call, watch)]
    await farm.restart()
    for error in await asyncio.gather(*ended):
        assert isinstance(error, Weather)
    await channel.close()
    await worker.attach()
    await worker.work(1)
    rest = await farm.results("j", cursor=message.cursor, follow=True)
    assert {rest[0].index, message.results[0].index} == {0, 1}
    assert len(rest) == 1
    await worker.drop()


async def test_results_of_a_job_that_is_expected_are_asked_for_before_it_is_there(
    farm: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = farm.jobs.StreamResults(
        job_pb2.StreamResultsRequest(job_id="j", follow=True, expected=True), timeout=PATIENCE_S
    )
    reading = asyncio.create_task(call.read())
    await farm.create("other", 0)  # a commit of another job is not what it waits for
    assert not reading.done()
    await farm.create("j", 1)
    worker = farm.worker()
    await worker.attach()
    await worker.work(1)
    assert [result.index for result in (await reading).results] == [0]
    assert await call.read() is grpc.aio.EOF
    # One that does not come is not waited for without end.
    monkeypatch.setattr(servicer, "EXPECTED_S", 0.05)
    assert (await refusal(farm.results("none", follow=True, expected=True))).reason == "JOB_NOT_FOUND"
    monkeypatch.undo()
    # Nor is the end of the program.
    waits, next_commit = asyncio.Event(), Driver.next_commit

    async def noted(driver: Driver) -> None:
        waits.set()
        await next_commit(driver)

    monkeypatch.setattr(Driver, "next_commit", noted)
    channel = farm.channel
    farm._channel = net.open_channel(farm.address, None)  # the old one lives on, to see how its call ends
    call = job_pb2_grpc.JobServiceStub(channel).StreamResults(
        job_pb2.StreamResultsRequest(job_id="none", follow=True, expected=True)
    )
    ended = asyncio.create_task(refusal(to_the_end(call)))
    await asyncio.wait_for(waits.wait(), PATIENCE_S)
    await farm.restart()
    assert isinstance(await ended, Weather)
    await channel.close()
    await worker.drop()


async def test_a_followed_stream_of_some_tasks_ends_with_the_last_of_them_also_when_it_is_resumed(
    farm: Running,
) -> None:
    await farm.create("j", 3, close=False)
    worker = farm.worker()
    await worker.attach()
    await worker.work(2)
    messages = await farm.messages("j", indices=[0, 1], follow=True)
    assert sorted(r.index for m in messages for r in m.results) == [0, 1]
    assert await farm.results("j", indices=[0, 1], follow=True, cursor=messages[-1].cursor) == []
    await worker.drop()


async def test_results_of_a_job_that_is_purged_while_they_are_read_end_with_that_and_not_as_if_they_were_all(
    farm: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await farm.create("j", 3)
    worker = farm.worker()
    await worker.attach()
    await worker.work(3)
    monkeypatch.setattr(servicer, "RECORDS_AT_ONCE", 1)
    first, second, purged = asyncio.Event(), asyncio.Event(), asyncio.Event()
    read_records = Driver.read_records

    async def held_up(driver: Driver, seqs: list[int]) -> Any:
        if first.is_set():
            second.set()
            await purged.wait()
        first.set()
        return await read_records(driver, seqs)

    monkeypatch.setattr(Driver, "read_records", held_up)
    farm.orchestrator.driver.results = ResultCache(bytes_max=0)  # they were long ago
    call = farm.jobs.StreamResults(job_pb2.StreamResultsRequest(job_id="j"), timeout=PATIENCE_S)
    assert [result.result for result in (await call.read()).results] == [b"0"]
    await asyncio.wait_for(second.wait(), PATIENCE_S)
    await farm.jobs.PurgeJob(job_pb2.PurgeJobRequest(job_id="j"))
    purged.set()
    error = await refusal(to_the_end(call))
    assert (error.reason, str(error)) == ("JOB_NOT_FOUND", "job j was purged")
    await worker.drop()


# ---- tasks -----------------------------------------------------------------------------------------------------------


async def test_tasks_are_looked_at_listed_and_cancelled_one_by_one(farm: Running) -> None:
    await farm.create("j", 5)
    worker = farm.worker(slots=2)
    await worker.attach()
    done, active = await worker.tasks(2)
    await worker.credit(0)
    await worker.beat()
    await worker.report(done)
    await worker.say(active, progress=0.25, progress_text="a quarter", log="first line\n")

    async def get(index: int) -> task_pb2.GetTaskResponse:
        answer: task_pb2.GetTaskResponse = await farm.tasks.GetTask(task_pb2.GetTaskRequest(job_id="j", index=index))
        return answer

    async def heard() -> bool:
        return (await get(active[1])).task.progress == 0.25

    await poll(heard)
    running = await get(active[1])
    assert (running.task.state, running.task.attempt, running.task.worker_id) == (common_pb2.TASK_STATE_ACTIVE, 1, "w1")
    assert (running.task.progress_text, running.payload) == ("a quarter", b"[%d]" % active[1])
    ended = await get(done[1])
    assert (ended.task.result.result, ended.task.result.worker_id) == (b"%d" % done[1], "w1")

    request = task_pb2.CancelTaskRequest(job_id="j", index=4, cause="not that one")
    assert (await farm.tasks.CancelTask(request)).task.state == common_pb2.TASK_STATE_CANCELLED
    request = task_pb2.CancelTaskRequest(job_id="j", index=done[1])
    assert (await farm.tasks.CancelTask(request)).task.state == common_pb2.TASK_STATE_SUCCEEDED

    async def listed(**fields: Any) -> tuple[list[int], str]:
        answer = await farm.tasks.ListTasks(task_pb2.ListTasksRequest(job_id="j", **fields))
        return [task.index for task in answer.tasks], answer.next_page_token

    first, token = await listed(page_size=3)
    assert (first, token) == ([0, 1, 2], "3")
    assert await listed(page_size=3, page_token=token) == ([3, 4], "")
    assert await listed(states=[common_pb2.TASK_STATE_CANCELLED]) == ([4], "")
    assert await listed(states=[common_pb2.TASK_STATE_QUEUED]) == ([2, 3], "")

    for call in (
        farm.tasks.GetTask(task_pb2.GetTaskRequest(job_id="j", index=5)),
        farm.tasks.CancelTask(task_pb2.CancelTaskRequest(job_id="j", index=1 << 40)),
        farm.tasks.StreamTaskLogs(task_pb2.StreamTaskLogsRequest(job_id="j", index=5)),
    ):
        assert (await refusal(call)).reason == "TASK_NOT_FOUND"
    await worker.drop()


async def test_a_list_names_failures_and_their_workers_from_the_record_and_reads_nothing_of_successes(
    farm: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await farm.create("j", 5)
    worker = farm.worker(slots=4)
    await worker.attach()
    first, *others = await worker.tasks(4)
    failure = common_pb2.Failure(
        failure_class=common_pb2.FAILURE_CLASS_PERMANENT,
        kind="ValueError",
        message="x" * 5_000,
        traceback="t" * 9_000,
        log_tail="l" * 60_000,
    )
    await worker.report(first, ending=FAILED, failure=failure)
    await worker.report(*others)
    await worker.drop()
    await farm.tasks.CancelTask(task_pb2.CancelTaskRequest(job_id="j", index=4, cause="not that one"))
    await farm.restart()
    read: list[int] = []
    read_records = Driver.read_records

    async def noted(driver: Driver, seqs: list[int]) -> Any:
        read.extend(seqs)
        return await read_records(driver, seqs)

    monkeypatch.setattr(Driver, "read_records", noted)
    answer = await farm.tasks.ListTasks(task_pb2.ListTasksRequest(job_id="j"))
    assert len(read) == 2, "one record of the failed task, one of the cancelled one"
    assert [(task.worker_id, task.last_failure.kind, task.last_failure.message) for task in answer.tasks] == [
        ("w1", "ValueError", "x" * 300),
        *[("", "", "")] * 3,
        ("", "cancelled", "not that one"),
    ]
    assert (answer.tasks[0].last_failure.traceback, answer.tasks[0].last_failure.log_tail) == ("", "")
    whole = (await farm.tasks.GetTask(task_pb2.GetTaskRequest(job_id="j", index=0))).task.result.failure
    assert len(whole.log_tail) == 60_000


async def test_only_the_holder_of_an_attempt_writes_in_its_tasks_log(farm: Running) -> None:
    await farm.create("j", 1)
    holder, other = farm.worker("holder"), farm.worker("other", types=("none",))
    await holder.attach()
    await other.attach()
    (token,) = await holder.tasks()
    await other.say(token, log="forged\n")
    await other.say(("x" * 100_000, 0, 1, 1), log="of no job\n")
    assert await other.report(token) == ["FENCED"]  # what it said before has been read by now
    words = [report_queue_pb2.Running(job_id="j", index=0, epoch=token[2], attempt=token[3], log="last words\n")]
    outcome = report_queue_pb2.Outcome(
        report_no=1, index=0, attempt=token[3], ending=report_queue_pb2.ENDING_SUCCEEDED, result=b"1"
    )
    group = report_queue_pb2.OutcomeGroup(job_id="j", epoch=token[2], outcomes=[outcome])
    reports = report_queue_pb2.Reports(outcomes=[group], running=words)
    await holder._reports.write(report_queue_pb2.PushReportsRequest(reports=reports))
    assert await holder._reports.read() is not grpc.aio.EOF
    request = task_pb2.StreamTaskLogsRequest(job_id="j", index=0)
    assert [message.text async for message in farm.tasks.StreamTaskLogs(request)] == ["last words\n"]
    await holder.drop()
    await other.drop()


async def test_logs_of_a_task_are_followed_until_it_ends_and_its_tail_is_kept_with_a_failure(farm: Running) -> None:
    await farm.create("j", 2)
    worker = farm.worker(slots=2)
    await worker.attach()
    talker, silent = await worker.tasks(2)
    await worker.say(talker, log="one\n")
    request = task_pb2.StreamTaskLogsRequest(job_id="j", index=talker[1], follow=True)
    call = farm.tasks.StreamTaskLogs(request, timeout=PATIENCE_S)
    texts = [(await call.read()).text]
    await worker.say(talker, log="two\n")
    texts.append((await call.read()).text)
    await worker.report(talker)
    while (message := await call.read()) is not grpc.aio.EOF:
        texts.append(message.text)
    assert "".join(texts) == "one\ntwo\n"

    failure = common_pb2.Failure(failure_class=common_pb2.FAILURE_CLASS_APP, kind="E", log_tail="the end\n")
    await worker.report(silent, ending=FAILED, failure=failure)
    request = task_pb2.StreamTaskLogsRequest(job_id="j", index=silent[1])
    assert [message.text async for message in farm.tasks.StreamTaskLogs(request)] == ["the end\n"]
    await worker.drop()


# ---- workers and the server ------------------------------------------------------------------------------------------


async def test_a_worker_is_listed_drained_and_taken_up_again(farm: Running) -> None:
    await farm.create("j", 3)
    worker = farm.worker("w1", slots=1, window=2)
    await worker.attach(labels={"zone": "a"}, host="node-1")
    other = farm.worker("w2", types=("another",))
    await other.attach()
    running, waiting = await worker.tasks(2)
    answer = await farm.workers.ListWorkers(worker_pb2.ListWorkersRequest(page_size=1))
    assert ([w.worker_id for w in answer.workers], answer.next_page_token) == (["w1"], "w1")
    shown = answer.workers[0]
    assert (shown.state, shown.host, shown.held, shown.slots, shown.window, dict(shown.labels)) == (
        worker_pb2.WORKER_STATE_READY,
        "node-1",
        2,
        1,
        2,
        {"zone": "a"},
    )
    answer = await farm.workers.ListWorkers(worker_pb2.ListWorkersRequest(page_token="w1"))
    assert [w.worker_id for w in answer.workers] == ["w2"]

    drained = await farm.workers.DrainWorker(worker_pb2.DrainWorkerRequest(worker_id="w1"))
    assert drained.worker.state == worker_pb2.WORKER_STATE_DRAINING
    await worker.until(lambda: worker.drain_asked)
    assert await worker.report(waiting, ending=RELEASED, never_started=True) == ["ACCEPTED"]
    assert await worker.report(running) == ["ACCEPTED"]
    await worker.beat()
    assert len(worker.given) == 2
    task = (await farm.tasks.GetTask(task_pb2.GetTaskRequest(job_id="j", index=waiting[1]))).task
    assert (task.state, task.app_failures, task.crashes, task.infra_failures) == (common_pb2.TASK_STATE_QUEUED, 0, 0, 0)
    await farm.workers.UndrainWorker(worker_pb2.UndrainWorkerRequest(worker_id="w1"))
    await worker.drop()  # its session is ended: no Drain follows the next welcome
    worker.drain_asked = False
    await worker.attach(labels={"zone": "a"}, host="node-1")
    await worker.work(2)
    assert not worker.drain_asked
    assert (await farm.job("j")).state == job_pb2.JOB_STATE_SUCCEEDED
    await worker.goodbye()
    gone = await farm.workers.GetWorker(worker_pb2.GetWorkerRequest(worker_id="w1"))
    assert (gone.worker.state, gone.worker.succeeded_count) == (worker_pb2.WORKER_STATE_GONE, 3)
    for call in (
        farm.workers.GetWorker(worker_pb2.GetWorkerRequest(worker_id="none")),
        farm.workers.DrainWorker(worker_pb2.DrainWorkerRequest(worker_id="none")),
        farm.workers.UndrainWorker(worker_pb2.UndrainWorkerRequest(worker_id="none")),
    ):
        assert (await refusal(call)).reason == "WORKER_NOT_FOUND"
    await worker.drop()
    await other.drop()


async def test_the_server_tells_who_it_is_and_answers_health_and_reflection_on_loopback(farm: Running) -> None:
    info = await farm.system.GetServerInfo(system_pb2.GetServerInfoRequest())
    assert (info.program, info.protocol_major, info.epoch, list(info.warnings)) == ("orchestrator", 1, 1, [])
    assert len(info.server_id) == 16
    await farm.restart()
    again = await farm.system.GetServerInfo(system_pb2.GetServerInfoRequest())
    assert (again.server_id, again.epoch) == (info.server_id, 2)

    health: Any = health_pb2_grpc.HealthStub(farm.channel)
    for service in ("", "antfarm.v1.JobService", "antfarm.v1.WorkQueueService"):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(farm.channel)
    call = reflection.ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    names = {service.name for service in (await call.read()).list_services_response.service}
    await call.done_writing()
    call.cancel()
    assert {
        "antfarm.v1.JobService",
        "antfarm.v1.TaskService",
        "antfarm.v1.WorkerService",
        "antfarm.v1.WorkQueueService",
        "antfarm.v1.ReportQueueService",
        "antfarm.v1.SystemService",
        "grpc.health.v1.Health",
    } <= names


# ---- explain ---------------------------------------------------------------------------------------------------------


async def explained(farm: Running, job_id: str, index: int) -> str:
    request = task_pb2.ExplainTaskRequest(job_id=job_id, index=index)
    return str(wire.findings_from_wire((await farm.tasks.ExplainTask(request)).findings))


async def test_a_task_is_explained_while_it_waits_and_after_it_failed_also_over_a_restart(farm: Running) -> None:
    await farm.create("j", 2, retry=common_pb2.RetryPolicy(max_attempts=2))
    assert "\nNo worker is attached.\n    help: Start one:" in await explained(farm, "j", 0)
    worker = farm.worker()
    await worker.attach()
    for _ in range(3):  # the other task runs while the first one waits for its retry
        (token,) = await worker.tasks()
        await worker.report(token, ending=FAILED if token[1] == 0 else SUCCEEDED)
    await worker.drop()
    for _ in range(2):
        lines = (await explained(farm, "j", 0)).splitlines()
        assert [line for line in lines if not line.startswith(" ")][1:] == [
            "Attempt 1 failed on w1: unknown: no failure was sent",
            "It failed: unknown: no failure was sent (attempt 2 on w1, after 0s)",
        ]
        answer = await farm.jobs.ExplainJob(job_pb2.ExplainJobRequest(job_id="j"))
        assert [finding.what for finding in answer.findings] == [
            "Job j (t) is FAILED: 2 of 2 tasks ended, 1 of them without success.",
            "1 attempt of its tasks failed or were lost, and the tasks went on.",
            "1 task FAILED: unknown: no failure was sent",
        ]
        await farm.restart()


async def test_what_is_not_there_cannot_be_explained(farm: Running) -> None:
    await farm.create("j", 2)
    error = await refusal(farm.tasks.ExplainTask(task_pb2.ExplainTaskRequest(job_id="j", index=2)))
    assert (error.reason, str(error)) == (
        "TASK_NOT_FOUND",
        "job j has 2 tasks, none of index 2: `antfarm task list` shows them",
    )
    error = await refusal(farm.jobs.ExplainJob(job_pb2.ExplainJobRequest(job_id="k")))
    assert (error.reason, str(error)) == (
        "JOB_NOT_FOUND",
        "no job 'k' here: `antfarm job list` shows those that are",
    )


async def test_a_quarantine_is_shown_with_its_reason_until_an_operator_ends_it(farm: Running) -> None:
    others = [farm.worker(name, slots=1, window=1) for name in ("w2", "w3")]
    for worker in others:
        await worker.attach()
    await farm.create("busy", 2)
    for worker in others:
        await worker.tasks(1)
    bad = farm.worker("w1", slots=3)
    await bad.attach()
    await farm.create("j", 9)
    failure = common_pb2.Failure(failure_class=common_pb2.FAILURE_CLASS_APP, kind="OSError", message="no disk")
    await bad.report(*await bad.tasks(3), ending=FAILED, failure=failure)
    shown = (await farm.workers.GetWorker(worker_pb2.GetWorkerRequest(worker_id="w1"))).worker
    assert shown.state == worker_pb2.WORKER_STATE_QUARANTINED
    reason = "3 tasks failed of its last 3, the last one with: OSError no disk; one task is tried in "
    assert shown.remark.startswith(reason)
    info = await farm.system.GetServerInfo(system_pb2.GetServerInfoRequest())
    assert "quarantined worker w1" in info.warnings
    undrained = await farm.workers.UndrainWorker(worker_pb2.UndrainWorkerRequest(worker_id="w1"))
    assert (undrained.worker.state, undrained.worker.remark) == (worker_pb2.WORKER_STATE_READY, "")
    for worker in (bad, *others):
        await worker.drop()


async def test_a_paused_type_is_shown_by_its_jobs_and_tasks_until_somebody_resumes_one(farm: Running) -> None:
    worker = farm.worker("w1", slots=3)
    await worker.attach()
    await farm.create("j", 9)
    tokens = await worker.tasks(3)
    await worker.credit(0)
    failure = common_pb2.Failure(failure_class=common_pb2.FAILURE_CLASS_INFRA, kind="Unavailable", message="no Storage")
    await worker.report(*tokens, ending=FAILED, failure=failure)
    reason = (
        "the infrastructure failed its tasks on w1, the last one with: Unavailable no Storage; one task is tried in "
    )
    assert (await farm.job("j")).type_paused.startswith(reason)
    task = (await farm.tasks.GetTask(task_pb2.GetTaskRequest(job_id="j", index=8))).task
    assert task.waits_for.startswith(f"the end of its type's pause: {reason}")
    info = await farm.system.GetServerInfo(system_pb2.GetServerInfoRequest())
    assert "paused task type t" in info.warnings
    resumed = await farm.jobs.ResumeJob(job_pb2.ResumeJobRequest(job_id="j"))
    assert resumed.job.type_paused == ""
    await worker.drop()


async def test_a_refused_submission_is_not_kept_until_the_next_garbage_collection(farm: Running) -> None:
    """That comes after thousands of calls; so many refused messages would be gigabytes."""
    await farm.create("j", 3, close=False)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for first, reason in ((0, Conflict), (50, Gap)):
            batch = job_pb2.AppendTasksRequest(job_id="j", first_index=first, payloads=[b"other"])
            assert isinstance(await refusal(append(farm, [batch])), reason)
        assert isinstance(await refusal(farm.create("j", [b"other"])), Conflict)
        await farm.job("j")
        gc.collect()
        kept = [thing for thing in gc.garbage if type(thing).__name__ in KEEPS_PAYLOADS]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert kept == []


@pytest.mark.parametrize("method", ["results", "task", "explanation"])
async def test_a_record_that_cannot_be_read_ends_the_program_with_one_line(
    tmp_path: Path, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    trouble = JournalBroken("journal x cannot be read: disk I/O error; look at its disk, then start again")

    def fail(*_: Any) -> Any:
        raise trouble

    running = Running(OrchestratorSettings(port=0, state=str(tmp_path / "state")))
    await running.start()
    await running.create("j", 1)
    await running.jobs.CancelJob(job_pb2.CancelJobRequest(job_id="j"))
    running.orchestrator.driver.results = ResultCache()  # they were long ago
    running.journal.read = fail  # type: ignore[method-assign]
    calls: dict[str, Any] = {
        "results": lambda: running.jobs.StreamResults(job_pb2.StreamResultsRequest(job_id="j")),
        "task": lambda: running.tasks.GetTask(task_pb2.GetTaskRequest(job_id="j", index=0)),
        "explanation": lambda: running.tasks.ExplainTask(task_pb2.ExplainTaskRequest(job_id="j", index=0)),
    }
    assert isinstance(await refusal(calls[method]()), Unavailable)
    with pytest.raises(Internal) as caught:
        await running.stop()
    assert str(caught.value) == str(trouble)
    (line,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert (line.message, line.exc_info) == (str(trouble), None)
