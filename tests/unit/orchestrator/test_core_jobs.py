"""Jobs: created, appended to, closed, paused, retried, purged; whatever breaks a rule is refused and changes nothing."""

from __future__ import annotations

import re
from typing import Any

import pytest
from orchestrator_harness import Harness, append_event, create_event, each, retrying

from antfarm import errors
from antfarm.model import PAYLOAD_BYTES_MAX, SECOND_NS, ConcurrencyLimit, JobId, JobState, TaskState, Timeouts
from services.orchestrator.core import effects, events, records
from services.orchestrator.core.state import TASK_BYTES
from services.orchestrator.core.turn import CoreConfig


def refused(farm: Harness, make: Any, cls: type[errors.AntFarmError], pattern: str) -> None:
    error = farm.refusal(make)
    assert type(error) is cls
    assert re.search(pattern, str(error)), str(error)
    assert "\n" not in str(error)


def test_a_created_job_is_answered_once_its_records_are_durable(farm: Harness) -> None:
    farm.autocommit = False
    farm.do(create_event(7, "j", 3, close=False))
    assert farm.claim_all(effects.Reply) == []
    farm.commit()
    assert farm.claim(effects.Reply) == effects.Reply(request=7, after=3)
    assert [type(record) for record in farm.records[1:]] == [records.JobCreated, records.TasksAdded]
    assert farm.states("j") == "QQQ"
    assert farm.job("j").state is JobState.OPEN


def test_the_same_job_again_exists_and_takes_nothing_twice(farm: Harness) -> None:
    assert not farm.create("j", 3).existed
    before = farm.state.seq
    assert farm.create("j", 3).existed
    assert farm.state.seq == before
    assert farm.states("j") == "QQQ"


def test_a_repeated_create_waits_for_the_records_of_the_first(farm: Harness) -> None:
    farm.autocommit = False
    farm.do(create_event(1, "j", 3))
    farm.do(create_event(2, "j", 3))
    assert farm.claim_all(effects.Reply) == []
    farm.commit()
    assert [reply.existed for reply in farm.claim_all(effects.Reply)] == [False, True]


def test_a_repeated_create_goes_on_where_a_shorter_one_ended(farm: Harness) -> None:
    farm.create("j", 2, close=False)
    assert farm.create("j", 4, close=True).existed
    assert farm.states("j") == "QQQQ"
    assert farm.job("j").closed


def test_another_spec_or_other_tasks_under_the_same_id_conflict(farm: Harness) -> None:
    farm.create("j", 2)
    refused(farm, lambda n: create_event(n, "j", 2, priority=1), errors.Conflict, "another specification")
    refused(farm, lambda n: create_event(n, "j", [b"0", b"x"]), errors.Conflict, "other tasks at index 0 to 1")


@pytest.mark.parametrize("first", [0, 2, 3])
def test_a_repeated_batch_changes_nothing_and_an_overlapping_one_adds_the_rest(farm: Harness, first: int) -> None:
    farm.create("j", 3, close=False)
    farm.append("j", first, 5 - first)
    assert farm.states("j") == "QQQQQ"
    before = farm.state.seq
    farm.append("j", first, 5 - first)
    assert farm.state.seq == before
    assert [bytes(p or b"") for p in farm.job("j").payloads] == [b"0", b"1", b"2", b"3", b"4"]


def test_fewer_tasks_do_not_close_a_job_that_has_more(farm: Harness) -> None:
    """Somebody else fills it, who would not be able to go on."""
    farm.create("j", 5, close=False)
    for error in (
        farm.refusal(lambda n: create_event(n, "j", 2)),
        farm.refusal(lambda n: append_event(n, "j", 0, 2, close=True)),
        farm.refusal(lambda n: append_event(n, "j", 2, 2, close=True)),
    ):
        assert isinstance(error, errors.Conflict)
    assert not farm.job("j").closed
    farm.append("j", 5, 3, close=True)
    assert farm.states("j") == 8 * "Q"


def test_a_gap_and_another_content_are_refused(farm: Harness) -> None:
    farm.create("j", 2, close=False)
    refused(farm, lambda n: append_event(n, "j", 3, 1), errors.Gap, "has 2 tasks: go on from index 2, not 3")
    refused(farm, lambda n: append_event(n, "j", 1, [b"x"]), errors.Conflict, "other tasks")
    refused(farm, lambda n: append_event(n, "k", 0, 1), errors.JobNotFound, "no job 'k'")


def test_a_closed_job_takes_no_more_but_knows_what_it_has(farm: Harness) -> None:
    farm.create("j", 2, close=False)
    farm.append("j", 2, 1, close=True)
    refused(farm, lambda n: append_event(n, "j", 3, 1), errors.JobClosed, "closed and takes no more tasks")
    farm.append("j", 2, 1, close=True)
    farm.close_job("j")
    assert farm.states("j") == "QQQ"


def test_a_cancelled_job_takes_no_more(farm: Harness) -> None:
    farm.create("j", 1, close=False)
    farm.cancel("j")
    refused(farm, lambda n: append_event(n, "j", 1, 1), errors.JobClosed, "cancelled and takes no more tasks")


@pytest.mark.parametrize(
    ("job_id", "spec", "pattern"),
    [
        ("", {}, "job id ''"),
        ("a b", {}, "job id 'a b'"),
        ("/a", {}, "job id"),
        ("a//b", {}, "job id"),
        ("x" * 257, {}, "at most 256"),
        ("up/a/0/plan", {}, "ids that start with up/ are of jobs from the orchestrator above"),
        ("j", {"type": ""}, "task type"),
        ("j", {"type": "t\n"}, "task type"),
        ("j", {"type": "x" * 129}, "at most 128"),
        ("j", {"name": "ü" * 129}, "longer than 256 bytes"),
        ("j", {"priority": 11}, "priority 11 is outside -10 to 10: give one within"),
        ("j", {"priority": -11}, "priority -11"),
        ("j", {"limit": ConcurrencyLimit(name="x", max_active=0)}, "max_active of at least 1"),
        ("j", {"limit": ConcurrencyLimit(name="", max_active=1)}, "needs a name"),
        ("j", {"timeouts": Timeouts(run_ns=0)}, "timeout run must be above 0"),
        ("j", {"timeouts": Timeouts(total_ns=-1)}, "timeout total"),
        ("j", {"resources": {"gpu": -1.0}}, "resources must be numbers"),
        ("j", {"resources": {"gpu": float("nan")}}, "resources must be numbers"),
        ("j", {"dependencies": tuple(each("k") for _ in range(17))}, "17 dependencies, at most 16"),
        ("j", {"labels": {"x": "y" * 20_000}}, "labels"),
        ("j", {"version": "v" * 300}, "version"),
    ],
)
def test_a_job_that_breaks_a_limit_is_refused_in_one_line(
    farm: Harness, job_id: str, spec: dict[str, Any], pattern: str
) -> None:
    refused(farm, lambda n: create_event(n, job_id, 1, **spec), errors.InvalidArgument, pattern)


def test_values_above_the_inline_limit_are_refused(farm: Harness) -> None:
    big = b"x" * (PAYLOAD_BYTES_MAX + 1)
    refused(farm, lambda n: create_event(n, "j", [b"", big]), errors.PayloadTooLarge, "a payload is 65537 bytes")
    refused(farm, lambda n: create_event(n, "j", 1, common_payload=big), errors.PayloadTooLarge, "common arguments")
    farm.create("j", [b"x" * PAYLOAD_BYTES_MAX], close=False)
    refused(farm, lambda n: append_event(n, "j", 1, [big]), errors.PayloadTooLarge, "a payload is 65537 bytes")


def test_a_dependency_must_exist(farm: Harness) -> None:
    refused(
        farm, lambda n: create_event(n, "j", 1, dependencies=(each("k"),)), errors.DependencyNotFound, "job k, which j"
    )


def test_too_many_payload_bytes_and_a_low_disk_refuse_new_tasks_alone() -> None:
    farm = Harness(CoreConfig(payload_bytes_max=10 + TASK_BYTES))
    worker = farm.worker(slots=10)
    farm.create("j", [b"x" * 10], close=False)
    refused(farm, lambda n: append_event(n, "j", 1, [b"y"]), errors.Overloaded, "too many tasks are queued")
    refused(farm, lambda n: create_event(n, "k", [b"y"]), errors.Overloaded, "nothing was taken")
    farm.append("j", 0, [b"x" * 10])
    worker.take()
    worker.run()
    farm.append("j", 1, [b"y"])
    farm.do(events.DiskLow(low=True))
    refused(farm, lambda n: append_event(n, "j", 2, [b"z"]), errors.DiskFull, "nearly full: nothing was taken")
    farm.close_job("j")
    worker.take()
    worker.run()
    assert farm.job("j").state is JobState.SUCCEEDED
    farm.do(events.DiskLow(low=False))
    farm.create("k", [b"z"])
    worker.take()
    farm.close()


def test_an_empty_job_ends_when_it_is_closed(farm: Harness) -> None:
    farm.create("j", 0, close=False)
    assert farm.job("j").state is JobState.OPEN
    farm.close_job("j")
    assert farm.job("j").state is JobState.SUCCEEDED
    assert isinstance(farm.records[-1], records.JobEnded)
    farm.create("k", 0, close=True)
    assert farm.job("k").state is JobState.SUCCEEDED


def test_a_job_ends_only_when_it_is_closed(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", 1, close=False)
    worker.take()
    worker.run()
    assert farm.job("j").state is JobState.OPEN
    farm.close_job("j")
    assert farm.job("j").state is JobState.SUCCEEDED
    assert [type(record) for record in farm.records[-2:]] == [records.JobClosed, records.JobEnded]


def test_a_paused_job_gives_out_nothing_and_keeps_what_runs(farm: Harness) -> None:
    worker = farm.worker(slots=1)
    farm.create("j", 3)
    (first,) = worker.take()
    farm.pause("j")
    assert worker.report(first).name == "ACCEPTED"
    assert worker.take() == []
    before = farm.state.seq
    farm.pause("j")
    assert farm.state.seq == before
    farm.restart()
    worker.attach()
    assert worker.take() == []
    farm.pause("j", paused=False)
    assert len(worker.take()) == 1


def test_a_retry_is_a_new_job_of_what_did_not_succeed(farm: Harness) -> None:
    worker = farm.worker(slots=3)
    farm.create("j", 3, close=False, priority=2, retry=retrying(1))
    first, second, third = worker.take()
    worker.run([first])
    worker.fail(second)
    farm.cancel_task("j", 2)
    farm.claim(effects.SendRevoke)
    worker.report(third)
    farm.retry("j", "j2")
    assert [bytes(p or b"") for p in farm.job("j2").payloads] == [b"1", b"2"]
    assert farm.job("j2").retry_of == "j"
    assert farm.job("j2").spec == farm.job("j").spec
    assert farm.job("j2").closed
    assert len(worker.take()) == 2
    assert farm.retry("j", "j2").existed
    worker.run()
    assert farm.job("j2").state is JobState.SUCCEEDED
    refused(farm, lambda n: events.RetryJob(request=n, job_id=JobId("j2"), new_job_id=JobId("j3")),
            errors.NothingToRetry, "no task of job j2")  # fmt: skip
    refused(farm, lambda n: events.RetryJob(request=n, job_id=JobId("j2"), new_job_id=JobId("j")),
            errors.Conflict, "no retry of j2")  # fmt: skip
    refused(farm, lambda n: events.RetryJob(request=n, job_id=JobId("j"), new_job_id=JobId("a b")),
            errors.InvalidArgument, "job id")  # fmt: skip


def test_a_purge_that_is_asked_for_again_has_been_done(farm: Harness) -> None:
    farm.create("j", 0)
    farm.purge("j")
    before = farm.state.seq
    farm.purge("j")
    assert farm.state.seq == before
    farm.create("j", 1)
    assert isinstance(farm.refusal(lambda n: events.PurgeJob(request=n, job_id=JobId("j"))), errors.JobNotEnded)


def test_a_retry_of_an_earlier_job_of_the_name_is_not_taken_for_one_of_this(farm: Harness) -> None:
    worker = farm.worker()
    for payload in (b"old", b"new"):
        farm.create("a", [payload])
        worker.fail(worker.take()[0])
        if payload == b"old":
            farm.retry("a", "again")
            worker.fail(worker.take()[0])
            farm.purge("a")
    number = farm.job("a").number
    error = farm.refusal(lambda n: events.RetryJob(request=n, job_id=JobId("a"), new_job_id=JobId("again")))
    assert str(error) == "job again exists and is no retry of a: choose another id"
    farm.retry("a", "anew")
    farm.retry("a", "anew")
    assert farm.job("a").number == number
    assert worker.held[worker.take()[0]] == b"new"


def test_a_job_with_inputs_is_not_retried(farm: Harness) -> None:
    farm.create("a", 1)
    farm.create("b", 1, dependencies=(each("a"),))
    farm.cancel("b")
    refused(farm, lambda n: events.RetryJob(request=n, job_id=JobId("b"), new_job_id=JobId("c")),
            errors.WrongState, "takes inputs from other jobs")  # fmt: skip


def test_only_an_ended_job_that_nobody_needs_is_purged(farm: Harness) -> None:
    worker = farm.worker(slots=2)
    farm.create("a", 1, close=False)
    farm.create("b", 1, dependencies=(each("a"),))
    refused(farm, lambda n: events.PurgeJob(request=n, job_id=JobId("a")), errors.JobNotEnded, "have not ended")
    farm.close_job("a")
    worker.take()
    worker.run()
    refused(farm, lambda n: events.PurgeJob(request=n, job_id=JobId("a")), errors.JobNotEnded, "needed by b")
    worker.take()
    worker.run()
    farm.purge("a")
    assert farm.state.by_id.keys() == {"b"}
    refused(farm, lambda n: events.PurgeJob(request=n, job_id=JobId("never")), errors.JobNotFound, "no job .never.")
    assert {job for job, _, _ in farm.journal.rows.values()} == {0, 2}
    farm.restart()
    assert farm.job("b").state is JobState.SUCCEEDED
    farm.purge("b")
    farm.restart()
    assert not farm.state.jobs


def test_numbers_of_purged_jobs_are_not_given_again(farm: Harness) -> None:
    farm.create("a", 0)
    farm.purge("a")
    farm.restart()
    farm.create("b", 0)
    assert farm.job("b").number == 2


def test_max_failures_cancels_the_rest(farm: Harness) -> None:
    worker = farm.worker(slots=2)
    farm.create("j", 5, max_failures=1)
    first, second = worker.take()
    worker.fail(first)
    (third,) = worker.take()
    worker.fail(second)
    revoke = farm.claim(effects.SendRevoke)
    assert list(revoke.tokens) == [third]
    assert farm.states("j") == "FFCCC"
    assert farm.job("j").state is JobState.CANCELLED
    assert farm.job("j").cause == "more than 1 tasks ended without success"


def test_requests_on_jobs_that_are_not_there_are_refused(farm: Harness) -> None:
    job_id = JobId("nope")
    for make in (
        lambda n: events.CloseJob(request=n, job_id=job_id),
        lambda n: events.PauseJob(request=n, job_id=job_id, paused=True),
        lambda n: events.CancelJob(request=n, job_id=job_id, cause=""),
        lambda n: events.CancelTask(request=n, job_id=job_id, index=0, cause=""),
        lambda n: events.RetryJob(request=n, job_id=job_id, new_job_id=JobId("x")),
    ):
        refused(farm, make, errors.JobNotFound, "no job 'nope' here")


def test_small_tasks_are_bounded_too_and_what_failed_ones_keep_is_named() -> None:
    farm = Harness(CoreConfig(payload_bytes_max=40 * (TASK_BYTES + 60_000)))
    worker = farm.worker(slots=1)
    big = [b"x" * 60_000] * 39
    farm.create("old", big)
    refused(farm, lambda n: create_event(n, "j", [b""] * 602), errors.Overloaded, r"submit again when some have run$")
    worker.take()
    farm.cancel("old")
    farm.claim_all(effects.SendRevoke)
    refused(
        farm,
        lambda n: create_event(n, "j", [b""] * 602),
        errors.Overloaded,
        "or purge ended jobs, whose failed and cancelled tasks keep 2 MiB for a retry",
    )
    farm.purge("old")
    farm.create("j", [b""] * 602)


def test_payloads_are_dropped_with_success_alone(farm: Harness) -> None:
    worker = farm.worker(slots=2)
    farm.create("j", [b"12345", b"678"])
    first, second = worker.take()
    assert farm.state.kept_bytes == 8 + 2 * TASK_BYTES
    worker.run([first])
    worker.fail(second)
    assert farm.state.kept_bytes == 3 + TASK_BYTES
    assert farm.job("j").counts[TaskState.FAILED] == 1
    farm.purge("j")
    assert farm.state.kept_bytes == 0


def test_the_wall_clock_is_recorded_and_not_believed(farm: Harness) -> None:
    farm.create("j", 1, close=False, timeouts=Timeouts(queue_ns=10 * SECOND_NS))
    farm.wall_offset_ns -= 86_400 * SECOND_NS
    farm.wait(9)
    assert farm.states("j") == "Q"
    farm.wait(2)
    assert farm.states("j") == "E"
