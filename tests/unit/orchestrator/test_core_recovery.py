"""After a restart: nothing acknowledged is lost, what workers still hold is not repeated, what came after goes out at once."""

from __future__ import annotations

import pytest
from orchestrator_harness import Harness, Worker, durable_parts, each, retrying

from antfarm.model import SECOND_NS, FailureClass, JobState, Timeouts, VerdictCode
from services.orchestrator.core import effects, events, records
from services.orchestrator.core.turn import CoreConfig


def test_every_start_begins_a_new_epoch_before_anything_else(farm: Harness) -> None:
    (record,) = farm.records
    assert isinstance(record, records.EpochStarted)
    assert (record.epoch, record.history_gap) == (1, False)
    farm.restart()
    farm.restart()
    assert farm.state.epoch == 3
    worker = farm.worker()
    farm.create("j", 1)
    assert worker.take() == [("j", 0, 3, 1)]


def test_a_welcome_waits_for_the_epoch(farm: Harness) -> None:
    farm.autocommit = False
    worker = Worker(farm, "w1", 1)
    farm.do(worker.hello())
    assert farm.sent == []
    farm.commit()
    welcome = farm.claim(effects.Welcome)
    assert (welcome.epoch, welcome.lease_ns, welcome.heartbeat_ns) == (1, 12 * SECOND_NS, 3 * SECOND_NS)


def test_held_attempts_go_on_and_the_rest_waits_for_all_workers(farm: Harness) -> None:
    w1, w2 = farm.worker("w1", slots=2), farm.worker("w2", slots=2)
    farm.create("j", 6)
    t1, t2 = w1.take(), w2.take()
    farm.restart()
    assert farm.states("j") == "QQQQQQ"
    w1.attach()
    assert {attempt.token for attempt in farm.job("j").live.values()} == set(t1)
    w1.run(t1)
    assert w1.take() == []
    w2.attach()
    assert len(w1.take()) == 2
    assert w2.take() == []
    w2.run(t2)
    assert w2.take() == []
    w1.run()
    assert farm.job("j").state is JobState.SUCCEEDED
    assert all(winner & 0xFFFF == 1 for winner in farm.job("j").winners)


def test_new_jobs_go_out_at_once(farm: Harness) -> None:
    w1 = farm.worker("w1")
    farm.worker("w2")
    farm.create("j", 3)
    w1.take()
    farm.drop(effects.SendTasks)
    farm.restart()
    w1.slots = w1.window = 2
    w1.attach()
    farm.create("k", 2)
    assert w1.take() == [("k", 0, 2, 1)]
    farm.restart()
    w1.attach()
    farm.wait(13, beating=[w1])
    assert farm.state.recovering_until_ns is None


def test_a_lease_later_the_missing_are_given_up(farm: Harness) -> None:
    w1, w2 = farm.worker("w1"), farm.worker("w2")
    farm.create("j", 2)
    w1.take()
    (lost,) = w2.take()
    farm.restart()
    w1.attach()
    farm.wait(11.9, beating=[w1])
    w1.run()
    assert w1.take() == []
    farm.wait(0.3, beating=[w1])
    assert w1.take() == [("j", lost[1], 2, 1)]
    assert list(farm.state.seen) == ["w1"]
    w2.attach()
    assert w2.beat() in ([lost], [])
    assert not w2.held


def test_who_left_or_was_lost_is_not_waited_for(farm: Harness) -> None:
    w1, w2, w3 = farm.worker("w1"), farm.worker("w2"), farm.worker("w3")
    farm.create("j", 1)
    farm.drop(effects.SendTasks)
    w2.goodbye()
    w3.detach()
    farm.wait(13, beating=[w1])
    farm.drop(effects.Audit)
    w1.held.clear()
    farm.drop(effects.SendTasks)
    farm.restart()
    w1.attach()
    assert len(w1.take()) == 1


def test_without_workers_of_the_last_epoch_nothing_waits(farm: Harness) -> None:
    farm.create("j", 1)
    farm.restart()
    worker = farm.worker()
    assert worker.take() == [("j", 0, 2, 1)]


def test_an_orchestrator_among_the_missing_is_waited_for_longer(farm: Harness) -> None:
    w1 = farm.worker("w1")
    farm.worker("w2", orchestrator=True, types=("other",))
    farm.create("j", 2)
    w1.take()
    farm.restart()
    w1.attach()
    w1.run()
    farm.wait(59, beating=[w1])
    assert w1.take() == []
    farm.wait(2, beating=[w1])
    assert len(w1.take()) == 1


def test_time_in_which_the_process_stood_still_does_not_end_the_recovery(farm: Harness) -> None:
    w1 = farm.worker("w1")
    farm.worker("w2")
    farm.create("j", 2)
    farm.drop(effects.SendTasks)
    farm.restart()
    w1.attach()
    farm.tick()
    farm.tick(100)
    w1.beat()
    assert w1.take() == []
    farm.wait(13, beating=[w1])
    assert len(w1.take()) == 1


def test_queue_time_to_live_does_not_take_what_a_worker_still_runs(farm: Harness) -> None:
    worker = farm.worker(slots=1)
    farm.create("j", 2, timeouts=Timeouts(queue_ns=60 * SECOND_NS))
    (token,) = worker.take()
    farm.wait(59, beating=[worker])
    farm.restart(after_s=10)
    farm.wait(1)
    worker.attach()
    farm.wait(13, beating=[worker])
    assert farm.states("j") == "AE"
    assert worker.report(token) is VerdictCode.ACCEPTED


def test_what_is_left_of_a_deadline_goes_by_the_wall_clock(farm: Harness) -> None:
    farm.create("j", 1, timeouts=Timeouts(total_ns=100 * SECOND_NS))
    farm.wait(10)
    farm.restart(after_s=60)
    farm.wait(29)
    assert farm.states("j") == "Q"
    farm.wait(2)
    assert farm.states("j") == "E"


@pytest.mark.parametrize("jump_s", [-1_000_000, 1_000_000])
def test_a_jump_of_the_wall_clock_moves_a_deadline_within_its_bounds_alone(farm: Harness, jump_s: int) -> None:
    farm.create("j", 1, timeouts=Timeouts(total_ns=100 * SECOND_NS))
    farm.wait(10)
    farm.wall_offset_ns += jump_s * SECOND_NS
    farm.restart()
    farm.wait(1)
    assert farm.states("j") == ("E" if jump_s > 0 else "Q")
    farm.wait(100)
    assert farm.states("j") == "E"


def test_counts_and_budgets_survive(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", 1, retry=retrying(3, 0.0))
    for number in (1, 2):
        (token,) = worker.take()
        assert token[3] == number
        worker.fail(token)
        worker.held.clear()
        if number == 1:
            farm.drop(effects.SendTasks)
            farm.restart()
            worker.attach()
    (token,) = worker.take()
    assert token == ("j", 0, 2, 3)
    worker.fail(token)
    assert farm.states("j") == "F"


def test_replay_makes_the_durable_state_that_was(farm: Harness) -> None:
    worker = farm.worker(slots=3)
    farm.create("a", 4, close=False, retry=retrying(2), max_failures=3)
    farm.create("b", 4, dependencies=(each("a", 1),), priority=1)
    tokens = worker.take()
    worker.run(tokens[:1])
    worker.fail(tokens[1])
    worker.fail(tokens[2], FailureClass.PERMANENT)
    farm.cancel_task("a", 3)
    farm.pause("b")
    farm.append("a", 4, 2, close=True)
    farm.create("c", 0)
    farm.purge("c")
    farm.create("d", 2, close=False)
    farm.cancel("d")
    farm.drop()
    before = durable_parts(farm.state)
    epoch = before.pop("epoch")
    farm.autocommit = False
    farm.restart()
    after = durable_parts(farm.state)
    assert (after.pop("epoch"), after.pop("seq")) == (epoch + 1, before.pop("seq") + 1)
    assert after == before


def test_what_was_not_committed_never_happened(farm: Harness) -> None:
    worker = farm.worker(slots=2)
    farm.create("a", 2)
    tokens = worker.take()
    before = durable_parts(farm.state)
    farm.autocommit = False
    worker.send("a", 1, [worker.outcome(tokens[0])])
    farm.do(events.CancelJob(request=1, job_id=farm.job("a").job_id, cause=""))
    farm.restart()
    assert farm.claim_all(effects.Reply) == []
    after = durable_parts(farm.state)
    assert after["jobs"] == before["jobs"]
    farm.autocommit = True
    farm.commit()
    worker.attach()
    worker.run()
    assert farm.states("a") == "SS"


def test_a_report_that_was_not_committed_comes_again_and_counts_once(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("a", 1)
    (token,) = worker.take()
    farm.autocommit = False
    assert worker.send("a", 1, [worker.outcome(token)]) == {}
    farm.restart()
    farm.autocommit = True
    farm.commit()
    worker.attach()
    assert worker.report(token) is VerdictCode.ACCEPTED
    farm.restart()
    assert worker.held == {}
    assert farm.states("a") == "S"


@pytest.mark.parametrize(("set_by_s", "left_s"), [(0, 15), (1_000, 0), (-1_000, 25)])
def test_a_back_off_goes_on_over_a_restart_by_the_wall_clock(farm: Harness, set_by_s: int, left_s: int) -> None:
    """What is left is clamped to [0, whole], whatever the clock was set to meanwhile."""
    worker = farm.worker()
    farm.create("a", 1, retry=retrying(2, 25.0))
    farm.core._dice = type("Dice", (), {"random": lambda self: 1.0})()
    (token,) = worker.take()
    worker.fail(token)
    assert farm.states("a") == "W"
    farm.wall_offset_ns += set_by_s * SECOND_NS
    farm.restart(after_s=10)
    worker.attach()
    if left_s:
        farm.wait(left_s - 1, beating=[worker])
        assert worker.take() == []
        farm.wait(1.25, beating=[worker])
    assert worker.take() == [("a", 0, 2, 2)]


def test_a_back_off_that_ends_during_the_recovery_waits_for_it(farm: Harness) -> None:
    """With a clock that was set back the task may have been given out since, to a worker that is not back yet."""
    worker, other = farm.worker(), farm.worker("w2")
    farm.create("a", 1, retry=retrying(2, 5.0))
    farm.core._dice = type("Dice", (), {"random": lambda self: 1.0})()
    (token,) = worker.take() + other.take()
    (worker if token in worker.held else other).fail(token)
    farm.restart()
    worker.attach()
    farm.wait(6, beating=[worker])
    assert farm.states("a") == "Q"
    assert worker.take() == []
    other.attach()
    assert worker.take() + other.take() == [("a", 0, 2, 2)]


@pytest.mark.parametrize("how", ["released", "failed"])
def test_the_end_of_an_older_attempt_does_not_give_out_what_a_missing_worker_may_hold(farm: Harness, how: str) -> None:
    """Nothing is recorded of attempts that went well so far: after a second restart the older one cannot be told from the newest."""
    old, new = farm.worker("old"), farm.worker("new")
    farm.create("j", 1, retry=retrying(2, 0.0))
    (first,) = (*old.take(), *new.take())
    if first in new.held:
        old, new = new, old
    farm.restart()
    new.attach()
    farm.wait(12.25, beating=[new])
    (second,) = new.take()
    assert second == ("j", 0, 2, 1)
    farm.restart()
    old.attach()
    if how == "released":
        old.release(first)
    else:
        old.fail(first)
    assert (farm.states("j"), old.take()) == ("Q", [])
    new.attach()
    assert [attempt.token for attempt in farm.job("j").all_live()] == [second]
    new.run()
    assert (farm.states("j"), farm.job("j").winners[0]) == ("S", 2 << 32 | 1)


def test_a_hello_that_is_refused_does_not_end_the_recovery(farm: Harness) -> None:
    farm.worker("w1")
    farm.create("j", 1)
    farm.restart()
    farm.drop()
    farm.now += 13 * SECOND_NS
    before = farm.state.seq
    Worker(farm, "w2", 1, protocol_major=2).refused()
    assert (farm.states("j"), farm.state.seq) == ("Q", before)


def test_an_orchestrator_below_another_begins_with_an_epoch_of_its_own() -> None:
    farm = Harness(CoreConfig(first_epoch=4_711))
    assert farm.state.epoch == 4_711
    farm.restart()
    assert farm.state.epoch == 4_712


def test_a_held_at_most_once_attempt_goes_on_although_late_results_are_fenced(farm: Harness) -> None:
    """It was not lost: nobody knows of it but from the journal, and its holder is here."""
    worker = farm.worker()
    farm.create("j", 1, at_most_once=True, fence_late_results=True)
    assert worker.take() == [("j", 0, 1, 1)]
    farm.restart()
    assert worker.attach().revoked == []
    worker.run()
    assert farm.states("j") == "S"
