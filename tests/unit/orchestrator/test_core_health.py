"""Quarantine and paused types: who gets no work and why, how the way back is found, and that the farm never runs dry (L8)."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from orchestrator_harness import Harness, Worker, create_event, each, failure, keep_busy, retrying

from antfarm.model import PROCESS_LOST_KIND, Ending, Failure, FailureClass, JobId, VerdictCode, WorkerId
from services.orchestrator.core import effects, events


def farm_of(farm: Harness, count: int, slots: int = 1) -> list[Worker]:
    return [farm.worker(f"w{n}", slots=slots) for n in range(1, count + 1)]


def beside_busy(farm: Harness, count: int, slots: int = 1) -> list[Worker]:
    """So many workers: the first is idle, each other holds a task of job `busy` and wants no more."""
    others = [farm.worker(f"w{n}", slots=slots) for n in range(2, count + 1)]
    keep_busy(farm, *others)
    return [farm.worker("w1", slots=slots), *others]


def quarantined(farm: Harness) -> list[str]:
    return list(farm.state.quarantined)


def fail_next(worker: Worker, failure_class: FailureClass = FailureClass.APP) -> VerdictCode:
    """The worker fails the next task that it is given."""
    worker.take()
    return worker.fail(next(iter(worker.held)), failure_class)


def one_fails_three(farm: Harness, tasks: int) -> list[Worker]:
    """Three workers and a job: the first fails three of its tasks, the others are busy."""
    bad, *_ = workers = beside_busy(farm, 3)
    farm.create("j", tasks)
    for _ in range(3):
        fail_next(bad)
    return workers


def audits(farm: Harness) -> list[str]:
    return [audit.text for audit in farm.claim_all(effects.Audit)]


def assigned(farm: Harness, workers: Sequence[Worker]) -> list[int]:
    return [len(farm.state.workers[worker.worker_id].live) for worker in workers]


@pytest.mark.parametrize(
    ("failure_class", "counts"),
    [
        (FailureClass.PERMANENT, True),
        (FailureClass.APP, True),
        (FailureClass.CRASH, True),
        (FailureClass.INFRA, True),
        (FailureClass.BENIGN, False),
        (FailureClass.DEPENDENCY, False),
    ],
)
def test_three_tasks_that_failed_put_a_worker_into_quarantine(
    farm: Harness, failure_class: FailureClass, counts: bool
) -> None:
    bad, *_ = beside_busy(farm, 3, slots=3)
    farm.create("j", 10, retry=retrying(9))
    for token in bad.take():
        assert quarantined(farm) == []
        bad.fail(token, failure_class)
    assert quarantined(farm) == (["w1"] if counts else [])
    farm.drop()


def test_a_task_that_fails_again_and_again_says_nothing_of_its_worker(farm: Harness) -> None:
    bad, *others = farm_of(farm, 3)
    for other in others:
        other.credit(0)
    farm.create("j", 1, retry=retrying(9, 0.0))
    for _ in range(5):
        fail_next(bad)
    assert quarantined(farm) == []
    farm.drop(effects.SendTasks)


def test_three_failures_in_more_than_ten_endings_are_luck(farm: Harness) -> None:
    bad, *others = farm_of(farm, 3)
    for other in others:
        other.credit(0)
    farm.create("j", 40)
    for _ in range(3):
        fail_next(bad)
        for _ in range(4):
            bad.run(bad.take())
    assert quarantined(farm) == []
    farm.drop(effects.SendTasks)


def test_a_worker_in_quarantine_is_given_one_task_after_half_a_minute_and_its_success_ends_it(farm: Harness) -> None:
    bad, *others = beside_busy(farm, 3, slots=2)
    farm.create("j", 50)
    bad.take()
    for token in list(bad.held)[:2]:
        bad.fail(token)
    bad.take()
    (third, fourth) = bad.held
    bad.running(fourth)
    bad.fail(third)
    assert audits(farm) == [
        "quarantine: worker w1: 3 tasks failed of its last 3, the last one with: ValueError it went wrong"
    ]
    bad.run([fourth])
    farm.wait(29, beating=[bad, *others])
    assert bad.take() == []
    farm.wait(2, beating=[bad, *others])
    (canary,) = bad.take()
    farm.wait(40, beating=[bad, *others])
    assert bad.take() == []
    bad.run([canary])
    assert audits(farm) == ["quarantine ended: worker w1: a task succeeded there"]
    first, _ = bad.take()
    bad.fail(first)
    assert quarantined(farm) == []  # the past is forgiven
    farm.drop(effects.SendTasks)


def test_the_time_between_canaries_doubles_up_to_half_an_hour(farm: Harness) -> None:
    bad, *others = one_fails_three(farm, 50)
    waited = []
    for _ in range(8):
        since = farm.now
        while not (taken := bad.take()):
            farm.wait(1, beating=[bad, *others])
        bad.fail(taken[0])
        waited.append(round((farm.now - since) / 1e9))
    assert waited == [30, 60, 120, 240, 480, 960, 1800, 1800]
    audits(farm)


@pytest.mark.parametrize(("count", "broken"), [(2, 1), (4, 2), (5, 2)])
def test_a_paused_type_is_tried_on_each_worker_in_turn(farm: Harness, count: int, broken: int) -> None:
    """The first ones cannot reach their Storage. Tried on these alone, all tasks would wait while the others stand idle."""
    workers = farm_of(farm, count)
    farm.create("j", 60, retry=retrying(9))
    seconds, was_paused = 0, False
    while "S" * 40 not in "".join(sorted(farm.states("j"))):
        for worker in workers:
            worker.take()
            for token in list(worker.held):
                if worker in workers[:broken]:
                    worker.fail(token, FailureClass.INFRA)
                else:
                    worker.run([token])
        was_paused = was_paused or bool(farm.state.paused_types)
        farm.wait(1, beating=workers)
        seconds += 1
        assert seconds < 3_600
    assert was_paused
    farm.drop()


def test_a_canary_that_fails_in_a_cluster_keeps_the_type_paused(farm: Harness) -> None:
    """What fails there was judged below and ends here: without a pause between them all tasks of the type would end so."""
    workers = farm_of(farm, 2)
    farm.create("j", 60, retry=retrying(9))
    for worker in workers * 3:
        fail_next(worker, FailureClass.INFRA)
    assert list(farm.state.paused_types) == ["t"]
    for worker in workers:
        worker.credit(0)
        for token in list(worker.held):
            worker.release(token)
    below = farm.worker("below", slots=4, orchestrator=True)
    since, tried = farm.now, []
    while len(tried) < 3:
        farm.wait(1, beating=[*workers, below])
        for token in below.take():
            below.fail(token, FailureClass.INFRA)
            tried.append(round((farm.now - since) / 1e9))
    assert tried == [30, 90, 210]
    farm.drop()


def test_a_backup_that_succeeds_elsewhere_says_nothing_of_the_canarys_worker(farm: Harness) -> None:
    w2, w3 = farm.worker("w2", host="h2", slots=2), farm.worker("w3", host="h3")
    keep_busy(farm, w2, w3)
    bad = farm.worker("w1", host="h1")
    workers = [bad, w2, w3]
    farm.create("j", 3)
    for _ in range(3):
        fail_next(bad)
    farm.create("k", 4, idempotent=True)
    w2.credit(2)
    for credit in (2, 2, 1):
        (token,) = w2.take()
        farm.wait(1, beating=workers)
        w2.credit(credit)
        w2.run([token])
    farm.wait(31, beating=workers)
    (canary,) = bad.take()
    bad.running(canary)
    assert canary[:2] == ("k", 3)
    w2.credit(2)
    farm.wait(60, beating=workers)
    (backup,) = w2.take()
    assert w2.report(backup) is VerdictCode.ACCEPTED
    assert farm.claim(effects.SendRevoke).tokens == [canary]
    bad.forget([canary])
    bad.beat()
    assert quarantined(farm) == ["w1"]
    audits(farm)


def test_a_canary_that_is_handed_back_proves_nothing_and_the_next_goes_out(farm: Harness) -> None:
    bad, *others = one_fails_three(farm, 50)
    farm.wait(31, beating=[bad, *others])
    bad.release(bad.take()[0])
    assert len(bad.take()) == 1
    assert quarantined(farm) == ["w1"]
    audits(farm)


def test_what_has_not_started_is_taken_back_and_fails_nobody_any_more(farm: Harness) -> None:
    bad, *_ = beside_busy(farm, 3, slots=2)
    bad.credit(100)
    farm.create("j", 100)
    tokens = bad.take()
    bad.running(tokens[3])
    outcomes = [bad.outcome(token, Ending.FAILED, failure=Failure(failure_class=FailureClass.APP)) for token in tokens]
    codes = list(bad.send("j", 1, outcomes).values())
    assert codes == [VerdictCode.ACCEPTED] * 4 + [VerdictCode.SUPERSEDED] * 96
    assert farm.states("j") == "FFFF" + 96 * "Q"
    assert len(farm.claim(effects.SendRevoke).tokens) == 96
    assert bad.beat(held=tokens[4:]) == tokens[4:]  # also when that was lost
    audits(farm)


def test_what_is_taken_back_before_it_has_left_leaves_before_it_goes_elsewhere(farm: Harness) -> None:
    """It stands behind a frame that waits for a commit, and its token is older than the next one (I7)."""
    good, idle = farm.worker("w2", slots=8), farm.worker("w3", slots=8, types=("t", "u"))
    keep_busy(farm, good, idle)
    bad = farm.worker("w1", slots=8, types=("t", "u"))
    farm.create("a", 1)
    farm.create("j", 3)
    farm.create("b", 1, type="u", dependencies=(each("a"),))
    bad.take()
    farm.autocommit = False
    farm.do(events.Outcomes(session=bad.session, job_id=JobId("a"), epoch=1, outcomes=[bad.outcome(("a", 0, 1, 1))]))
    farm.do(create_event(99, "p"))
    assert farm.job("p").live[0].worker.worker_id == "w1"
    failures = [bad.outcome(("j", n, 1, 1), Ending.FAILED, failure=failure()) for n in range(3)]
    farm.do(events.Outcomes(session=bad.session, job_id=JobId("j"), epoch=1, outcomes=failures))
    assert quarantined(farm) == ["w1"]
    good.credit(8)
    assert farm.job("p").live[0].worker.worker_id == "w2"
    farm.commit()
    left = farm.claim_all(effects.SendTasks)
    number = farm.job("p").number
    tokens = [
        (sent.session, task.attempt) for sent in left for job, tasks in sent.groups if job == number for task in tasks
    ]
    assert tokens == [(bad.session, 1), (good.session, 2)]
    farm.drop()


def test_an_at_most_once_task_is_not_taken_back(farm: Harness) -> None:
    bad, *others = farm_of(farm, 3, slots=4)
    for other in others:
        other.credit(0)
    farm.create("j", 4, at_most_once=True)
    for token in bad.take()[:3]:
        bad.fail(token)
    assert farm.states("j") == "FFFA"
    bad.run()
    audits(farm)


def test_a_black_hole_costs_few_tasks_beside_busy_workers(farm: Harness) -> None:
    bad, *others = farm_of(farm, 6, slots=4)
    farm.create("j", 2000)
    failed = 0
    for _ in range(400):
        bad.take()
        for token in list(bad.held):
            if token in bad.held:
                failed += bad.fail(token) is VerdictCode.ACCEPTED
        for other in others:
            other.run(other.take())
        farm.drop(effects.SendRevoke)
        if "Q" not in farm.states("j"):
            break
    assert failed <= 4 + 3
    assert farm.states("j").count("F") == failed
    audits(farm)
    farm.drop()


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_a_third_of_the_workers_at_most_are_in_quarantine(farm: Harness, count: int) -> None:
    workers = farm_of(farm, count, slots=4)
    farm.create("j", 400)
    for worker in workers:
        worker.take()
        for token in list(worker.held):
            worker.fail(token)
    assert len(quarantined(farm)) <= count // 3
    audits(farm)
    farm.drop()


def test_the_only_one_that_can_run_what_waits_is_not_put_into_quarantine(farm: Harness) -> None:
    special = farm.worker("w1", types=("t", "u"))
    others = [farm.worker("w2"), farm.worker("w3")]
    farm.create("j", 9, type="u")
    for _ in range(4):
        fail_next(special)
    assert quarantined(farm) == []
    assert len(special.take()) == 1
    assert not any(other.take() for other in others)


def test_who_neither_wants_work_nor_has_some_takes_nothing_over(farm: Harness) -> None:
    """Its processes do not start, or it is leaving: the only one that works is not sent away for it (section 8, "never the last")."""
    bad, *others = farm_of(farm, 3)
    for other in others:
        other.credit(0)
    farm.create("j", 9)
    for _ in range(4):
        fail_next(bad)
    assert quarantined(farm) == []
    others[0].credit(1)
    fail_next(bad)
    assert quarantined(farm) == ["w1"]
    others[0].credit(0)
    others[0].run(others[0].take())
    assert quarantined(farm) == []
    farm.drop()


def test_when_others_leave_a_quarantine_ends_rather_than_the_work(farm: Harness) -> None:
    bad, _, third = beside_busy(farm, 3)
    farm.create("j", 9)
    for _ in range(3):
        fail_next(bad)
    assert quarantined(farm) == ["w1"]
    third.goodbye()
    assert quarantined(farm) == []
    assert len(bad.take()) == 1
    audits(farm)


def test_failures_that_neighbours_have_as_well_are_not_the_workers(farm: Harness) -> None:
    workers = farm_of(farm, 6)
    farm.create("j", 60)
    for _ in range(5):
        for worker in workers:
            fail_next(worker)
    assert quarantined(farm) == []
    assert farm.state.paused_types == {}
    farm.drop(effects.SendTasks)


def test_infrastructure_that_fails_on_a_third_of_the_workers_pauses_the_type(farm: Harness) -> None:
    workers = farm_of(farm, 3)
    farm.create("j", 30)
    farm.create("other", 5, type="t")
    for _ in range(3):
        for worker in workers:
            if worker.take():
                worker.fail(next(iter(worker.held)), FailureClass.INFRA)
    assert list(farm.state.paused_types) == ["t"]
    assert quarantined(farm) == []
    for worker in workers:
        worker.run(worker.take() + list(worker.held))
    farm.wait(25, beating=workers)
    assert assigned(farm, workers) == [0, 0, 0]
    farm.wait(10, beating=workers)
    assert sorted(assigned(farm, workers)) == [0, 0, 1]
    canary = next(worker for worker in workers if worker.take())
    canary.fail(next(iter(canary.held)), FailureClass.INFRA)
    farm.wait(55, beating=workers)
    assert assigned(farm, workers) == [0, 0, 0]
    farm.wait(10, beating=workers)
    canary = next(worker for worker in workers if worker.take())
    canary.run()
    assert farm.state.paused_types == {}
    assert assigned(farm, workers) == [1, 1, 1]
    audits(farm)
    farm.drop(effects.SendTasks)


def pause_type(farm: Harness) -> Worker:
    """A farm of one worker that cannot reach its Storage."""
    worker = farm.worker(slots=3)
    farm.create("j", 30)
    tokens = worker.take()
    worker.credit(0)
    for token in tokens:
        worker.fail(token, FailureClass.INFRA)
    worker.credit(1)
    assert list(farm.state.paused_types) == ["t"]
    assert audits(farm) == [
        "paused: task type t: the infrastructure failed its tasks on w1, the last one with: ValueError it went wrong"
    ]
    return worker


def test_a_paused_type_leaves_others_alone(farm: Harness) -> None:
    worker = farm.worker(types=("t", "u"), slots=3)
    farm.create("j", 30)
    tokens = worker.take()
    worker.credit(0)
    for token in tokens:
        worker.fail(token, FailureClass.INFRA)
    worker.credit(3)
    farm.create("k", 2, type="u")
    assert [token[0] for token in worker.take()] == ["k", "k"]
    audits(farm)


def test_a_canary_that_fails_of_itself_was_let_through_but_has_not_succeeded(farm: Harness) -> None:
    worker = pause_type(farm)
    farm.wait(31, beating=[worker])
    worker.fail(worker.take()[0])
    assert len(worker.take()) == 1  # the next one, at once
    assert list(farm.state.paused_types) == ["t"]
    worker.run()
    assert audits(farm) == ["pause ended: task type t: one of its tasks succeeded"]
    farm.drop(effects.SendTasks)


def test_failures_of_the_tasks_own_pause_nothing(farm: Harness) -> None:
    worker = farm.worker(slots=3)
    farm.create("j", 30)
    tokens = worker.take()
    worker.credit(0)
    for token, failure_class in zip(tokens, [FailureClass.APP, FailureClass.CRASH, FailureClass.INFRA], strict=True):
        worker.fail(token, failure_class)
    assert farm.state.paused_types == {}


def test_a_worker_in_quarantine_that_wants_nothing_is_given_nothing(farm: Harness) -> None:
    bad, *others = one_fails_three(farm, 9)
    bad.credit(0)
    farm.wait(60, beating=[bad, *others])
    assert bad.take() == []
    bad.credit(1)
    assert len(bad.take()) == 1
    audits(farm)


def test_whoever_resumes_a_job_ends_the_pause_of_its_type(farm: Harness) -> None:
    worker = pause_type(farm)
    farm.pause("j", paused=False)
    assert farm.state.paused_types == {}
    worker.fail(worker.take()[0], FailureClass.INFRA)
    assert farm.state.paused_types == {}  # the past is forgiven
    audits(farm)
    farm.drop(effects.SendTasks)


def test_suspects_are_canaries_too(farm: Harness) -> None:
    worker = farm.worker(slots=3)
    farm.create("j", 2)
    for _ in range(2):
        worker.take()
        worker.die()
    farm.create("k", 3)
    tokens = worker.take()
    worker.credit(0)
    for token in tokens:
        worker.fail(token, FailureClass.INFRA)
    assert list(farm.state.paused_types) == ["t"]
    farm.cancel("k")
    worker.credit(3)
    farm.wait(25, beating=[worker])
    assert worker.take() == []
    farm.wait(15, beating=[worker])
    (token,) = worker.take()
    assert token[0] == "j"
    worker.run([token])
    assert farm.state.paused_types == {}
    assert len(worker.take()) == 1
    audits(farm)


def test_an_operator_ends_a_quarantine(farm: Harness) -> None:
    bad, *_ = one_fails_three(farm, 9)
    farm.ask(lambda n: events.DrainWorker(request=n, worker_id=WorkerId("w1"), drain=False, limit_ns=0))
    assert quarantined(farm) == []
    assert len(bad.take()) == 1
    audits(farm)


def test_a_worker_that_was_started_anew_is_tried_at_once(farm: Harness) -> None:
    bad, *_ = one_fails_three(farm, 9)
    bad.detach()
    bad.attach()
    assert bad.take() == []
    bad.die()
    (token,) = bad.take()
    bad.run([token])
    assert quarantined(farm) == []
    audits(farm)
    farm.drop(effects.SendTasks)


def test_one_process_that_died_under_many_attempts_is_one_death_and_makes_them_suspects(farm: Harness) -> None:
    bad, *others = farm_of(farm, 3, slots=5)
    for other in others:
        other.credit(0)
    farm.create("j", 5)
    bad.take()
    for token in list(bad.held):
        lost = Failure(failure_class=FailureClass.INFRA, kind=PROCESS_LOST_KIND)
        bad.report(token, Ending.FAILED, failure=lost)
    assert (quarantined(farm), farm.state.paused_types) == ([], {})
    assert [farm.job("j").notes[index].suspected for index in range(5)] == [1] * 5
    farm.drop(effects.SendTasks)


def test_after_a_restart_everybody_is_trusted_again(farm: Harness) -> None:
    worker = pause_type(farm)
    farm.restart()
    worker.held.clear()
    worker.attach()
    farm.wait(1, beating=[worker])
    assert len(worker.take()) == 1
    audits(farm)


def test_failures_of_a_down_stream_orchestrator_were_judged_below(farm: Harness) -> None:
    below = farm.worker("w1", orchestrator=True, slots=3)
    for n in range(2, 6):
        farm.worker(f"w{n}").credit(0)
    farm.create("j", 9)
    tokens = below.take()
    below.credit(0)
    for token in tokens:
        below.fail(token, FailureClass.INFRA)
    assert (quarantined(farm), farm.state.paused_types) == ([], {})
    farm.drop(effects.SendTasks)


def test_a_suspect_does_not_run_on_a_worker_in_quarantine(farm: Harness) -> None:
    others = [farm.worker("w3"), farm.worker("w4")]
    keep_busy(farm, *others)
    bad, second = farm_of(farm, 2)
    second.credit(0)
    farm.create("j", 3)
    for _ in range(3):
        fail_next(bad)
    assert quarantined(farm) == ["w1"]
    second.credit(1)
    farm.create("s", 1)
    for _ in range(2):
        second.take()
        second.die()
    farm.wait(5, beating=[bad, second, *others])
    assert [token[0] for token in second.take()] == ["s"]
    audits(farm)
