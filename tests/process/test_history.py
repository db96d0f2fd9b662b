"""The history checker finds what is wrong with a run, each kind by its name, and nothing where nothing is."""

from __future__ import annotations

from pathlib import Path

from history import Execution, Fault, History, Outcome, check, note_begin, note_end, read_executions


def ran(
    index: int, attempt: int = 1, agent: int = 100, began_at: float = 1.0, ended_at: float | None = 2.0
) -> Execution:
    return Execution("job", index, (1, attempt), agent + 1, agent, began_at, ended_at)


def won(index: int, attempt: int = 1, result: bytes | None = None) -> Outcome:
    return Outcome(index, True, attempt, b"%d" % index**2 if result is None else result)


def history(count: int = 2) -> History:
    """Two tasks, executed once each and recorded."""
    made = History(submitted={"job": count}, acknowledged={"job": 0.5})
    made.executions = [ran(index) for index in range(count)]
    made.recorded["job"] = [won(index) for index in range(count)]
    made.told = [("job", won(0))]
    return made


def test_a_good_run_is_clean_and_says_so() -> None:
    verdict = check(history())
    assert verdict.clean
    assert str(verdict) == (
        "0 faults, 2 tasks, 2 executions: 0 lost, 0 double-recorded, 0 recorded wrongly, 0 executed more than once (0 without excuse, "
        "0 begun before their submission was acknowledged), "
        "0 unexpected, 0 recovered, slowest detection none"
    )


def test_a_lost_task_is_found_also_when_it_was_executed() -> None:
    run = history()
    del run.recorded["job"][1]
    verdict = check(run)
    assert verdict.lost == [("job", 1)]
    assert not verdict.clean
    assert "lost: [('job', 1)]" in str(verdict)


def test_a_whole_job_that_is_not_there_any_more_is_lost() -> None:
    run = history()
    run.recorded.clear()
    run.told.clear()
    assert check(run).lost == [("job", 0), ("job", 1)]


def test_what_was_never_acknowledged_may_be_missing_but_counts_where_it_is_there() -> None:
    run = history()
    run.submitted["other"] = 3
    assert check(run).clean
    run.recorded["other"] = [won(0), won(1)]
    run.executions += [Execution("other", 0, (1, 1), 1, 100, 1.0, 2.0)]
    assert check(run).clean


def test_a_task_recorded_twice_is_found() -> None:
    run = history()
    run.recorded["job"].append(won(1))
    assert check(run).double_recorded == [("job", 1)]


def test_a_wrong_result_a_failure_and_a_winner_that_never_ran_are_found() -> None:
    run = history(4)
    run.recorded["job"][1] = won(1, result=b"7")
    run.recorded["job"][2] = Outcome(2, False, 1, b"", state=6)
    run.recorded["job"][3] = won(3, attempt=9)
    assert check(run).wrong == [
        "job/1: its result is b'7', not b'1'",
        "job/2: it ended in state 6",
        "job/3: attempt 9, which is said to have won, was not executed to its end",
    ]


def test_a_winner_that_was_cut_short_is_found() -> None:
    run = history()
    run.executions[1].ended_at = None
    assert check(run).wrong == ["job/1: attempt 1, which is said to have won, was not executed to its end"]


def test_an_outcome_that_changed_after_a_client_was_told_is_found() -> None:
    run = history()
    run.executions.append(ran(0, 2, began_at=3.0, ended_at=4.0))
    run.faults = [Fault("w", 2.5, 100)]
    run.recorded["job"][0] = won(0, attempt=2)
    assert check(run).wrong == ["job/0: a client was told otherwise"]


def test_tasks_that_nobody_submitted_are_found_where_they_ran_and_where_they_are_recorded() -> None:
    run = history()
    run.executions.append(ran(2))
    run.recorded["ghost"] = [won(0)]
    run.executions.append(Execution("ghost", 0, (1, 1), 1, 100, 1.0, 2.0))
    assert check(run).unexpected == [("ghost", 0), ("job", 2)]


def test_cancelled_tasks_may_end_without_success() -> None:
    run = history()
    run.recorded["job"][1] = Outcome(1, False, 0, b"", state=7)
    run.cancelled = {"job"}
    assert check(run).clean


def repeated(*faults: Fault, second: Execution | None = None) -> History:
    """Task 1 begins at 1.0 under agent 100 and is cut short; it is executed again at 5.0 under agent 200."""
    run = history()
    run.executions[1].ended_at = None
    run.executions.append(second or ran(1, 2, agent=200, began_at=5.0, ended_at=6.0))
    run.recorded["job"][1] = won(1, attempt=2)
    run.faults = list(faults)
    return run


def test_a_repeat_after_the_death_of_its_worker_is_excused_and_timed() -> None:
    verdict = check(repeated(Fault("w", 2.0, 100)))
    assert verdict.clean
    assert (verdict.repeated, verdict.recovered, verdict.slowest_detection_s) == (1, 1, 3.0)


def test_a_repeat_without_excuse_is_found() -> None:
    assert check(repeated()).unexcused == [("job", 1)]
    assert check(repeated(Fault("orchestrator", 2.0))).unexcused == [("job", 1)], "an orchestrator excuses nothing"
    assert check(repeated(Fault("w", 2.0, 200))).unexcused == [("job", 1)], "another worker excuses nothing"
    assert check(repeated(Fault("w", 5.5, 100))).unexcused == [("job", 1)], "it died after the repeat"
    assert check(repeated(Fault("w", 0.2, 100, until=0.9))).unexcused == [("job", 1)], "it was well again before"


def test_what_began_before_its_submission_was_acknowledged_may_go_with_the_orchestrator() -> None:
    run = repeated(Fault("orchestrator", 2.0))
    run.acknowledged["job"] = 3.0
    verdict = check(run)
    assert verdict.clean
    assert verdict.premature == 1
    assert check(repeated()).unexcused == [("job", 1)]


def test_one_token_is_never_executed_twice() -> None:
    again = ran(1, 1, agent=100, began_at=5.0, ended_at=6.0)
    run = repeated(Fault("w", 2.0, 100), second=again)
    run.recorded["job"][1] = won(1)
    assert check(run).unexcused == [("job", 1)]


def test_a_zombie_that_begins_an_old_attempt_late_is_excused_by_what_was_done_to_it() -> None:
    run = history()
    run.executions[1] = ran(1, 1, agent=100, began_at=7.0, ended_at=8.0)  # waited in the stopped worker
    run.executions.append(ran(1, 2, agent=200, began_at=5.0, ended_at=6.0))
    run.recorded["job"][1] = won(1, attempt=2)
    run.faults = [Fault("w", 2.0, 100, until=6.5)]
    assert check(run).clean


def test_what_handlers_note_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "executions"
    assert read_executions(path) == []
    note_begin(str(path), "a", 3, 2, 1, 10.5)
    note_begin(str(path), "a", 4, 2, 1, 10.75)
    note_end(str(path), "a", 3, 2, 1, 11.0)
    first, second = read_executions(path)
    assert (first.task, first.token, first.began_at, first.ended_at) == (("a", 3), (2, 1), 10.5, 11.0)
    assert (second.task, second.ended_at) == (("a", 4), None)
    assert first.pid > 0 < first.agent
