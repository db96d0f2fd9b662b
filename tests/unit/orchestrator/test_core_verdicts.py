"""The verdict on a report, row by row (semantics section 7): as `judge` reads the token, and as the worker is answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from orchestrator_harness import Harness, Worker, append_event, durable_parts, failure, retrying

from antfarm.model import BlobRef, Ending, FailureClass, JobState, TaskState, VerdictCode
from services.orchestrator.core import effects, events, records
from services.orchestrator.core.reports import Judgement, judge
from services.orchestrator.core.state import PAST_MAX, Past
from services.orchestrator.core.turn import Turn

A, D, S, F, U = (
    VerdictCode.ACCEPTED,
    VerdictCode.DUPLICATE,
    VerdictCode.SUPERSEDED,
    VerdictCode.FENCED,
    VerdictCode.UNKNOWN_TASK,
)


def judged(farm: Harness, worker: Worker, token: tuple[str, int, int, int]) -> Judgement:
    turn = Turn(farm.state, farm.config, None, farm.now, 0)  # type: ignore[arg-type]
    job_id, index, epoch, attempt = token
    return judge(turn, farm.state.workers[worker.worker_id], farm.job(job_id), epoch, index, attempt)


@dataclass
class Case:
    """Two workers; w1 was given task j/0 first. `token` is w1's."""

    farm: Harness
    w1: Worker
    w2: Worker
    token: tuple[str, int, int, int]


def prepare(farm: Harness, **spec: Any) -> Case:
    w1 = farm.worker("w1")
    farm.create("j", 1, close=False, retry=retrying(9, 0.0), **spec)
    (token,) = w1.take()
    return Case(farm, w1, farm.worker("w2"), token)


def lose_w1(case: Case) -> None:
    """w1 falls silent beyond its lease; w2 is given the task."""
    case.w1.detach()
    case.farm.wait(13, beating=[case.w2])
    case.farm.claim(effects.Audit)
    assert case.w2.take() == [("j", 0, 1, 2)]


def return_w1(case: Case, *, finished: bool = True) -> list[tuple[str, int, int, int]]:
    """w1 is back, knowing nothing of its loss but that it must be another incarnation. What it is told to forget."""
    case.w1.incarnation = b"w1-2"
    case.w1.finished = {case.token} if finished else ()
    return list(case.w1.attach().revoked)


def test_live(farm: Harness) -> None:
    case = prepare(farm)
    assert judged(farm, case.w1, case.token) is Judgement.LIVE
    assert case.w1.report(case.token, result=b"42", run_us=7) is A
    record = farm.records[-1]
    assert record == records.TasksEnded(
        job=1,
        worker_id="w1",
        ended=[
            records.EndedTask(index=0, state=TaskState.SUCCEEDED, epoch=1, attempt=1, result=b"42", run_us=7),
        ],
    )


def test_a_success_is_recorded_as_it_was_sent(farm: Harness) -> None:
    case = prepare(farm)
    manifest = (BlobRef(key="tasks/j/0/1-1/a", size_bytes=3, sha256=b"x" * 32),)
    case.w1.report(case.token, result=b"r", outputs=manifest)
    record = farm.records[-1]
    assert isinstance(record, records.TasksEnded)
    (ended,) = record.ended
    assert (record.worker_id, ended.epoch, ended.attempt, ended.result, ended.outputs) == ("w1", 1, 1, b"r", manifest)


def test_a_foreign_worker_is_fenced_and_audited_and_changes_nothing(farm: Harness) -> None:
    case = prepare(farm)
    assert judged(farm, case.w2, case.token) is Judgement.FENCED
    before = farm.state.seq
    assert case.w2.report(case.token) is F
    assert farm.claim(effects.Audit).text == "fenced: w2 reported j/0 epoch 1 attempt 1, not issued to it"
    assert farm.state.seq == before
    assert case.w1.report(case.token) is A


@pytest.mark.parametrize(
    "token",
    [
        ("j", 0, 1, 2),
        ("j", 0, 2, 1),
        ("j", 0, 1 << 62, 1),
        ("j", 0, 1, 0),
        ("j", 0, 0, 1),
        ("j", 0, 1, (1 << 32) - 1),
    ],
)
def test_a_token_that_was_never_issued_is_fenced(farm: Harness, token: tuple[str, int, int, int]) -> None:
    case = prepare(farm)
    assert judged(farm, case.w1, token) is Judgement.FENCED
    assert case.w1.report(token) is F
    farm.claim(effects.Audit)
    assert farm.states("j") == "A"


def test_a_report_again_is_a_duplicate_in_the_same_frame_and_later(farm: Harness) -> None:
    case = prepare(farm)
    first, again = case.w1.outcome(case.token), case.w1.outcome(case.token)
    assert case.w1.send("j", 1, [first, again]) == {first.report_no: A, again.report_no: D}
    assert judged(farm, case.w1, case.token) is Judgement.DUPLICATE
    assert case.w1.report(case.token, result=b"another") is D
    assert len([r for r in farm.records if isinstance(r, records.TasksEnded)]) == 1


def test_a_duplicate_is_acknowledged_no_earlier_than_what_it_repeats(farm: Harness) -> None:
    case = prepare(farm)
    farm.autocommit = False
    first, again = case.w1.outcome(case.token), case.w1.outcome(case.token)
    assert case.w1.send("j", 1, [first]) == {}
    assert case.w1.send("j", 1, [again]) == {}
    farm.commit()
    assert case.w1.verdicts() == {first.report_no: A, again.report_no: D}


def test_the_task_is_unknown_when_the_job_or_the_index_is(farm: Harness) -> None:
    case = prepare(farm)
    assert case.w1.report(("nope", 0, 1, 1)) is U
    assert case.w1.report(("j", 1, 1, 1)) is U
    assert case.w1.report(("j", 1 << 60, 1, 1)) is U
    assert case.w1.held.keys() == {case.token}


def test_a_purged_job_is_unknown_once_the_purge_is_durable(farm: Harness) -> None:
    case = prepare(farm)
    farm.close_job("j")
    lose_w1(case)
    case.w2.run()
    return_w1(case)
    farm.autocommit = False
    farm.do(events.PurgeJob(request=1, job_id=farm.job("j").job_id))
    assert case.w1.send("j", 1, [case.w1.outcome(case.token)]) == {}
    farm.commit()
    assert list(case.w1.verdicts().values()) == [U]
    farm.drop(effects.Reply)


def test_a_late_success_counts_and_the_attempt_that_replaced_it_is_stopped(farm: Harness) -> None:
    case = prepare(farm)
    lose_w1(case)
    return_w1(case)
    assert judged(farm, case.w1, case.token) is Judgement.LATE
    assert case.w1.report(case.token, result=b"late") is A
    assert list(farm.claim(effects.SendRevoke, session=case.w2.session).tokens) == [("j", 0, 1, 2)]
    assert case.w2.report(("j", 0, 1, 2), Ending.REVOKED) is S
    assert farm.states("j") == "S"
    assert farm.job("j").winners[0] == 1 << 32 | 1


def test_an_owed_report_is_kept_beside_a_newer_attempt_over_heartbeats_and_streams(farm: Harness) -> None:
    case = prepare(farm)
    lose_w1(case)
    assert return_w1(case) == []
    assert case.w1.beat() == [], "a heartbeat may overtake the report"
    case.w1.detach()
    assert list(case.w1.attach().revoked) == [], "a hello says it anew"
    assert case.w1.report(case.token) is A
    assert list(farm.claim(effects.SendRevoke).tokens) == [("j", 0, 1, 2)]


def test_a_hello_without_unacked_has_the_older_attempt_revoked(farm: Harness) -> None:
    case = prepare(farm)
    lose_w1(case)
    assert return_w1(case, finished=False) == [case.token]
    assert farm.job("j").notes[0].past[1, 1] == ("w1", Past.REVOKED)


@pytest.mark.parametrize("ending", [Ending.SUCCEEDED, Ending.RELEASED, Ending.REVOKED])
def test_a_report_of_what_was_revoked_changes_nothing(farm: Harness, ending: Ending) -> None:
    case = prepare(farm)
    lose_w1(case)
    return_w1(case, finished=False)
    before = durable_parts(farm.state)
    assert case.w1.report(case.token, ending) is S
    assert durable_parts(farm.state) == before
    assert farm.job("j").live[0].token == ("j", 0, 1, 2)


def test_a_task_that_a_token_owes_for_is_not_given_away_while_nobody_has_it(farm: Harness) -> None:
    case = prepare(farm)
    case.w2.credit(0)
    case.w1.detach()
    farm.wait(13, beating=[case.w2])
    farm.claim(effects.Audit)
    assert return_w1(case) == []
    assert farm.job("j").live[0].token == case.token, "nobody has taken it since: its holder's token is live again"
    assert case.w1.report(case.token) is A


def test_after_a_restart_an_owed_report_counts_beside_the_newer_attempt_that_was_adopted(farm: Harness) -> None:
    case = prepare(farm)
    lose_w1(case)
    farm.restart()
    case.w2.attach()
    assert return_w1(case) == []
    assert case.w1.report(case.token) is A
    assert list(farm.claim(effects.SendRevoke, session=case.w2.session).tokens) == [("j", 0, 1, 2)]
    assert farm.job("j").winners[0] == 1 << 32 | 1


def test_with_fencing_an_owed_report_of_a_lost_attempt_is_forgotten(farm: Harness) -> None:
    case = prepare(farm, fence_late_results=True)
    lose_w1(case)
    assert return_w1(case) == [case.token]


def test_a_late_success_is_told_when_the_other_one_was_faster(farm: Harness) -> None:
    case = prepare(farm)
    lose_w1(case)
    assert case.w2.report(("j", 0, 1, 2)) is A
    return_w1(case)
    assert judged(farm, case.w1, case.token) is Judgement.SUPERSEDED
    assert case.w1.report(case.token) is S


def test_a_late_failure_is_superseded_and_not_counted_again(farm: Harness) -> None:
    case = prepare(farm)
    lose_w1(case)
    return_w1(case)
    note = farm.job("j").notes[0]
    assert (note.app_failures, note.infra_failures) == (0, 1)
    assert case.w1.fail(case.token) is S
    assert (note.app_failures, note.infra_failures) == (0, 1)
    assert farm.states("j") == "A"


def test_with_fencing_only_a_live_token_may_report(farm: Harness) -> None:
    case = prepare(farm, fence_late_results=True)
    lose_w1(case)
    return_w1(case)
    assert judged(farm, case.w1, case.token) is Judgement.SUPERSEDED
    assert case.w1.report(case.token) is S
    assert farm.states("j") == "A"


def test_a_lost_token_counts_from_its_own_worker_alone(farm: Harness) -> None:
    case = prepare(farm)
    lose_w1(case)
    assert judged(farm, case.w2, case.token) is Judgement.FENCED
    assert case.w2.report(case.token) is F
    farm.claim(effects.Audit)


@pytest.mark.parametrize("failure_class", [FailureClass.APP, FailureClass.CRASH, FailureClass.INFRA])
def test_a_failure_reported_again_is_a_duplicate_and_counts_once(farm: Harness, failure_class: FailureClass) -> None:
    case = prepare(farm)
    outcome = case.w1.outcome(case.token, Ending.FAILED, failure=failure(failure_class))
    assert case.w1.send("j", 1, [outcome]) == {outcome.report_no: A}
    assert judged(farm, case.w1, case.token) is Judgement.DUPLICATE
    assert case.w1.fail(case.token, failure_class) is D
    note = farm.job("j").notes[0]
    assert note.app_failures + note.crashes + note.infra_failures == 1
    assert case.w2.take() == [("j", 0, 1, 2)]


def test_a_success_after_a_failure_of_the_same_attempt_is_superseded(farm: Harness) -> None:
    case = prepare(farm)
    assert case.w1.fail(case.token) is A
    assert case.w1.report(case.token) is S
    assert farm.states("j") in ("Q", "A")
    case.w2.take()


@pytest.mark.parametrize("ending", [Ending.RELEASED, Ending.REVOKED])
def test_a_release_reported_again_is_a_duplicate_and_is_not_taken_up_again(farm: Harness, ending: Ending) -> None:
    case = prepare(farm)
    case.w2.goodbye()
    assert case.w1.report(case.token, ending) is A
    assert case.w1.take() == [("j", 0, 1, 2)]
    assert judged(farm, case.w1, case.token) is Judgement.DUPLICATE
    assert case.w1.report(case.token, ending) is D
    assert case.w1.report(case.token) is S
    assert farm.job("j").live[0].attempt == 2


def test_a_heartbeat_between_a_release_and_its_verdict_does_not_take_the_task_up_again(farm: Harness) -> None:
    case = prepare(farm)
    case.w1.credit(0)
    case.w2.goodbye()
    farm.autocommit = False
    farm.do(events.PauseJob(request=1, job_id=farm.job("j").job_id, paused=True))
    case.w1.send("j", 1, [case.w1.outcome(case.token, Ending.RELEASED, never_started=True)])
    assert farm.states("j") == "Q"
    assert case.w1.beat() == []
    assert farm.states("j") == "Q"
    farm.commit()
    assert list(case.w1.verdicts().values()) == [A]
    farm.drop(effects.Reply)


@pytest.mark.parametrize("failure_class", [FailureClass.APP, FailureClass.CRASH, FailureClass.INFRA])
def test_a_heartbeat_between_a_failure_and_its_verdict_neither_revokes_nor_resumes_it(
    farm: Harness, failure_class: FailureClass
) -> None:
    case = prepare(farm)
    case.w2.goodbye()
    case.w1.credit(0)
    farm.autocommit = False
    case.w1.send("j", 1, [case.w1.outcome(case.token, Ending.FAILED, failure=failure(failure_class))])
    assert farm.states("j") == "Q"
    assert case.w1.beat() == []
    assert farm.states("j") == "Q"
    farm.commit()
    assert list(case.w1.verdicts().values()) == [A]


def test_a_permanent_failure_that_ended_the_task_is_a_duplicate_when_repeated(farm: Harness) -> None:
    case = prepare(farm)
    assert case.w1.fail(case.token, FailureClass.PERMANENT) is A
    assert farm.states("j") == "F"
    assert case.w1.fail(case.token, FailureClass.PERMANENT) is D
    assert case.w1.report(case.token) is S


def test_a_success_of_the_attempt_whose_loss_used_up_the_budget_is_superseded(farm: Harness) -> None:
    case = prepare(farm)
    case.w2.goodbye()
    token = case.token
    for _ in range(6):
        case.w1.die()
        farm.wait(61, beating=[case.w1])
        taken = case.w1.take()
        if taken:
            (token,) = taken
    assert farm.states("j") == "D"
    assert case.w1.report(token) is S


def test_nothing_counts_from_a_session_that_has_ended(farm: Harness) -> None:
    case = prepare(farm)
    case.w1.detach()
    assert case.w1.send("j", 1, [case.w1.outcome(case.token)]) == {}
    assert farm.states("j") == "A"
    case.w1.attach()
    assert case.w1.report(case.token) is A


# ---- after a restart -------------------------------------------------------------------------------------------------


def test_a_report_of_an_earlier_epoch_is_adopted(farm: Harness) -> None:
    case = prepare(farm)
    farm.restart()
    case.w2.attach()
    case.w1.held.clear()  # the hello does not say it; the report alone is proof enough
    case.w1.attach()
    farm.drop(effects.SendTasks)
    assert judged(farm, case.w1, case.token) is Judgement.LATE  # it has been given out again since
    assert case.w1.report(case.token) is A
    farm.drop(effects.SendRevoke)
    assert farm.states("j") == "S"


def test_a_failure_of_an_earlier_epoch_counts_when_nothing_newer_was_issued(farm: Harness) -> None:
    case = prepare(farm)
    farm.pause("j")
    farm.restart()
    case.w1.held.clear()
    case.w1.attach()
    assert judged(farm, case.w1, case.token) is Judgement.ADOPT
    assert case.w1.fail(case.token) is A
    assert farm.job("j").notes[0].app_failures == 1


def test_whichever_of_two_holders_is_back_first_the_newer_token_stands(farm: Harness) -> None:
    for first in ("w1", "w2"):
        farm = Harness()
        case = prepare(farm)
        lose_w1(case)
        farm.restart()
        case.w1.incarnation = b"w1-2"
        assert case.w1.held.keys() == {("j", 0, 1, 1)}
        assert case.w2.held.keys() == {("j", 0, 1, 2)}
        order = [case.w1, case.w2] if first == "w1" else [case.w2, case.w1]
        for worker in order:
            worker.attach()
        assert farm.job("j").live[0].token == ("j", 0, 1, 2)
        assert case.w2.beat() == []
        assert case.w1.beat() in ([("j", 0, 1, 1)], [])
        assert not case.w1.held
        assert case.w2.report(("j", 0, 1, 2)) is A
        farm.close()


def test_an_older_token_still_counts_when_the_newer_one_is_back_too(farm: Harness) -> None:
    case = prepare(farm)
    lose_w1(case)
    farm.restart()
    case.w1.incarnation = b"w1-2"
    case.w1.attach()
    assert farm.job("j").live[0].token == ("j", 0, 1, 1)
    case.w2.attach()
    assert farm.job("j").live[0].token == ("j", 0, 1, 2)
    assert case.w1.report(("j", 0, 1, 1), result=b"first") is A
    assert list(farm.claim(effects.SendRevoke, session=case.w2.session).tokens) == [("j", 0, 1, 2)]
    assert farm.states("j") == "S"


def test_a_token_of_a_purged_job_does_not_count_for_another_job_of_that_id(farm: Harness) -> None:
    case = prepare(farm)
    lose_w1(case)
    case.w2.run()
    farm.close_job("j")
    farm.purge("j")
    case.w2.goodbye()
    return_w1(case)
    case.w1.credit(0)
    farm.create("j", [b"another"])
    assert judged(farm, case.w1, case.token) is Judgement.FENCED
    assert case.w1.report(case.token) is F
    farm.claim(effects.Audit)
    assert case.w1.beat() == []
    case.w1.credit(1)
    assert case.w1.take() == [("j", 0, 2, 1)]
    case.w1.run()
    assert farm.job("j").state is JobState.SUCCEEDED


def test_a_token_of_a_submission_that_was_lost_does_not_count_for_what_was_submitted_instead(farm: Harness) -> None:
    worker = farm.worker(slots=2)
    farm.create("j", 1, close=False)
    worker.take()
    farm.autocommit = False
    farm.do(append_event(99, "j", 1, [b"lost"]))
    assert worker.take() == [("j", 1, 1, 1)]
    farm.restart()
    farm.autocommit = True
    farm.commit()
    farm.append("j", 1, [b"another"])
    assert worker.attach().revoked == [("j", 1, 1, 1)]
    assert worker.held.keys() == {("j", 0, 1, 1)}
    assert worker.take() == [("j", 1, 2, 1)]


def test_many_endings_in_one_frame_are_judged_one_by_one(farm: Harness) -> None:
    worker = farm.worker(slots=4)
    farm.create("j", 4, close=False)
    tokens = worker.take()
    outcomes = [
        worker.outcome(tokens[0]),
        worker.outcome(tokens[1], Ending.FAILED, failure=failure()),
        worker.outcome(tokens[2], Ending.RELEASED, never_started=True),
        worker.outcome(tokens[3]),
        worker.outcome(("j", 9, 1, 1)),
        worker.outcome(tokens[0]),
    ]
    verdicts = worker.send("j", 1, outcomes)
    assert [verdicts[outcome.report_no] for outcome in outcomes] == [A, A, A, A, U, D]
    assert farm.states("j") == "SFAS"
    worker.take()


def test_of_very_many_attempts_the_oldest_are_forgotten(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", 1)
    for _ in range(PAST_MAX + 10):
        (token,) = worker.take()
        worker.release(token)
    past = farm.job("j").notes[0].past
    assert (len(past), min(past), max(past)) == (PAST_MAX, (1, 11), (1, PAST_MAX + 10))
    worker.run(worker.take())
    assert farm.states("j") == "S"
