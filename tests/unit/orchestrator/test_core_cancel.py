"""Cancelling: first the commit, then the revocations; after it no success is recorded (I16)."""

from __future__ import annotations

import pytest
from orchestrator_harness import Harness, create_event, retrying

from antfarm import errors
from antfarm.model import Ending, JobId, JobState, VerdictCode
from services.orchestrator.core import effects, events, records


def test_cancel_ends_every_task_and_stops_what_runs(farm: Harness) -> None:
    w1, w2 = farm.worker("w1"), farm.worker("w2")
    farm.create("j", 4, close=False)
    (t1,), (t2,) = w1.take(), w2.take()
    w1.run([t1])
    (t3,) = w1.take()
    farm.cancel("j", "enough")
    assert farm.states("j") == "SCCC"
    assert list(farm.claim(effects.SendRevoke, session=w1.session).tokens) == [t3]
    assert farm.claim(effects.SendRevoke, session=w2.session).cause == "enough"
    assert farm.job("j").state is JobState.CANCELLED
    assert w2.report(t2, Ending.REVOKED) is VerdictCode.SUPERSEDED
    assert w1.report(t3) is VerdictCode.SUPERSEDED


def test_the_answer_and_the_revocations_wait_for_the_commit(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", 1)
    worker.take()
    farm.autocommit = False
    farm.do(events.CancelJob(request=9, job_id=JobId("j"), cause=""))
    assert farm.sent == []
    farm.commit()
    farm.claim(effects.Reply, request=9)
    farm.claim(effects.SendRevoke)


def test_first_commit_wins_between_success_and_cancel(farm: Harness) -> None:
    worker = farm.worker(slots=2)
    farm.create("j", 2)
    first, second = worker.take()
    farm.autocommit = False
    sent = worker.outcome(first)
    farm.do(events.Outcomes(session=worker.session, job_id="j", epoch=1, outcomes=[sent]))
    farm.do(events.CancelJob(request=1, job_id=JobId("j"), cause=""))
    late = worker.outcome(second)
    farm.do(events.Outcomes(session=worker.session, job_id="j", epoch=1, outcomes=[late]))
    assert farm.states("j") == "SC"
    assert farm.sent == []
    farm.commit()
    assert worker.verdicts() == {sent.report_no: VerdictCode.ACCEPTED, late.report_no: VerdictCode.SUPERSEDED}
    assert list(farm.claim(effects.SendRevoke).tokens) == [second]
    farm.drop(effects.Reply)
    farm.restart()
    assert farm.states("j") == "SC"


def test_a_cancel_that_was_not_committed_never_happened(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", 1)
    (token,) = worker.take()
    farm.autocommit = False
    farm.do(events.CancelJob(request=1, job_id=JobId("j"), cause=""))
    farm.restart()
    farm.autocommit = True
    farm.commit()
    worker.attach()
    assert worker.held.keys() == {token}
    assert worker.report(token) is VerdictCode.ACCEPTED
    assert farm.states("j") == "S"


def test_a_heartbeat_does_not_tell_of_a_cancel_before_it_is_durable(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", 1)
    (token,) = worker.take()
    farm.autocommit = False
    farm.do(events.CancelJob(request=1, job_id=JobId("j"), cause=""))
    farm.do(events.Heartbeat(session=worker.session, number=1, frames_received=1, held=[token]))
    assert farm.sent == []
    farm.commit()
    assert list(farm.claim(effects.AckHeartbeat).revoked) == [token]
    farm.drop(effects.Reply, effects.SendRevoke)


def test_one_task_is_cancelled_alone(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", 3)
    (token,) = worker.take()
    farm.cancel_task("j", 2, "not this one")
    assert farm.states("j") == "AQC"
    farm.cancel_task("j", 0)
    assert list(farm.claim(effects.SendRevoke).tokens) == [token]
    worker.take()
    assert farm.states("j") == "CAC"
    ended = [r for r in farm.records if isinstance(r, records.TasksEnded)]
    assert [r.ended[0].failure.message for r in ended if r.ended[0].failure] == [
        "not this one",
        "cancelled by a user",
    ]


def test_what_has_ended_stays_as_it_is(farm: Harness) -> None:
    worker = farm.worker(slots=2)
    farm.create("j", 2)
    first, second = worker.take()
    worker.run([first])
    before = farm.state.seq
    farm.cancel_task("j", 0)
    assert farm.state.seq == before
    worker.fail(second)
    before = farm.state.seq
    farm.cancel("j")
    assert farm.state.seq == before
    assert farm.job("j").state is JobState.FAILED


def test_cancelling_twice_is_cancelling_once(farm: Harness) -> None:
    farm.create("j", 2)
    farm.cancel("j", "first")
    before = farm.state.seq
    farm.cancel("j", "second")
    assert farm.state.seq == before
    assert farm.job("j").cause == "first"


@pytest.mark.parametrize("index", [-1, 2, 1 << 60])
def test_a_task_that_is_not_there_cannot_be_cancelled(farm: Harness, index: int) -> None:
    farm.create("j", 2)
    error = farm.refusal(lambda n: events.CancelTask(request=n, job_id=JobId("j"), index=index, cause=""))
    assert type(error) is errors.TaskNotFound
    assert "has 2 tasks" in str(error)


def test_tasks_in_back_off_and_waiting_ones_are_cancelled_too(farm: Harness) -> None:
    worker = farm.worker(slots=1)
    farm.do(create_event(1, "j", 2, retry=retrying(3, 10.0)))
    (token,) = worker.take()
    worker.fail(token)
    farm.drop(effects.Reply)
    assert farm.states("j") == "WA"
    farm.cancel("j")
    farm.drop(effects.SendRevoke, effects.SendTasks)
    farm.wait(30)
    farm.drop(effects.Audit, effects.Refuse)
    assert farm.states("j") == "CC"


def test_a_cancelled_task_is_told_to_stop_at_the_next_attach_when_the_revoke_was_lost(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", 1)
    (token,) = worker.take()
    worker.detach()
    farm.cancel("j")
    assert worker.held.keys() == {token}
    assert list(worker.attach().revoked) == [token]
    assert not worker.held
