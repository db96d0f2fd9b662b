"""Backups: a straggler of an idempotent type gets a second attempt on another host; the first success wins, and no end is worse for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from orchestrator_harness import Harness, Worker, durable_parts, retrying, straggler

from antfarm.model import SECOND_NS, ConcurrencyLimit, Ending, FailureClass, Timeouts, VerdictCode
from services.orchestrator.core import effects, records
from services.orchestrator.core.durations import SAMPLE_MAX, Durations
from services.orchestrator.core.state import Past

Token = tuple[str, int, int, int]


@dataclass
class Case:
    """Of the four tasks of job j three are done in a second each, and the last runs on w1. w2 is idle, on another host."""

    farm: Harness
    w1: Worker
    w2: Worker
    token: Token

    def wait(self, seconds: float) -> None:
        self.farm.wait(seconds, beating=[self.w1, self.w2])


def straggling(farm: Harness, *, age_s: float = 0.0, other: dict[str, Any] | None = None, **spec: Any) -> Case:
    w1, last = straggler(farm, **spec)
    case = Case(farm, w1, farm.worker("w2", **{"host": "b", **(other or {})}), last)
    case.wait(age_s)
    return case


def backed_up(farm: Harness, **spec: Any) -> tuple[Case, Token]:
    """The same, and w2 runs the backup."""
    case = straggling(farm, age_s=35, **spec)
    (backup,) = case.w2.take()
    case.w2.running(backup, 0.0)
    return case, backup


def test_a_straggler_gets_one_backup_elsewhere_after_ten_heartbeats(farm: Harness) -> None:
    case = straggling(farm, age_s=30)
    assert case.w2.take() == []
    case.wait(4)
    assert case.w2.take() == [("j", 3, 1, 2)]
    third = farm.worker("w3", host="c")
    farm.wait(20, beating=[case.w1, case.w2, third])
    assert third.take() == []
    assert [attempt.attempt for attempt in farm.job("j").attempts_of(3)] == [1, 2]
    assert not [record for record in farm.records if isinstance(record, records.AttemptFailed)]


def test_an_attempt_waits_for_three_medians_when_these_are_longer(farm: Harness) -> None:
    w1, _ = straggler(farm, run_s=20)
    w2 = farm.worker("w2", host="b")
    farm.wait(60, beating=[w1, w2])
    assert w2.take() == []
    farm.wait(4, beating=[w1, w2])
    assert w2.take() == [("j", 3, 1, 2)]


@pytest.mark.parametrize("winner", ["primary", "backup"])
def test_the_first_success_wins_and_the_other_is_revoked(farm: Harness, winner: str) -> None:
    case, backup = backed_up(farm)
    fast, slow = (case.w1, case.w2) if winner == "primary" else (case.w2, case.w1)
    won, lost = (case.token, backup) if winner == "primary" else (backup, case.token)
    assert fast.report(won, result=b"mine") is VerdictCode.ACCEPTED
    revoke = farm.claim(effects.SendRevoke, session=slow.session)
    assert (list(revoke.tokens), revoke.cause) == ([lost], "another attempt succeeded")
    assert farm.job("j").winners[3] == won[2] << 32 | won[3]
    before = durable_parts(farm.state)
    assert slow.report(lost, result=b"other") is VerdictCode.SUPERSEDED
    assert durable_parts(farm.state) == before
    assert farm.states("j") == "SSSS"


@pytest.mark.parametrize(
    "why",
    [{"idempotent": False}, {"at_most_once": True}, {"fence_late_results": True}],
    ids=["not idempotent", "at most once", "exclusive"],
)
def test_tasks_that_must_not_run_twice_get_none(farm: Harness, why: dict[str, Any]) -> None:
    case = straggling(farm, age_s=100, **why)
    assert case.w2.take() == []


@pytest.mark.parametrize(
    "other",
    [{"host": "a"}, {"types": ["u"]}, {"orchestrator": True}, {"window": 0}],
    ids=["same host", "another type", "an orchestrator", "no credit"],
)
def test_a_backup_needs_a_fit_idle_worker_on_another_host(farm: Harness, other: dict[str, Any]) -> None:
    case = straggling(farm, age_s=100, other=other)
    assert case.w2.take() == []


def test_a_worker_that_failed_the_task_gets_no_backup_of_it(farm: Harness) -> None:
    case = straggling(farm, retry=retrying(3, 0.0))
    case.w1.fail(case.token)
    (again,) = case.w2.take()
    case.w2.running(again, 0.0)
    case.wait(100)
    assert case.w1.take() == []


def test_none_before_three_quarters_are_done(farm: Harness) -> None:
    w1 = farm.worker("w1", slots=4, host="a")
    farm.create("j", 4, idempotent=True)
    tokens = w1.take()
    for token in tokens:
        w1.running(token, 0.0)
    w1.report(tokens[0], run_us=1_000_000)
    w1.report(tokens[1], run_us=1_000_000)
    w2 = farm.worker("w2", host="b")
    farm.wait(100, beating=[w1, w2])
    assert w2.take() == []
    w1.report(tokens[2], run_us=1_000_000)
    farm.wait(4, beating=[w1, w2])
    assert len(w2.take()) == 1


def test_a_backup_takes_as_many_idle_slots_as_its_task_needs(farm: Harness) -> None:
    w1 = farm.worker("w1", slots=8, host="a")
    farm.create("j", 4, idempotent=True, resources={"cpu": 2})
    *short, last = w1.take()
    w1.running(last, 0.0)
    for token in short:
        w1.report(token, run_us=1_000_000)
    w1.credit(1)
    w2 = farm.worker("w2", slots=2, host="b")
    farm.create("k", 1)
    (other,) = w2.take()
    farm.wait(100, beating=[w1, w2])
    assert w2.take() == [], "one slot is idle, and it needs two"
    w2.report(other)
    farm.wait(4, beating=[w1, w2])
    assert w2.take() == [("j", 3, 1, 2)]


def test_a_slot_that_work_waits_for_is_not_idle(farm: Harness) -> None:
    case = straggling(farm)
    farm.create("k", 9)
    case.w1.take()
    (other,) = case.w2.take()
    case.wait(100)
    assert case.w2.take() == []
    case.w2.report(other)
    assert [token[0] for token in case.w2.take()] == ["k"]


def test_an_attempt_whose_progress_says_that_it_is_nearly_there_gets_none(farm: Harness) -> None:
    case = straggling(farm)
    case.wait(20)
    case.w1.running(case.token, progress=0.99)
    case.wait(40)
    assert case.w2.take() == []
    case.w1.running(case.token, progress=0.5)
    case.wait(4)
    assert len(case.w2.take()) == 1


def test_what_waits_at_a_worker_has_not_started_and_gets_none(farm: Harness) -> None:
    w1 = farm.worker("w1", slots=4, host="a")
    farm.create("j", 4, idempotent=True)
    for token in w1.take()[:3]:
        w1.report(token, run_us=1_000_000)
    w2 = farm.worker("w2", host="b")
    farm.wait(100, beating=[w1, w2])
    assert w2.take() == []


def test_a_paused_job_gets_none(farm: Harness) -> None:
    case = straggling(farm)
    farm.pause("j")
    case.wait(100)
    assert case.w2.take() == []


@pytest.mark.parametrize(("stragglers", "expected"), [(5, 1), (45, 2)])
def test_one_in_twenty_running_attempts_is_a_backup_and_one_always_may_be(
    farm: Harness, stragglers: int, expected: int
) -> None:
    count = 4 * stragglers
    w1 = farm.worker("w1", slots=count, host="a")
    farm.create("j", count, idempotent=True)
    tokens = w1.take()
    for token in tokens[stragglers:]:
        w1.report(token, run_us=1_000_000)
    for token in tokens[:stragglers]:
        w1.running(token, 0.0)
    w2 = farm.worker("w2", slots=9, host="b")
    farm.wait(60, beating=[w1, w2])
    assert len(w2.take()) == expected


def test_a_backup_takes_part_in_a_concurrency_limit(farm: Harness) -> None:
    case = straggling(farm, limit=ConcurrencyLimit(name="web", max_active=4))
    farm.create("k", 1, limit=ConcurrencyLimit(name="web", max_active=1), type="of.nobody")
    case.wait(60)
    assert case.w2.take() == [], "one runs, and no more may"
    farm.cancel("k")
    case.wait(4)
    assert len(case.w2.take()) == 1
    assert farm.state.limits["web"].live == 2


# ---- what does not go well ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure_class", [FailureClass.APP, FailureClass.PERMANENT, FailureClass.CRASH])
def test_a_backup_that_fails_costs_nothing_and_is_not_begun_again(farm: Harness, failure_class: FailureClass) -> None:
    case, backup = backed_up(farm)
    before = durable_parts(farm.state)
    assert case.w2.fail(backup, failure_class) is VerdictCode.SUPERSEDED
    assert durable_parts(farm.state) == before
    assert [attempt.token for attempt in farm.job("j").attempts_of(3)] == [case.token]
    assert case.w2.report(backup) is VerdictCode.SUPERSEDED, "it said its last word"
    case.wait(60)
    assert case.w2.take() == []
    assert case.w1.report(case.token) is VerdictCode.ACCEPTED


def test_a_backup_that_is_handed_back_or_never_arrived_leaves_the_task_as_it_was(farm: Harness) -> None:
    case, backup = backed_up(farm)
    assert case.w2.release(backup) is VerdictCode.ACCEPTED
    assert farm.states("j") == "SSSA"
    assert case.w1.report(case.token) is VerdictCode.ACCEPTED


def test_a_backup_that_is_handed_back_after_failures_below_costs_nothing(farm: Harness) -> None:
    case, backup = backed_up(farm, retry=retrying(3))
    farm.state.workers["w2"].orchestrator = True
    assert case.w2.report(backup, Ending.RELEASED, app_failures=1) is VerdictCode.ACCEPTED
    assert farm.job("j").notes[3].app_failures == 0
    assert [attempt.token for attempt in farm.job("j").attempts_of(3)] == [case.token]


def test_a_backup_that_never_arrived_leaves_the_task_as_it_was(farm: Harness) -> None:
    case, _ = backed_up(farm)
    case.w2.beat(held=[])
    assert [attempt.token for attempt in farm.job("j").attempts_of(3)] == [case.token]
    assert farm.states("j") == "SSSA"


def test_a_primary_that_fails_for_good_ends_the_task_as_if_there_were_no_backup(farm: Harness) -> None:
    case, backup = backed_up(farm)
    assert case.w1.fail(case.token) is VerdictCode.ACCEPTED
    assert farm.states("j") == "SSSF"
    assert list(farm.claim(effects.SendRevoke, session=case.w2.session).tokens) == [backup]


def test_a_primary_that_fails_with_retries_left_is_counted_and_the_backup_is_its_retry(farm: Harness) -> None:
    case, backup = backed_up(farm, retry=retrying(2))
    assert case.w1.fail(case.token) is VerdictCode.ACCEPTED
    assert farm.states("j") == "SSSA", "no pause: it runs already"
    assert farm.job("j").notes[3].app_failures == 1
    case.wait(5)
    assert case.w1.take() == []
    assert case.w2.fail(backup) is VerdictCode.ACCEPTED
    assert farm.states("j") == "SSSF", "now it is the task's only attempt, and counts like any"


def test_the_next_token_is_above_both(farm: Harness) -> None:
    case, backup = backed_up(farm, retry=retrying(3, 0.0))
    case.w2.fail(backup)
    case.w1.fail(case.token)
    assert [token[2:] for token in case.w2.take()] == [(1, 3)]


def test_a_primary_that_is_lost_counts_and_its_late_success_still_wins(farm: Harness) -> None:
    case, backup = backed_up(farm)
    case.w1.detach()
    farm.wait(13, beating=[case.w2])
    farm.claim(effects.Audit)
    note = farm.job("j").notes[3]
    assert (note.crashes, note.infra_failures) == (0, 1)
    assert [attempt.token for attempt in farm.job("j").attempts_of(3)] == [backup]
    case.w1.incarnation, case.w1.finished = b"w1-2", {case.token}
    case.w1.attach()
    assert case.w1.report(case.token) is VerdictCode.ACCEPTED
    assert list(farm.claim(effects.SendRevoke).tokens) == [backup]


def test_a_backup_that_is_lost_does_not_count_and_its_late_success_still_wins(farm: Harness) -> None:
    case, backup = backed_up(farm)
    case.w2.detach()
    farm.wait(13, beating=[case.w1])
    farm.claim(effects.Audit)
    note = farm.job("j").notes[3]
    assert (note.crashes, note.infra_failures, note.past[1, 2]) == (0, 0, ("w2", Past.LOST))
    case.w2.incarnation, case.w2.finished = b"w2-2", {backup}
    case.w2.attach()
    assert case.w2.report(backup) is VerdictCode.ACCEPTED
    assert list(farm.claim(effects.SendRevoke).tokens) == [case.token]


def test_a_cancel_revokes_both(farm: Harness) -> None:
    case, backup = backed_up(farm)
    farm.cancel("j")
    revokes = farm.claim_all(effects.SendRevoke)
    assert sorted(token for revoke in revokes for token in revoke.tokens) == [case.token, backup]
    assert not farm.state.workers["w1"].live
    assert not farm.state.workers["w2"].live


def test_a_deadline_revokes_both(farm: Harness) -> None:
    case, backup = backed_up(farm, timeouts=Timeouts(total_ns=50 * SECOND_NS))
    case.wait(20)
    revokes = farm.claim_all(effects.SendRevoke)
    assert sorted(token for revoke in revokes for token in revoke.tokens) == [case.token, backup]
    assert farm.states("j") == "SSSE"


def test_the_backstop_of_the_run_timeout_ends_the_attempt_that_broke_it(farm: Harness) -> None:
    case, backup = backed_up(farm, retry=retrying(2, 0.0), timeouts=Timeouts(run_ns=30 * SECOND_NS))
    case.wait(10)
    assert list(farm.claim(effects.SendRevoke).tokens) == [case.token]
    assert farm.job("j").notes[3].app_failures == 1
    assert [attempt.token for attempt in farm.job("j").attempts_of(3)] == [backup]
    assert case.w2.report(backup) is VerdictCode.ACCEPTED


# ---- a restart ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["w1", "w2"])
def test_after_a_restart_both_go_on_in_whichever_order_they_are_back(farm: Harness, first: str) -> None:
    case, backup = backed_up(farm)
    farm.restart()
    for worker in (case.w1, case.w2) if first == "w1" else (case.w2, case.w1):
        assert list(worker.attach().revoked) == []
    assert [attempt.token for attempt in farm.job("j").attempts_of(3)] == [case.token, backup], (
        "the newer is the backup"
    )
    assert (case.w1.beat(), case.w2.beat()) == ([], [])
    assert case.w2.fail(backup) is VerdictCode.SUPERSEDED
    assert case.w1.report(case.token) is VerdictCode.ACCEPTED


def test_after_a_restart_of_two_tokens_of_a_task_that_must_not_run_twice_the_newer_goes_on(farm: Harness) -> None:
    w1, w2 = farm.worker("w1"), Worker(farm, "w2", 1)
    farm.create("j", 1, retry=retrying(9, 0.0))
    (older,) = w1.take()
    w2.attach()
    w1.detach()
    farm.autocommit = False  # the loss is not durable yet when the next attempt leaves
    farm.wait(13, beating=[w2])
    (newer,) = w2.take()
    farm.drop()
    farm.restart()
    farm.autocommit = True
    farm.commit()
    assert list(w1.attach().revoked) == []
    assert list(w2.attach().revoked) == []
    assert [attempt.token for attempt in farm.job("j").attempts_of(0)] == [newer]
    assert w1.beat() == [older]


def test_durations_are_learnt_again_from_the_journal(farm: Harness) -> None:
    case = straggling(farm)
    farm.restart()
    case.w1.attach()
    case.w2.attach()
    case.w1.running(case.token, 40.0)
    case.wait(4)
    assert case.w2.take() == [("j", 3, 2, 2)]


# ---- the sample -----------------------------------------------------------------------------------------------------------


def test_the_sample_is_bounded_and_even_over_the_whole_job() -> None:
    durations = Durations()
    assert durations.median_ns is None
    for number in range(10_000):
        durations.add(number)
        assert len(durations._kept) < SAMPLE_MAX
    median_ns = durations.median_ns
    assert median_ns is not None
    assert abs(median_ns - 5_000) < 100


def test_no_backup_goes_to_a_worker_that_is_kept_for_others(farm: Harness) -> None:
    case = straggling(farm, other={"slots": 2, "types": ("t", "x")})
    farm.create("narrow", 1_000, type="x")
    farm.create("wide", 1, type="x", resources={"cpu": 2.0})
    while farm.state.kept_for is None:
        case.w2.take()
        case.w2.run([next(iter(case.w2.held))])
        case.wait(1)
    assert farm.state.kept_for.worker.worker_id == "w2"
    case.w2.take()
    case.w2.run([next(iter(case.w2.held))])
    case.wait(5)
    assert case.w2.take() == []
    case.w2.run()
    assert [token[0] for token in case.w2.take()] == ["wide"]
