"""The two queues over a real socket: what workers may do, what they may not, and what a restart of the orchestrator does to them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from scripted import (
    FAILED,
    PATIENCE_S,
    RELEASED,
    Running,
    ScriptedWorker,
    counts,
    orchestrator,
    poll,
    refusal,
    to_the_end,
)

from antfarm import net, wire
from antfarm.errors import AntFarmError, InvalidArgument, Unavailable
from antfarm.model import PAYLOAD_BYTES_MAX
from antfarm.v1 import (
    common_pb2,
    job_pb2,
    report_queue_pb2,
    report_queue_pb2_grpc,
    system_pb2,
    task_pb2,
    work_queue_pb2,
    work_queue_pb2_grpc,
    worker_pb2,
)
from services.orchestrator.runtime import sessions
from services.orchestrator.runtime.sessions import Session

pytestmark = pytest.mark.slow


@pytest.fixture
async def farm(tmp_path: Path) -> AsyncIterator[Running]:
    async with orchestrator(tmp_path / "state") as running:
        yield running


@pytest.fixture
async def quick(tmp_path: Path) -> AsyncIterator[Running]:
    """With a lease of 0.8 s."""
    async with orchestrator(tmp_path / "state", heartbeat_s=0.2) as running:
        yield running


async def task_of(farm: Running, job_id: str, index: int) -> task_pb2.Task:
    answer = await farm.tasks.GetTask(task_pb2.GetTaskRequest(job_id=job_id, index=index))
    task: task_pb2.Task = answer.task
    return task


# ---- many reports ----------------------------------------------------------------------------------------------------


async def test_verdicts_of_thousands_of_reports_at_once_end_no_session(farm: Running) -> None:
    """Else the worker would attach and send them all again, for ever: as many failures, and as many that were taken before a connection broke."""
    many = 5_000
    await farm.create("j", many)
    worker = farm.worker(window=many)
    await worker.attach()
    tokens = await worker.tasks(many)
    assert await worker.report(*tokens, ending=FAILED) == ["ACCEPTED"] * many
    await worker.attach(held=wire.tokens_to_wire(tokens))
    assert await worker.report(*tokens, ending=FAILED) == ["DUPLICATE"] * many
    await worker.beat()
    assert counts(await farm.job("j")) == {"FAILED": many}


async def test_a_worker_that_reads_no_verdicts_is_not_read_from(farm: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for it is bounded, its session stands, and once it reads all is taken."""
    monkeypatch.setattr(sessions, "VERDICTS_WAITING_MAX", 10)
    reads = asyncio.Event()
    verdicts = Session.verdicts

    async def once_it_reads(session: Session) -> report_queue_pb2.PushReportsResponse:
        await reads.wait()
        return await verdicts(session)

    monkeypatch.setattr(Session, "verdicts", once_it_reads)
    await farm.create("j", 80)
    worker = farm.worker(window=80)
    session = farm.orchestrator.sessions.get((await worker.attach()).session_id)
    assert session is not None

    async def waiting(count: int) -> bool:
        return sum(len(each.report_nos) for each in session._verdicts) == count

    tokens = await worker.tasks(80)
    for taken in (20, 40):  # the second frame is waited for already when the verdicts of the first come
        await worker.send(*tokens[taken - 20 : taken], ending=FAILED)
        await poll(lambda taken=taken: waiting(taken))  # type: ignore[misc]
    for begin in (40, 60):
        await worker.send(*tokens[begin : begin + 20], ending=FAILED)
    await worker.beat()
    assert counts(await farm.job("j")) == {"FAILED": 40, "ACTIVE": 40}
    reads.set()
    await poll(lambda: failed(farm, 80))


async def failed(farm: Running, count: int) -> bool:
    return counts(await farm.job("j")).get("FAILED") == count


# ---- violations ------------------------------------------------------------------------------------------------------


async def first_answer(call: Any, frame: Any = None) -> AntFarmError:
    """How a stream ends on which `frame` is sent first; None ends our side at once."""
    try:
        if frame is not None:
            await call.write(frame)
        await call.done_writing()
        answer = await asyncio.wait_for(call.read(), PATIENCE_S)
        assert answer is grpc.aio.EOF, f"it was answered {answer}"
        raise AssertionError(f"it ended with {await call.code()}")
    except grpc.aio.AioRpcError as error:
        return wire.error_from_rpc(error)


async def test_streams_that_break_the_protocol_are_refused_and_the_rest_is_served(farm: Running) -> None:
    pull: Any = work_queue_pb2_grpc.WorkQueueServiceStub(farm.channel).PullTasks
    push: Any = report_queue_pb2_grpc.ReportQueueServiceStub(farm.channel).PushReports
    frame, hello = work_queue_pb2.PullTasksRequest, work_queue_pb2.Hello
    good: dict[str, Any] = {"protocol_major": 1, "worker_id": "w", "incarnation": b"i" * 16, "slots": 1, "window": 1}
    cases = [
        (pull, None, "INVALID_FIELD"),
        (pull, frame(credit=work_queue_pb2.Credit(window=1)), "INVALID_FIELD"),
        (pull, frame(), "INVALID_FIELD"),
        (pull, frame(hello=hello(**{**good, "worker_id": ""})), "INVALID_FIELD"),
        (pull, frame(hello=hello(**{**good, "worker_id": "x" * 129})), "INVALID_FIELD"),
        (pull, frame(hello=hello(**{**good, "worker_id": "a b\n"})), "INVALID_FIELD"),
        (pull, frame(hello=hello(**{**good, "incarnation": b""})), "INVALID_FIELD"),
        (pull, frame(hello=hello(**{**good, "max_epoch_seen": 1 << 60})), "INVALID_FIELD"),
        (pull, frame(hello=hello(**{**good, "protocol_major": 0})), "PROTOCOL_UNSUPPORTED"),
        (pull, frame(hello=hello(**{**good, "protocol_major": 2})), "PROTOCOL_UNSUPPORTED"),
        (push, None, "INVALID_FIELD"),
        (push, report_queue_pb2.PushReportsRequest(reports=report_queue_pb2.Reports()), "INVALID_FIELD"),
        (push, report_queue_pb2.PushReportsRequest(hello=report_queue_pb2.ReportHello()), "SESSION_NOT_FOUND"),
        (
            push,
            report_queue_pb2.PushReportsRequest(hello=report_queue_pb2.ReportHello(session_id="no such")),
            "SESSION_NOT_FOUND",
        ),
    ]
    for method, first, reason in cases:
        error = await first_answer(method(), first)
        assert error.reason == reason, (first, error)
    workers = (await farm.workers.ListWorkers(worker_pb2.ListWorkersRequest())).workers
    assert list(workers) == []
    await served(farm)


async def served(farm: Running) -> None:
    """A worker and a client get along."""
    await farm.create("proof", 2)
    worker = farm.worker("proof")
    await worker.attach()
    await worker.work(2)
    assert (await farm.job("proof")).state == job_pb2.JOB_STATE_SUCCEEDED
    await worker.goodbye()
    await worker.drop()


async def test_bytes_that_are_no_message_end_their_call_alone(farm: Running) -> None:
    for method in ("WorkQueueService/PullTasks", "ReportQueueService/PushReports"):
        call: Any = farm.channel.stream_stream(f"/antfarm.v1.{method}")()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await to_the_end(call, b"\xff\xff\xff\xff this is no message")
        assert caught.value.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT)
    await served(farm)


async def test_garbage_after_a_good_hello_ends_that_session_alone(farm: Running) -> None:
    call: Any = farm.channel.stream_stream("/antfarm.v1.WorkQueueService/PullTasks")()
    hello = work_queue_pb2.Hello(protocol_major=1, worker_id="w", incarnation=b"i" * 16, slots=1, window=1)
    await call.write(work_queue_pb2.PullTasksRequest(hello=hello).SerializeToString())
    work_queue_pb2.PullTasksResponse.FromString(await call.read())
    with pytest.raises(grpc.aio.AioRpcError):
        await to_the_end(call, b"\xff\xff\xff\xff")
    await served(farm)


@pytest.mark.parametrize(("minor", "in_columns"), [(0, 0), (1, 2)])
async def test_assignments_are_columns_for_who_knows_these_and_where_they_say_all(
    farm: Running, minor: int, in_columns: int
) -> None:
    """What is left of a total deadline, and retries that were used, are said in messages only."""
    failing = {"retry": common_pb2.RetryPolicy(max_attempts=2, backoff_initial=wire.duration_to_wire(1))}
    await farm.create("plain", [b"[0]", b"[1]"])
    worker = farm.worker(slots=8)
    await worker.attach(protocol_minor=minor)
    plain = await worker.tasks(2)
    assert [worker.held[token] for token in plain] == [b"[0]", b"[1]"]
    assert worker.in_columns == in_columns
    await farm.create("timed", [b"[2]"], timeouts=common_pb2.Timeouts(total=wire.duration_to_wire(10**11)))
    (timed,) = (await worker.tasks(3))[2:]
    assert (worker.held[timed], worker.in_columns) == (b"[2]", in_columns)
    await farm.create("failing", [b"[3]"], **failing)
    (first,) = (await worker.tasks(4))[3:]
    assert worker.in_columns == in_columns + in_columns // 2
    assert await worker.report(first, ending=FAILED) == ["ACCEPTED"]
    (second,) = (await worker.tasks(4))[3:]
    assert (worker.held[second], second[3]) == (b"[3]", 2)
    assert worker.in_columns == in_columns + in_columns // 2
    await worker.drop()


async def test_successes_in_columns_count_as_each_in_a_message_does(farm: Running) -> None:
    """Beside a failure of the same frame; one whose result is too large fails, and nothing else with it."""
    await farm.create("j", 4)
    worker = farm.worker(slots=4)
    await worker.attach()
    tokens = await worker.tasks(4)
    group = report_queue_pb2.OutcomeGroup(job_id="j", epoch=tokens[0][2])
    columns = group.successes
    for number, token, result in zip((11, 12, 13), tokens, (b"0", b"x" * (PAYLOAD_BYTES_MAX + 1), b""), strict=False):
        columns.report_nos.append(number)
        columns.indices.append(token[1])
        columns.attempts.append(token[3])
        columns.run_us.append(7)
        columns.results.append(result)
    group.outcomes.add(report_no=14, index=tokens[3][1], attempt=tokens[3][3], ending=report_queue_pb2.ENDING_FAILED)
    worker.reported.update(zip((11, 12, 13, 14), tokens, strict=True))
    frame = report_queue_pb2.PushReportsRequest(reports=report_queue_pb2.Reports(outcomes=[group]))
    await worker._reports.write(frame)
    verdicts = (await asyncio.wait_for(worker._reports.read(), PATIENCE_S)).verdicts
    assert [(v.code, sorted(v.report_nos)) for v in verdicts] == [
        (report_queue_pb2.VERDICT_CODE_ACCEPTED, [11, 12, 13, 14])
    ]
    found = {result.index: result for result in await farm.results("j", follow=True)}
    assert [found[index].state for index in range(4)] == [
        common_pb2.TASK_STATE_SUCCEEDED,
        common_pb2.TASK_STATE_FAILED,
        common_pb2.TASK_STATE_SUCCEEDED,
        common_pb2.TASK_STATE_FAILED,
    ]
    assert (found[0].result, found[0].attempt, found[0].run_duration.ToMicroseconds()) == (b"0", 1, 7)
    assert found[1].failure.kind == "PayloadTooLarge"
    (message,) = await farm.messages("j", columns=True)
    assert [(list(one.indices), list(one.results), one.worker_id) for one in message.succeeded] == [
        ([0, 2], [b"0", b""], "w1")
    ]
    assert sorted(one.index for one in message.results) == [1, 3]
    await worker.drop()


async def test_columns_of_different_lengths_are_refused_and_cost_nothing(farm: Running) -> None:
    await farm.create("j", 1)
    worker = farm.worker()
    await worker.attach()
    (token,) = await worker.tasks()
    columns = report_queue_pb2.Successes(report_nos=[1], indices=[token[1]], attempts=[token[3]], results=[b"0"])
    group = report_queue_pb2.OutcomeGroup(job_id="j", epoch=token[2], successes=columns)
    await worker._reports.write(report_queue_pb2.PushReportsRequest(reports=report_queue_pb2.Reports(outcomes=[group])))
    error = await refusal(worker._reports.read())
    assert (error.reason, "[0, 1] entries" in str(error)) == ("INVALID_FIELD", True)
    await worker.drop()
    assert (await farm.job("j")).counts[0].state != common_pb2.TASK_STATE_SUCCEEDED


async def test_an_ending_of_a_later_version_is_a_failure_and_what_came_with_it_counts(farm: Running) -> None:
    await farm.create("j", 2)
    worker = farm.worker(slots=2)
    await worker.attach()
    odd, good = await worker.tasks(2)
    group = report_queue_pb2.OutcomeGroup(job_id="j", epoch=odd[2])
    endings: tuple[Any, ...] = (99, report_queue_pb2.ENDING_SUCCEEDED)
    for number, token, ending in zip((101, 102), (odd, good), endings, strict=True):
        group.outcomes.add(report_no=number, index=token[1], attempt=token[3], ending=ending)
        worker.reported[number] = token
    frame = report_queue_pb2.PushReportsRequest(reports=report_queue_pb2.Reports(outcomes=[group]))
    await worker._reports.write(frame)
    verdicts = (await asyncio.wait_for(worker._reports.read(), PATIENCE_S)).verdicts
    assert [(v.code, sorted(v.report_nos)) for v in verdicts] == [(report_queue_pb2.VERDICT_CODE_ACCEPTED, [101, 102])]
    failed, succeeded = await farm.results("j", indices=[0]), await farm.results("j", indices=[1])
    assert [result.state for result in succeeded] == [common_pb2.TASK_STATE_SUCCEEDED]
    assert [result.state for result in failed] == [common_pb2.TASK_STATE_FAILED]
    failure = failed[0].failure
    assert (failure.failure_class, failure.kind) == (common_pb2.FAILURE_CLASS_APP, "UnsupportedEnding")
    assert "(99)" in failure.message
    assert "upgrade the orchestrator" in failure.message
    await worker.drop()


async def test_an_ending_of_a_later_version_costs_an_attempt_as_any_failure_does(farm: Running) -> None:
    await farm.create("j", 1, retry=common_pb2.RetryPolicy(max_attempts=2, backoff_initial=wire.duration_to_wire(1)))
    worker = farm.worker()
    await worker.attach()
    (token,) = await worker.tasks()
    assert await worker.report(token, ending=0) == ["ACCEPTED"], "one that is not set is none that is known either"
    (again,) = await worker.tasks()
    assert again[3] == 2
    assert await worker.report(again) == ["ACCEPTED"]
    await worker.drop()


async def test_a_second_process_under_one_name_is_refused_while_the_first_lives(farm: Running) -> None:
    first, second = farm.worker("same"), farm.worker("same")
    await first.attach()
    with pytest.raises(AntFarmError) as caught:
        await second.attach()
    assert caught.value.reason == "WORKER_ID_IN_USE"
    await first.beat()
    # The same process on a new stream is no second one: the old stream ends.
    again = farm.worker("same")
    again.incarnation = first.incarnation
    await again.attach()
    assert isinstance(await first.ended(), Unavailable)
    await again.beat()
    await first.drop()
    await again.drop()


async def test_a_second_report_queue_of_a_session_is_refused_and_the_first_goes_on(farm: Running) -> None:
    worker = farm.worker("w1")
    welcome = await worker.attach()
    await farm.create("j", 1)
    (token,) = await worker.tasks()
    await worker.say(token, progress=0.5)  # the first is there when this has come
    await poll(lambda: _started(farm, "j"))
    hello = report_queue_pb2.ReportHello(session_id=welcome.session_id)
    second: Any = report_queue_pb2_grpc.ReportQueueServiceStub(farm.channel).PushReports()
    error = await first_answer(second, report_queue_pb2.PushReportsRequest(hello=hello))
    assert error.reason == "WRONG_STATE"
    assert await worker.report(token) == ["ACCEPTED"]
    await worker.drop()


async def _started(farm: Running, job_id: str) -> bool:
    return (await task_of(farm, job_id, 0)).HasField("progress")


# ---- reports ---------------------------------------------------------------------------------------------------------


async def test_the_report_queue_is_open_before_anything_is_written_to_it(farm: Running) -> None:
    """Its metadata answer the hello. With the first verdict they could come twice: with that and, were it cancelled, with the stream's end."""
    worker = farm.worker("w1")
    await worker.attach()
    await worker.reports_are_open()
    await worker.drop()


async def test_each_report_gets_the_verdict_that_is_due_to_it(farm: Running) -> None:
    await farm.create("j", 3)
    worker, stranger = farm.worker("w1", slots=2), farm.worker("w2", types=("x",))
    await worker.attach()
    await stranger.attach()
    first, second = await worker.tasks(2)
    job_id, index, epoch, attempt = first
    forged = [(job_id, index, epoch, attempt + 7), (job_id, index, epoch + 1, attempt), (job_id, index, 0, attempt)]
    assert await stranger.report(first, *forged) == ["FENCED"] * 4
    assert await worker.report(*forged) == ["FENCED"] * 3
    assert (
        await worker.report(("none", 0, epoch, 1), ("j", 9, epoch, 1), ("j", 1 << 60, epoch, 1)) == ["UNKNOWN_TASK"] * 3
    )
    assert (await task_of(farm, "j", index)).state == common_pb2.TASK_STATE_ACTIVE
    assert await worker.report(first) == ["ACCEPTED"]
    assert await worker.report(first, first) == ["DUPLICATE"] * 2
    assert await worker.report(second, second) == ["ACCEPTED", "DUPLICATE"]
    # Who holds the record is not asked once the task has ended: either verdict is final and changes nothing.
    assert await stranger.report(first, result=b"forged") in (["DUPLICATE"], ["SUPERSEDED"])
    assert [r.result for r in await farm.results("j", indices=[index])] == [b"%d" % index]
    await worker.drop()
    await stranger.drop()


async def test_what_is_held_is_bounded_by_the_window_and_a_ghost_is_given_again(farm: Running) -> None:
    await farm.create("j", 10)
    worker = farm.worker(slots=2, window=3)
    await worker.attach()
    held = await worker.tasks(3)
    await worker.beat()
    assert len(worker.given) == 3
    await worker.credit(5)
    await worker.tasks(5)
    # A worker that says it does not hold what it was sent never got it.
    worker.held.pop(held[0])
    await worker.beat()
    await worker.until(lambda: len(worker.held) == 5)
    again = worker.given[-1]
    assert (again[0], len(worker.given)) == ("j", 6)
    task = await task_of(farm, "j", held[0][1])
    assert (task.app_failures, task.crashes, task.infra_failures) == (0, 0, 0)
    await worker.drop()


async def test_silence_beyond_the_lease_moves_the_task_and_one_outcome_is_recorded(quick: Running) -> None:
    await quick.create("j", 1)
    silent, other = quick.worker("silent"), quick.worker("other")
    await silent.attach()
    (token,) = await silent.tasks()
    await other.attach()
    beats = asyncio.create_task(_beat(other))
    (again,) = await other.tasks()
    assert (again[:3], again[3]) == (token[:3], 2)
    assert (await silent.ended()).reason == "INCARNATION_LOST"
    with pytest.raises(AntFarmError) as caught:
        await silent.attach()
    assert caught.value.reason == "INCARNATION_LOST"
    # It comes back as another incarnation and has finished meanwhile: a late success counts, the other attempt is stopped.
    silent.incarnation = os.urandom(16)
    welcome = await silent.attach(unacked=wire.tokens_to_wire([token]))
    assert not welcome.revoked, "a newer attempt runs, but the report of this one is still owed"
    assert await silent.report(token) == ["ACCEPTED"]
    await other.until(lambda: other.revoked == [again])
    assert await other.report(again) == ["SUPERSEDED"]
    beats.cancel()
    results = await quick.results("j")
    assert [(r.index, r.attempt, r.worker_id) for r in results] == [(0, 1, "silent")]
    await silent.drop()
    await other.drop()


async def test_a_lost_connection_within_the_lease_repeats_nothing(farm: Running) -> None:
    await farm.create("j", 4)
    worker = farm.worker(slots=4)
    await worker.attach()
    tokens = await worker.tasks(4)
    for _ in range(3):
        await worker.drop()
        welcome = await worker.attach()
        assert list(welcome.revoked) == []
    assert await worker.report(*tokens) == ["ACCEPTED"] * 4
    assert worker.given == tokens
    await worker.drop()


async def test_after_a_restart_held_attempts_are_adopted_and_nothing_is_sent_again(farm: Running) -> None:
    await farm.create("j", 6)
    worker = farm.worker(slots=4)
    await worker.attach()
    tokens = await worker.tasks(4)
    assert await worker.report(tokens[0]) == ["ACCEPTED"]
    await worker.tasks(4)
    tokens = list(worker.held)
    given = list(worker.given)
    await farm.restart()
    # A worker that is unknown gets nothing that may be out, but new work at once.
    other = farm.worker("other", slots=8)
    await other.attach()
    await farm.create("new", 1)
    (fresh,) = await other.tasks()
    assert fresh[0] == "new"
    await other.beat()
    assert other.given == [fresh]
    welcome = await worker.attach()
    assert (welcome.epoch, list(welcome.revoked)) == (2, [])
    assert await worker.report(*tokens) == ["ACCEPTED"] * 4
    assert await worker.report(tokens[0]) == ["DUPLICATE"]
    assert worker.given == given or set(worker.given[len(given) :]).isdisjoint(given)
    await other.report(fresh)

    async def finished() -> bool:
        for each in (worker, other):
            if free := each.free():
                assert set(await each.report(*free)) == {"ACCEPTED"}
        return (await farm.job("j")).state == job_pb2.JOB_STATE_SUCCEEDED

    await poll(finished)
    executed = [token[:2] for token in (*worker.given, *other.given) if token[0] == "j"]
    assert sorted(executed) == [("j", index) for index in range(6)]  # each was given out once
    assert len(await farm.results("j")) == 6
    await worker.drop()
    await other.drop()


async def test_reports_that_were_not_acknowledged_before_a_restart_are_taken_after_it(farm: Running) -> None:
    await farm.create("j", 200)
    worker = farm.worker(slots=200)
    await worker.attach()
    tokens = await worker.tasks(200)
    await worker.send(*tokens[:100])  # whether they arrived is not known
    await farm.restart()
    worker.reported.clear()
    await worker.attach()
    verdicts = await worker.report(*tokens)
    assert set(verdicts) <= {"ACCEPTED", "DUPLICATE"}
    results = await farm.results("j")
    assert sorted(r.index for r in results) == list(range(200))
    assert worker.given == tokens
    await worker.drop()


async def test_work_that_a_worker_held_is_given_out_again_when_it_does_not_return(quick: Running) -> None:
    await quick.create("j", 2)
    worker = quick.worker(slots=2)
    await worker.attach()
    await worker.tasks(2)
    await quick.restart()
    other = quick.worker("other", slots=2)
    await other.attach()

    async def beating() -> None:
        while True:
            await other.beat()
            await asyncio.sleep(0.05)

    beats = asyncio.create_task(beating())
    tokens = await other.tasks(2)
    assert {token[2] for token in tokens} == {2}
    assert await other.report(*tokens) == ["ACCEPTED"] * 2
    # The first holder comes after all: its work is superseded, its record would be the second.
    beats.cancel()
    welcome = await worker.attach()
    assert sorted(wire.tokens_from_wire(welcome.revoked)) == sorted(worker.given)
    assert len(await quick.results("j")) == 2
    await worker.drop()
    await other.drop()


async def test_an_orchestrator_below_hands_back_at_the_cost_of_the_retries_used_there(farm: Running) -> None:
    await farm.create("j", 1, retry=common_pb2.RetryPolicy(max_attempts=4))
    cluster = farm.worker("cluster", types=("t",))
    await cluster.attach(orchestrator=True)
    (token,) = await cluster.tasks(1)
    assert await cluster.report(token, ending=RELEASED, app_failures=2) == ["ACCEPTED"]
    task = await task_of(farm, "j", 0)
    assert (task.app_failures, task.crashes, task.infra_failures) == (2, 0, 0)
    await cluster.work(1)
    await cluster.drop()


async def test_a_drained_worker_hands_back_at_no_cost_and_leaves(farm: Running) -> None:
    await farm.create("j", 2)
    worker = farm.worker(slots=2)
    await worker.attach()
    tokens = await worker.tasks(2)
    await worker.credit(0)
    assert await worker.report(*tokens, ending=RELEASED, never_started=True) == ["ACCEPTED"] * 2
    await worker.goodbye()
    job = await farm.job("j")
    assert (counts(job), job.retried_count) == ({"QUEUED": 2}, 0)
    other = farm.worker("other", slots=2)
    await other.attach()
    again = await other.tasks(2)
    assert {token[3] for token in again} == {2}
    await other.work(2)
    await worker.drop()
    await other.drop()


async def test_a_dependent_task_comes_when_its_input_can_be_read(farm: Running) -> None:
    """Whoever gets it may ask for the result at once, and must find it."""
    count = 300
    await farm.create("first", count)
    each = common_pb2.Dependency(job_id="first", kind=common_pb2.DEPENDENCY_KIND_EACH)
    await farm.create("second", count, dependencies=[each], type="u")
    maker, user = farm.worker("maker", slots=7), farm.worker("user", types=("u",), slots=50)
    await maker.attach()
    await user.attach()

    async def make() -> None:
        await maker.work(count)

    making = asyncio.create_task(make())
    done = 0
    while done < count:
        await user.tasks()
        tokens = user.free()
        indices = [token[1] for token in tokens]
        found = await farm.results("first", indices=indices)
        assert {r.index: r.result for r in found} == {index: b"%d" % index for index in indices}
        assert set(await user.report(*tokens)) == {"ACCEPTED"}
        done += len(tokens)
    await making
    assert [token[3] for token in user.given] == [1] * count
    await maker.drop()
    await user.drop()


async def test_an_orchestrator_that_would_be_its_own_ancestor_is_refused(farm: Running) -> None:
    own = (await farm.system.GetServerInfo(system_pb2.GetServerInfoRequest())).server_id
    worker = farm.worker(f"orchestrator-{own}")
    with pytest.raises(AntFarmError) as caught:
        await worker.attach(orchestrator=True, descendants=["other", own])
    assert caught.value.reason == "CYCLE"
    assert (await refusal(farm.workers.GetWorker(worker_pb2.GetWorkerRequest(worker_id=worker.worker_id)))).reason == (
        "WORKER_NOT_FOUND"
    )


async def test_a_port_that_another_program_has_is_told_in_one_line(farm: Running, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"cannot listen on 127\.0\.0\.1:\d+") as caught:
        net.bind(net.make_server([]), "127.0.0.1", int(farm.address.rpartition(":")[2]), None, insecure=False)
    assert "\n" not in str(caught.value)


async def test_a_backup_is_sent_to_another_node_and_shown(quick: Running) -> None:
    slow, idle = quick.worker("slow", slots=4, window=4), quick.worker("idle")
    await slow.attach(host="node-1")
    await quick.create("j", 4, idempotent=True)
    *short, straggler = await slow.tasks(4)
    assert set(await slow.report(*short, run_us=1000)) == {"ACCEPTED"}
    await slow.say(straggler, running_for=wire.duration_to_wire(60 * 10**9))
    await idle.attach(host="node-2")
    beating = asyncio.create_task(_beat(slow, idle))
    (backup,) = await idle.tasks()
    assert backup == (*straggler[:3], 2)
    task = await task_of(quick, "j", straggler[1])
    shown = (task.attempt, task.worker_id, task.backup_attempt, task.backup_worker_id)
    assert shown == (1, "slow", 2, "idle")
    assert await idle.report(backup) == ["ACCEPTED"]
    await slow.until(lambda: straggler in slow.revoked)
    task = await task_of(quick, "j", straggler[1])
    assert (task.result.attempt, task.worker_id, task.backup_attempt) == (2, "idle", 0)
    beating.cancel()
    await slow.drop()
    await idle.drop()


async def _beat(*workers: ScriptedWorker) -> None:
    while True:
        for worker in workers:
            await worker.beat()
        await asyncio.sleep(0.05)
