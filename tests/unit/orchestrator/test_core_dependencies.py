"""Tasks that wait for tasks of other jobs: released by success, failed by anything else, however and whenever it comes."""

from __future__ import annotations

import pytest
from orchestrator_harness import Harness, create_event, each, retrying, whole

from antfarm.model import FailureClass, JobState, Timeouts, VerdictCode
from services.orchestrator.core import effects, records


def last_failure(farm: Harness, job_id: str, index: int) -> str:
    number = farm.job(job_id).number
    for record in farm.records:
        if isinstance(record, records.TasksEnded) and record.job == number:
            for ended in record.ended:
                if ended.index == index and ended.failure is not None:
                    return f"{ended.failure.failure_class.name}: {ended.failure.message}"
    raise AssertionError("no failure is recorded")


def test_each_task_goes_when_its_own_one_has_succeeded(farm: Harness) -> None:
    worker = farm.worker(slots=3)
    farm.create("a", 3)
    farm.create("b", 3, dependencies=(each("a"),))
    assert farm.states("b") == "WWW"
    tokens = worker.take()
    worker.run([tokens[1]])
    assert worker.take() == [("b", 1, 1, 1)]
    assert farm.states("b") == "WAW"


def test_an_offset_shifts_what_is_waited_for(farm: Harness) -> None:
    worker = farm.worker(slots=4)
    farm.create("a", 3)
    farm.create("b", 2, dependencies=(each("a", 1),))
    tokens = worker.take()
    worker.run([tokens[0]])
    assert farm.states("b") == "WW"
    worker.run([tokens[2]])
    assert worker.take() == [("b", 1, 1, 1)]


def test_a_negative_offset_leaves_nothing_to_wait_for_the_first_tasks(farm: Harness) -> None:
    farm.create("a", 2)
    farm.create("b", 2, dependencies=(each("a", -1),))
    assert farm.states("b") == "FW"


def test_all_waits_for_the_end_of_the_whole_job_however_it_ends(farm: Harness) -> None:
    worker = farm.worker(slots=2)
    farm.create("a", 2, close=False)
    farm.create("b", 2, dependencies=(whole("a"),))
    first, second = worker.take()
    worker.run([first])
    worker.fail(second)
    assert farm.states("b") == "WW"
    farm.close_job("a")
    assert farm.states("b") == "AA"
    assert len(worker.take()) == 2


def test_all_of_an_empty_job_waits_for_nothing(farm: Harness) -> None:
    farm.create("a", 0)
    farm.create("b", 1, dependencies=(whole("a"),))
    assert farm.states("b") == "Q"


def test_all_of_a_cancelled_job_is_met_by_its_end(farm: Harness) -> None:
    farm.create("a", 2, close=False)
    farm.create("b", 1, dependencies=(whole("a"),))
    farm.cancel("a")
    assert farm.states("b") == "Q"


def test_several_dependencies_must_all_be_met(farm: Harness) -> None:
    worker = farm.worker(slots=2, types=("t", "u"))
    farm.create("a", 1)
    farm.create("b", 1, type="u")
    farm.create("c", 1, dependencies=(each("a"), whole("b")))
    by_job = {token[0]: token for token in worker.take()}
    worker.run([by_job["a"]])
    assert farm.states("c") == "W"
    worker.run([by_job["b"]])
    assert farm.states("c") == "A"
    worker.take()


@pytest.mark.parametrize("how", ["fail", "cancel", "cancel task", "expire"])
def test_a_task_whose_input_ended_otherwise_fails_and_takes_its_dependents_with_it(farm: Harness, how: str) -> None:
    worker = farm.worker(slots=1)
    farm.create("a", 2, timeouts=Timeouts(total_ns=1_000_000_000 if how == "expire" else None))
    farm.create("b", 2, dependencies=(each("a"),))
    farm.create("c", 2, dependencies=(each("b"),))
    (token,) = worker.take()
    match how:
        case "fail":
            worker.fail(token)
        case "cancel":
            farm.cancel("a")
        case "cancel task":
            farm.cancel_task("a", 0)
        case _:
            farm.wait(2, beating=[worker])
    farm.drop(effects.SendRevoke, effects.SendTasks)
    ended = "FF" if how in ("cancel", "expire") else "FW"
    assert (farm.states("b"), farm.states("c")) == (ended, ended)
    assert last_failure(farm, "b", 0) == "DEPENDENCY: the task of job a that it needs did not succeed"
    assert last_failure(farm, "c", 0) == "DEPENDENCY: the task of job b that it needs did not succeed"
    if ended == "FF":
        assert farm.job("c").state is JobState.FAILED


def test_a_failed_dependency_counts_on_no_budget(farm: Harness) -> None:
    farm.create("a", 1)
    farm.create("b", 1, dependencies=(each("a"),))
    farm.cancel("a")
    ended = [r for r in farm.records if isinstance(r, records.TasksEnded)][-1].ended[0]
    assert ended.failure is not None
    assert (ended.failure.failure_class, ended.attempt) == (FailureClass.DEPENDENCY, 0)


def test_tasks_that_come_late_find_what_they_wait_for(farm: Harness) -> None:
    worker = farm.worker(slots=3)
    farm.create("a", 3)
    farm.create("b", 1, dependencies=(each("a"),), close=False)
    first, second, third = worker.take()
    worker.run([first, second])
    worker.fail(third)
    worker.take()
    farm.append("b", 1, 2)
    assert farm.states("b") == "AAF"
    worker.take()


def test_a_job_that_ends_short_fails_those_who_wait_for_more(farm: Harness) -> None:
    worker = farm.worker(slots=2)
    farm.create("a", 1, close=False)
    farm.create("b", 3, dependencies=(each("a"),))
    worker.take()
    worker.run()
    assert farm.states("b") == "AWW"
    farm.close_job("a")
    assert farm.states("b") == "AFF"
    farm.append("b", 0, 3)
    worker.take()


def test_a_job_that_ends_short_with_failures_fails_those_who_wait_for_more(farm: Harness) -> None:
    worker = farm.worker(slots=2)
    farm.create("a", 2, close=False)
    farm.create("b", 4, dependencies=(each("a"),))
    first, second = worker.take()
    worker.fail(first)
    worker.run([second])
    farm.close_job("a")
    assert farm.states("b") == "FAFF"
    worker.take()


def test_a_job_closed_before_its_last_task_ended_fails_the_surplus_at_its_end(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("a", 1, close=True)
    farm.create("b", 2, dependencies=(each("a"),))
    assert farm.states("b") == "WF"
    worker.take()
    worker.run()
    assert farm.states("b") == "AF"
    worker.take()


def test_a_cascade_through_a_thousand_jobs_ends(farm: Harness) -> None:
    farm.feed(create_event(10_000, "j0", 1))
    for number in range(1, 1_000):
        farm.feed(create_event(10_000 + number, f"j{number}", 1, dependencies=(each(f"j{number - 1}"),)))
    farm.cancel("j0")
    farm.drop(effects.Reply)
    assert farm.job("j999").state is JobState.FAILED
    assert farm.job("j500").state is JobState.FAILED


def test_a_dependent_leaves_only_when_what_it_needs_is_durable(farm: Harness) -> None:
    worker = farm.worker(slots=1)
    farm.create("a", 1)
    farm.create("b", 1, dependencies=(each("a"),))
    (token,) = worker.take()
    farm.autocommit = False
    worker.send("a", 1, [worker.outcome(token)])
    assert farm.states("b") == "A"
    assert worker.take() == []
    farm.commit()
    assert worker.take() == [("b", 0, 1, 1)]
    assert list(worker.verdicts().values()) != []


def test_waiting_tasks_wait_again_after_a_restart(farm: Harness) -> None:
    worker = farm.worker(slots=2)
    farm.create("a", 2)
    farm.create("b", 2, dependencies=(each("a"),))
    first, second = worker.take()
    worker.run([first])
    worker.take()
    farm.restart()
    assert farm.states("b") == "QW"
    worker.attach()
    assert farm.states("b") == "AW"
    worker.run([second])
    assert farm.states("b") == "AA"
    worker.take()


def test_a_purged_dependency_is_not_missed_by_those_that_have_ended(farm: Harness) -> None:
    worker = farm.worker(slots=1)
    farm.create("a", 1)
    farm.create("b", 1, dependencies=(each("a"),))
    for _ in range(2):
        worker.take()
        worker.run()
    farm.purge("a")
    farm.restart()
    assert farm.job("b").state is JobState.SUCCEEDED


@pytest.mark.parametrize("first_succeeds", [True, False])
def test_after_a_restored_backup_a_retry_waits_for_what_it_depends_on(farm: Harness, first_succeeds: bool) -> None:
    """The backup is of before the first job ended; a worker comes with an attempt that began after that."""
    worker = farm.worker(slots=2)
    farm.create("a", 1)
    farm.create("b", 1, dependencies=(each("a"),), retry=retrying(3))
    (first,) = worker.take()
    worker.detach()
    farm.restart()
    worker.attach()
    later = ("b", 0, 1, 1)
    worker.held[later] = b""
    assert worker.fail(later) is VerdictCode.ACCEPTED
    assert farm.states("b") == "W"
    farm.wait(5, beating=[worker])
    assert (farm.states("a"), farm.states("b")) == ("A", "W")
    if first_succeeds:
        assert worker.report(first) is VerdictCode.ACCEPTED
        assert worker.take() == [("b", 0, 2, 2)]
    else:
        worker.fail(first)
        assert farm.states("b") == "F"
