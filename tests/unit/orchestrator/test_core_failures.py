"""Failures count on the budget of their class, and on no other (I17); pauses, timeouts and deadlines end in the stated states."""

from __future__ import annotations

from typing import Any

import pytest
from orchestrator_harness import Harness, Worker, create_event, failure, keep_busy, retrying

from antfarm.model import (
    SECOND_NS,
    Ending,
    Failure,
    FailureClass,
    JobState,
    RetryPolicy,
    SessionId,
    TaskState,
    Timeouts,
    VerdictCode,
)
from services.orchestrator.core import effects, events, records
from services.orchestrator.core.turn import CoreConfig


def ended(farm: Harness) -> records.EndedTask:
    record = farm.records[-2] if isinstance(farm.records[-1], records.JobEnded) else farm.records[-1]
    assert isinstance(record, records.TasksEnded)
    return record.ended[0]


def again(farm: Harness, worker: Worker) -> tuple[str, int, int, int]:
    """The next attempt, however long the pause before it."""
    for _ in range(70):
        taken = worker.take()
        if taken:
            return taken[0]
        farm.wait(1, beating=[worker])
    raise AssertionError("no further attempt came")


@pytest.mark.parametrize(
    ("failure_class", "attempts", "state"),
    [
        (FailureClass.APP, 3, "F"),
        (FailureClass.CRASH, 3, "D"),
        (FailureClass.INFRA, 6, "D"),
        (FailureClass.PERMANENT, 1, "F"),
        (FailureClass.DEPENDENCY, 1, "F"),
    ],
)
def test_each_class_has_its_budget(farm: Harness, failure_class: FailureClass, attempts: int, state: str) -> None:
    worker = farm.worker()
    farm.create("j", 1, retry=retrying(3, 1.0))
    for number in range(1, attempts + 1):
        token = again(farm, worker)
        assert token[3] == number
        assert farm.states("j") == "A"
        assert worker.fail(token, failure_class) is VerdictCode.ACCEPTED
    assert farm.states("j") == state
    last, expected = ended(farm).failure, failure(failure_class)
    assert last is not None
    assert (last.failure_class, last.kind) == (expected.failure_class, expected.kind)
    assert last.message.startswith(expected.message)
    assert ended(farm).attempt == attempts
    assert farm.job("j").retried == attempts - 1


def test_budgets_do_not_mix(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", 1, retry=retrying(2, 0.0))
    classes = [FailureClass.INFRA] * 5 + [FailureClass.CRASH] * 2 + [FailureClass.APP]
    for failure_class in classes:
        worker.fail(again(farm, worker), failure_class)
    note = farm.job("j").notes[0]
    assert (note.app_failures, note.crashes, note.infra_failures) == (1, 2, 5)
    worker.run([again(farm, worker)])
    assert farm.states("j") == "S"


@pytest.mark.parametrize("ending", [Ending.RELEASED, Ending.REVOKED])
def test_benign_endings_count_nowhere(farm: Harness, ending: Ending) -> None:
    worker = farm.worker()
    farm.create("j", 1)
    for number in range(1, 30):
        (token,) = worker.take()
        assert token[3] == number
        assert worker.report(token, ending) is VerdictCode.ACCEPTED
    note = farm.job("j").notes[0]
    assert (note.app_failures, note.crashes, note.infra_failures, note.last_failure) == (0, 0, 0, None)
    assert not [r for r in farm.records if isinstance(r, records.AttemptFailed)]
    worker.run(worker.take())


@pytest.mark.parametrize(("attempts", "counted"), [(5, 2), (3, 2), (2, 1)], ids=["some left", "one left", "one stays"])
def test_retries_that_were_used_below_count_on_what_is_handed_back(farm: Harness, attempts: int, counted: int) -> None:
    below = farm.worker("below", orchestrator=True)
    farm.create("j", 1, retry=retrying(attempts, 60.0))
    (token,) = below.take()
    assert below.report(token, Ending.RELEASED, app_failures=2) is VerdictCode.ACCEPTED
    assert below.report(token, Ending.RELEASED, app_failures=2) is VerdictCode.DUPLICATE
    (again,) = below.take()
    assert again[3] == 2, "at once: its pause was for the cluster to keep"
    below.release(again, never_started=False)
    for _ in range(2):
        note = farm.job("j").notes[0]
        assert (note.app_failures, note.crashes, note.infra_failures) == (counted, 0, 0)
        assert note.last_failure is not None
        assert note.last_failure.message == f"it was handed back after failures there: {counted}"
        farm.drop(effects.SendTasks)
        farm.restart()


def test_retries_used_below_are_added_to_those_used_here(farm: Harness) -> None:
    worker = farm.worker("w")
    farm.create("j", 1, retry=retrying(4, 0.0))
    worker.fail(worker.take()[0])
    worker.goodbye()
    below = farm.worker("below", orchestrator=True)
    (token,) = below.take()
    below.report(token, Ending.RELEASED, app_failures=2)
    assert farm.job("j").notes[0].app_failures == 3
    (last,) = below.take()
    below.report(last, Ending.RELEASED, app_failures=0)
    assert farm.job("j").notes[0].app_failures == 3
    farm.drop(effects.SendTasks)


def test_a_worker_has_no_retries_to_tell_of(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", 1, retry=retrying(4))
    (token,) = worker.take()
    assert worker.report(token, Ending.RELEASED, app_failures=2) is VerdictCode.ACCEPTED
    assert farm.job("j").notes[0].app_failures == 0
    farm.drop(effects.SendTasks)


def test_what_runs_at_most_once_has_no_retries_below(farm: Harness) -> None:
    below = farm.worker("below", orchestrator=True)
    farm.create("j", 1, retry=retrying(4), at_most_once=True)
    (token,) = below.take()
    assert below.report(token, Ending.RELEASED, app_failures=2, never_started=True) is VerdictCode.ACCEPTED
    assert not [record for record in farm.records if isinstance(record, records.AttemptFailed)]
    farm.drop(effects.SendTasks)


def test_a_failure_of_class_benign_is_a_release(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", 1)
    (token,) = worker.take()
    worker.report(token, Ending.FAILED, failure=Failure(failure_class=FailureClass.BENIGN))
    assert worker.take() == [("j", 0, 1, 2)]
    assert farm.state.workers["w1"].failed == 0


@pytest.mark.parametrize("ending", [Ending.FAILED, Ending.TIMED_OUT])
def test_a_failure_without_words_is_the_tasks_own(farm: Harness, ending: Ending) -> None:
    worker = farm.worker()
    farm.create("j", 1)
    (token,) = worker.take()
    worker.report(token, ending)
    assert farm.states("j") == "F"
    failed = ended(farm).failure
    assert failed is not None
    assert failed.failure_class is FailureClass.APP


def test_pauses_double_up_to_their_bound_with_full_jitter() -> None:
    drawn: list[float] = []

    class Dice:
        def random(self) -> float:
            return 0.5

    farm = Harness()
    farm.core._dice = Dice()
    worker = farm.worker()
    policy = RetryPolicy(max_attempts=9, backoff_initial_ns=SECOND_NS, backoff_max_ns=6 * SECOND_NS)
    farm.create("j", 1, retry=policy)
    for _ in range(5):
        worker.fail(again(farm, worker))
        until = farm.job("j").notes[0].wait_until_ns
        assert until is not None
        drawn.append(round((until - farm.now) / SECOND_NS, 3))
    assert drawn == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_a_node_that_is_lost_once_costs_no_pause_and_later_ones_do(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", 1)
    worker.fail(again(farm, worker), FailureClass.INFRA)
    assert worker.take() == [("j", 0, 1, 2)]
    worker.fail(("j", 0, 1, 2), FailureClass.INFRA)
    assert farm.states("j") == "W"
    note = farm.job("j").notes[0]
    assert note.wait_until_ns is not None
    assert note.wait_until_ns - farm.now <= 3 * SECOND_NS


def test_an_absurd_number_of_attempts_does_not_overflow_the_pause(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", 1, retry=RetryPolicy(max_attempts=1 << 31, backoff_max_ns=SECOND_NS))
    for _ in range(100):
        worker.fail(again(farm, worker))
    assert farm.states("j") == "W"


def test_a_back_off_that_was_overtaken_does_not_end_the_next_one_early(farm: Harness) -> None:
    worker = farm.worker()
    farm.core._dice = type("Dice", (), {"random": lambda self: 1.0})()
    farm.create("j", 1, retry=retrying(9, 10.0))
    (token,) = worker.take()
    worker.detach()
    farm.wait(13)
    farm.drop(effects.Audit)
    worker.incarnation = b"2"
    worker.attach()
    assert worker.beat() == []
    assert farm.states("j") == "A"
    worker.fail(token)
    farm.wait(6, beating=[worker])
    job = farm.job("j")
    assert farm.states("j") == "W"
    # As if a stale timer of an earlier back-off came due now.
    farm.state.arm(farm.now, "retry", job.number, 0)
    farm.wait(1, beating=[worker])
    assert farm.states("j") == "W"
    farm.wait(4, beating=[worker])
    assert worker.take() == [("j", 0, 1, 2)]


# ---- timeouts --------------------------------------------------------------------------------------------------------


def test_queue_time_to_live_ends_what_waits_and_spares_what_runs_or_ran(farm: Harness) -> None:
    worker = farm.worker(slots=2)
    farm.create("j", 5, timeouts=Timeouts(queue_ns=5 * SECOND_NS), retry=retrying(3, 60.0))
    first, second = worker.take()
    worker.fail(first)
    worker.take()
    worker.release(second)
    worker.credit(0)
    worker.release(next(t for t in worker.held if t[1] == 2))
    farm.drop(effects.SendTasks)
    assert farm.states("j")[0] == "W"
    farm.wait(6, beating=[worker])
    assert farm.states("j")[0] == "W"
    assert set(farm.states("j")[1:]) <= {"A", "E"}
    assert farm.states("j")[3:] == "EE"
    assert ended(farm).failure == Failure(
        failure_class=FailureClass.EXPIRED, kind="expired", message="its time in the queue is over"
    )


def test_a_task_that_was_out_when_its_time_in_the_queue_ended_expires_when_it_comes_back_unbegun(farm: Harness) -> None:
    worker = farm.worker(slots=2)
    farm.create("j", 3, timeouts=Timeouts(queue_ns=5 * SECOND_NS), retry=retrying(3, 60.0))
    first, second, *_ = worker.take()
    worker.credit(0)
    farm.wait(6, beating=[worker])
    worker.release(first)
    assert farm.states("j")[0] == "E"
    assert ended(farm).failure == Failure(
        failure_class=FailureClass.EXPIRED, kind="expired", message="its time in the queue is over"
    )
    worker.fail(second)  # it has begun: that is another matter
    assert farm.states("j")[1] == "W"


def test_it_does_not_expire_while_somebody_may_still_come_back_with_it(farm: Harness) -> None:
    worker, other = farm.worker("w1"), farm.worker("w2")
    farm.create("j", 1, timeouts=Timeouts(queue_ns=5 * SECOND_NS))
    (token,) = worker.take() or other.take()
    farm.restart()
    third = farm.worker("w3")
    holder = worker if token in worker.held else other
    holder.attach()
    farm.wait(6, beating=[third, holder])
    holder.release(token)
    assert farm.states("j") == "Q"
    farm.wait(7, beating=[third, holder])
    assert farm.states("j") == "E"


def test_what_queued_too_long_is_not_given_out_when_the_last_holder_is_back(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("running", 1)
    worker.take()
    farm.create("j", 1, timeouts=Timeouts(queue_ns=20 * SECOND_NS))
    farm.create("patient", 1, timeouts=Timeouts(queue_ns=100 * SECOND_NS))
    farm.restart(after_s=60)
    farm.wait(1)
    assert farm.states("j") == "Q"  # it may be the one that runs
    worker.attach()
    worker.run()
    assert (farm.states("j"), farm.states("running"), farm.states("patient")) == ("E", "S", "A")
    farm.drop(effects.SendTasks)


def test_what_is_submitted_after_a_restart_was_with_nobody_before_it(farm: Harness) -> None:
    farm.worker(types=("other",), orchestrator=True)
    farm.restart()
    farm.create("j", 1, timeouts=Timeouts(queue_ns=2 * SECOND_NS))
    farm.wait(3)
    assert farm.state.recovering_until_ns is not None
    assert farm.states("j") == "E"


def test_what_queued_too_long_while_the_orchestrator_stood_still_is_not_given_out(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("running", 1, timeouts=Timeouts(total_ns=30 * SECOND_NS))
    (token,) = worker.take()
    farm.create("j", 1, timeouts=Timeouts(queue_ns=20 * SECOND_NS))
    farm.tick(0.25)
    farm.now += 60 * SECOND_NS
    farm.feed(
        events.Outcomes(session=worker.session, job_id=token[0], epoch=token[2], outcomes=[worker.outcome(token)])
    )
    farm.feed(events.Tick(wall_ns=farm.wall_ns))
    farm.place()
    farm.commit()
    assert (farm.states("j"), farm.states("running")) == ("E", "S")
    farm.drop(effects.SendVerdicts)


def test_a_total_deadline_ends_everything_and_stops_what_runs(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", 2, timeouts=Timeouts(total_ns=5 * SECOND_NS))
    (token,) = worker.take()
    farm.wait(6, beating=[worker])
    assert farm.states("j") == "EE"
    assert list(farm.claim(effects.SendRevoke).tokens) == [token]
    assert worker.report(token) is VerdictCode.SUPERSEDED


def test_an_assignment_carries_what_is_left_of_the_total_deadline(farm: Harness) -> None:
    farm.create("j", 2, close=False, timeouts=Timeouts(total_ns=100 * SECOND_NS))
    farm.wait(10)
    farm.append("j", 2, 1)
    farm.wait(10)
    farm.worker(slots=3)
    frame = farm.claim(effects.SendTasks)
    ((_, assigned),) = frame.groups
    left_s = [round((task.remaining_ns or 0) / SECOND_NS) for task in assigned]
    assert left_s == [80, 80, 90]


def test_each_batch_has_its_own_deadlines(farm: Harness) -> None:
    farm.create("j", 1, close=False, timeouts=Timeouts(total_ns=10 * SECOND_NS))
    farm.wait(6)
    farm.append("j", 1, 1)
    farm.wait(5)
    assert farm.states("j") == "EQ"
    farm.wait(6)
    assert farm.states("j") == "EE"


def test_the_backstop_ends_an_attempt_that_its_worker_does_not(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", 1, retry=retrying(2, 0.0), timeouts=Timeouts(run_ns=10 * SECOND_NS))
    (token,) = worker.take()
    farm.wait(5, beating=[worker])
    worker.running(token, 4.0)
    farm.wait(17.5, beating=[worker])
    assert farm.states("j") == "A"
    assert farm.job("j").live[0].token == token
    farm.wait(1, beating=[worker])
    assert list(farm.claim(effects.SendRevoke).tokens) == [token]
    note = farm.job("j").notes[0]
    assert note.app_failures == 1
    assert note.last_failure is not None
    assert note.last_failure.kind == "timeout"
    farm.drop(effects.SendTasks)
    assert worker.report(token) is VerdictCode.SUPERSEDED


def test_the_backstop_is_not_for_what_an_orchestrator_below_has_bound_and_may_not_run_yet(farm: Harness) -> None:
    below = farm.worker(orchestrator=True)
    farm.create("j", 1, timeouts=Timeouts(run_ns=10 * SECOND_NS))
    (token,) = below.take()
    below.running(token)
    farm.wait(60, beating=[below])
    assert farm.job("j").live[0].token == token
    assert below.report(token) is VerdictCode.ACCEPTED


def test_the_backstop_revokes_again_with_the_next_heartbeat_when_its_word_was_lost(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", 1, retry=retrying(2, 0.0), timeouts=Timeouts(run_ns=SECOND_NS))
    (token,) = worker.take()
    worker.running(token)
    farm.wait(13.5, beating=[worker])
    farm.drop(effects.SendRevoke, effects.SendTasks)
    worker.held[token] = b""
    assert token in worker.beat(held=[token], frames=1)
    farm.drop(effects.SendTasks)


def test_the_backstop_counts_from_the_start_also_after_a_restart(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", 1, timeouts=Timeouts(run_ns=10 * SECOND_NS))
    (token,) = worker.take()
    worker.running(token, 0.0)
    farm.wait(5, beating=[worker])
    farm.restart()
    worker.attach()
    worker.running(token, 5.0)
    farm.wait(16.75, beating=[worker])
    assert farm.states("j") == "A"
    farm.wait(0.5, beating=[worker])
    assert farm.states("j") == "F"
    farm.claim(effects.SendRevoke)


def test_a_worker_that_says_that_the_total_time_is_over_expires_the_task(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", 1, timeouts=Timeouts(total_ns=30 * SECOND_NS))
    (token,) = worker.take()
    farm.wait(20, beating=[worker])
    over = failure(FailureClass.EXPIRED, "expired")
    assert worker.report(token, Ending.TIMED_OUT, failure=over) is VerdictCode.ACCEPTED
    assert farm.states("j") == "E"
    farm.close()


@pytest.mark.parametrize("total_s", [None, 60])
def test_one_that_says_so_much_too_early_hands_the_task_back(farm: Harness, total_s: int | None) -> None:
    worker = farm.worker()
    farm.create("j", 1, timeouts=Timeouts(total_ns=total_s and total_s * SECOND_NS))
    (token,) = worker.take()
    over = failure(FailureClass.EXPIRED, "expired")
    assert worker.report(token, Ending.TIMED_OUT, failure=over) is VerdictCode.ACCEPTED
    assert [next_token[3] for next_token in worker.take()] == [2]
    assert farm.job("j").notes[0].app_failures == 0


def test_what_is_left_of_the_total_time_is_not_what_the_wall_clock_says(farm: Harness) -> None:
    farm.create("j", 1, timeouts=Timeouts(total_ns=60 * SECOND_NS))
    farm.tick(2)
    farm.wall_offset_ns += 3600 * SECOND_NS
    farm.tick(1)
    farm.worker()
    (frame,) = farm.claim_all(effects.SendTasks)
    left_ns = frame.groups[0][1][0].remaining_ns
    assert left_ns is not None
    assert 56 * SECOND_NS < left_ns <= 57 * SECOND_NS


def test_a_backstop_does_not_fire_on_the_next_attempt(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", 1, retry=retrying(2, 0.0), timeouts=Timeouts(run_ns=2 * SECOND_NS))
    (token,) = worker.take()
    worker.running(token)
    farm.wait(10, beating=[worker])
    worker.fail(token)
    (second,) = worker.take()
    farm.wait(10, beating=[worker])
    assert farm.job("j").live[0].token == second
    assert farm.job("j").notes[0].app_failures == 1


def test_a_report_that_waited_while_the_process_stood_still_beats_the_backstop(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", 1, timeouts=Timeouts(run_ns=2 * SECOND_NS))
    (token,) = worker.take()
    worker.running(token)
    farm.tick()
    farm.tick(60)
    assert worker.report(token) is VerdictCode.ACCEPTED
    farm.tick()
    assert farm.states("j") == "S"


def test_progress_is_kept_while_the_attempt_lives(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", 1)
    (token,) = worker.take()
    worker.running(token, progress=0.5, progress_text="half")
    worker.running(token)
    attempt = farm.job("j").live[0]
    assert (attempt.progress, attempt.progress_text, attempt.started) == (0.5, "half", True)
    for wrong in (("j", 0, 1, 2), ("j", 0, 9, 1), ("k", 0, 1, 1), ("j", 5, 1, 1)):
        worker.running(wrong, progress=0.9)
    assert attempt.progress == 0.5
    farm.do(events.Running(session=SessionId("none"), job_id="j", index=0, epoch=1, attempt=1, running_for_ns=0))


# ---- at most once ----------------------------------------------------------------------------------------------------


def once(farm: Harness, **spec: Any) -> tuple[Worker, tuple[str, int, int, int]]:
    worker = farm.worker()
    farm.create("j", 1, at_most_once=True, **spec)
    (token,) = worker.take()
    return worker, token


def test_an_at_most_once_token_is_durable_before_it_is_sent(farm: Harness) -> None:
    worker = farm.worker()
    farm.autocommit = False
    farm.do(create_event(1, "j", 1, at_most_once=True))
    assert worker.take() == []
    assert farm.records[-1] == records.AttemptIssued(job=1, index=0, epoch=1, attempt=1, worker_id="w1")
    farm.commit()
    assert worker.take() == [("j", 0, 1, 1)]
    farm.drop(effects.Reply)


def test_what_never_started_is_given_out_again(farm: Harness) -> None:
    worker, token = once(farm)
    assert worker.release(token, never_started=True) is VerdictCode.ACCEPTED
    assert worker.take() == [("j", 0, 1, 2)]
    assert worker.report(token) is VerdictCode.SUPERSEDED
    worker.held.clear()
    worker.beat()
    assert worker.take() == [("j", 0, 1, 3)]
    worker.run()


def test_what_had_started_is_given_up_rather_than_run_twice(farm: Harness) -> None:
    worker, token = once(farm)
    worker.release(token, never_started=False)
    assert farm.states("j") == "D"


@pytest.mark.parametrize(
    ("failure_class", "state"),
    [(FailureClass.APP, "F"), (FailureClass.CRASH, "D"), (FailureClass.INFRA, "D"), (FailureClass.PERMANENT, "F")],
)
def test_a_failure_is_final_whatever_the_retries(farm: Harness, failure_class: FailureClass, state: str) -> None:
    worker, token = once(farm, retry=retrying(5, 0.0))
    worker.fail(token, failure_class)
    assert farm.states("j") == state


def test_a_silent_holder_is_waited_for_and_then_given_up(farm: Harness) -> None:
    worker, token = once(farm)
    worker.detach()
    farm.wait(13)
    farm.claim(effects.Audit)
    assert farm.states("j") == "A"
    other = farm.worker("w2")
    farm.wait(290, beating=[other])
    assert farm.states("j") == "A"
    assert other.take() == []
    farm.wait(12, beating=[other])
    assert farm.states("j") == "D"
    worker.incarnation = b"2"
    worker.attach()
    assert worker.held == {}
    assert token[3] == 1


def test_a_pause_of_the_orchestrator_counts_against_no_silent_holder(farm: Harness) -> None:
    worker, token = once(farm)
    worker.detach()
    farm.wait(13)
    farm.claim(effects.Audit)
    farm.tick(400)
    farm.wait(280)
    assert farm.states("j") == "A"
    farm.wait(18)
    farm.tick(400)
    farm.tick()
    assert farm.states("j") == "A", "what came meanwhile is read first"
    worker.incarnation = b"2"
    worker.attach()
    assert worker.report(token) is VerdictCode.ACCEPTED


def test_a_late_success_of_a_silent_holder_counts(farm: Harness) -> None:
    worker, token = once(farm)
    worker.detach()
    farm.wait(200)
    farm.claim(effects.Audit)
    worker.incarnation = b"2"
    worker.attach()
    assert farm.job("j").live[0].token == token
    farm.wait(150, beating=[worker])  # the orphan hold of the silence before does not end it
    assert worker.report(token) is VerdictCode.ACCEPTED
    assert farm.states("j") == "S"


def test_each_silence_has_its_whole_orphan_hold(farm: Harness) -> None:
    worker, _ = once(farm)
    worker.detach()
    farm.wait(100)
    worker.incarnation = b"2"
    worker.attach()
    worker.detach()
    farm.wait(250)
    assert farm.states("j") == "A"
    farm.wait(80)
    assert farm.states("j") == "D"
    farm.drop(effects.Audit)


def test_over_a_restart_the_only_token_stays_the_only_one(farm: Harness) -> None:
    worker, token = once(farm)
    farm.restart()
    assert farm.states("j") == "A"
    other = farm.worker("w2")
    farm.wait(70, beating=[other])
    assert other.take() == []
    worker.attach()
    assert farm.job("j").live[0].token == token
    assert worker.report(token) is VerdictCode.ACCEPTED


def test_over_a_restart_a_holder_that_stays_away_is_given_up(farm: Harness) -> None:
    once(farm)
    farm.restart()
    farm.wait(301)
    assert farm.states("j") == "D"


def test_a_returned_token_may_be_issued_again_after_a_restart(farm: Harness) -> None:
    worker, token = once(farm)
    worker.credit(0)
    worker.release(token)
    farm.restart()
    assert farm.states("j") == "Q"
    worker.window = 1
    worker.attach()
    assert worker.take() == [("j", 0, 2, 1)]


def test_an_unknown_token_of_an_earlier_epoch_that_this_life_has_begun_is_fenced(farm: Harness) -> None:
    worker = farm.worker(slots=1)
    farm.create("j", 1)
    (token,) = worker.take()
    farm.create("x", 0)
    farm.purge("x")
    farm.create("x", 0)
    assert farm.state.epoch == token[2] + 1
    assert worker.report((*token[:3], 7)) is VerdictCode.FENCED
    farm.claim(effects.Audit)
    assert worker.report(token) is VerdictCode.ACCEPTED


def test_an_unknown_token_of_an_at_most_once_task_is_fenced(farm: Harness) -> None:
    worker, _ = once(farm)
    farm.restart()
    worker.attach()
    assert worker.report(("j", 0, 1, 7)) is VerdictCode.FENCED
    farm.claim(effects.Audit)


def test_an_assignment_that_was_not_durable_was_never_sent(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("k", 0)
    farm.autocommit = False
    farm.do(create_event(1, "j", 1, at_most_once=True))
    farm.commit()
    farm.drop(effects.Reply)
    (token,) = worker.take()
    worker.send("j", 1, [worker.outcome(token, Ending.RELEASED, never_started=True)])
    assert worker.take() == []
    farm.restart()  # neither the return nor the second token was committed
    assert farm.job("j").counts[TaskState.ACTIVE] == 1
    farm.autocommit = True
    farm.commit()
    worker.attach()
    assert worker.release(token) is VerdictCode.ACCEPTED
    assert worker.take() == [("j", 0, 2, 2)]


# ---- ends of several attempts at once --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["falls silent", "is restarted", "leaves", "does not have them"])
def test_a_worker_that_goes_takes_several_tasks_of_a_job_that_the_first_of_them_ends(how: str) -> None:
    """It had one failure too many: what else the worker held of it has been cancelled when its turn comes."""
    farm = Harness(CoreConfig(infra_failures_max=0))
    worker = farm.worker(slots=3)
    farm.create("j", 3, max_failures=0, timeouts=Timeouts(queue_ns=5 * SECOND_NS))
    worker.take()
    farm.wait(6, beating=[worker])
    match how:
        case "falls silent":
            farm.wait(13)
        case "is restarted":
            worker.die()
        case "leaves":
            worker.goodbye()
        case "does not have them":
            worker.detach()
            worker.held.clear()
            worker.attach()
    assert farm.states("j") == ("ECC" if how in ("leaves", "does not have them") else "DCC")
    assert farm.job("j").state is JobState.CANCELLED
    farm.drop()


def test_what_a_quarantine_takes_back_may_have_waited_too_long(farm: Harness) -> None:
    other, third = farm.worker("w2"), farm.worker("w3")
    keep_busy(farm, other, third)
    bad = farm.worker("w1", slots=8)
    farm.create("j", 3)
    farm.create("k", 2, timeouts=Timeouts(queue_ns=5 * SECOND_NS))
    tokens = bad.take()
    farm.wait(6, beating=[bad, other, third])
    for token in [token for token in tokens if token[0] == "j"]:
        bad.fail(token)
    assert farm.state.quarantined
    assert farm.states("k") == "EE"
    farm.drop()
