"""Leases: silence makes a worker suspect, then lost; its work is queued again in time; a process that stood still blames nobody."""

from __future__ import annotations

import pytest
from orchestrator_harness import Harness, Worker, create_event, each, retrying

from antfarm import errors
from antfarm.model import SECOND_NS, FailureClass, TaskState, Timeouts, VerdictCode, WorkerId
from services.orchestrator.core import effects, events, records
from services.orchestrator.core.limits import AMOUNT_MAX, EPOCH_SEEN_MAX
from services.orchestrator.core.state import TIMERS_MIN
from services.orchestrator.core.turn import CoreConfig

W1 = WorkerId("w1")


def test_a_silent_worker_is_suspect_after_two_beats_and_gets_no_work(farm: Harness) -> None:
    worker = farm.worker()
    farm.wait(5.9)
    assert not farm.state.workers["w1"].suspect
    farm.wait(0.5)
    assert farm.state.workers["w1"].suspect
    farm.create("j", 1)
    assert worker.take() == []
    worker.beat()
    assert not farm.state.workers["w1"].suspect
    assert len(worker.take()) == 1


def test_a_lost_workers_tasks_are_queued_again_within_the_lease_and_a_sweep(farm: Harness) -> None:
    w1, w2 = farm.worker("w1"), farm.worker("w2")
    farm.create("j", 1)
    (token,) = w1.take()
    farm.wait(12, beating=[w2])
    assert farm.states("j") == "A"
    farm.wait(0.25, beating=[w2])
    audit = farm.claim(effects.Audit).text
    assert audit.startswith("lost: worker w1 was silent for 12.")
    refuse = farm.claim(effects.Refuse, session=w1.session)
    assert isinstance(refuse.error, errors.IncarnationLost)
    assert w2.take() == [("j", 0, 1, 2)]
    record = farm.records[-2]
    assert isinstance(record, records.AttemptFailed)
    assert (record.attempt, record.worker_id, record.infra_failures, record.lost) == (1, "w1", 1, True)
    assert record.failure.failure_class is FailureClass.INFRA
    assert farm.records[-1] == records.WorkerLeft(worker_id=W1)
    assert token in w1.held


def test_a_lost_incarnation_stays_lost_and_a_new_one_brings_what_it_holds(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", 2)
    (token,) = worker.take()
    worker.detach()
    farm.wait(13)
    farm.claim(effects.Audit)
    error = worker.refused()
    assert isinstance(error, errors.IncarnationLost)
    assert "attach as a new incarnation" in str(error)
    worker.incarnation = b"another"
    assert worker.attach().revoked == []
    assert farm.states("j") == "AQ"
    assert farm.job("j").live[0].token == token
    assert worker.report(token) is VerdictCode.ACCEPTED
    worker.take()


def test_an_incarnation_whose_place_was_taken_stays_lost(farm: Harness) -> None:
    first = farm.worker()
    farm.create("j", 1)
    (token,) = first.take()
    first.detach()
    second = Worker(farm, "w1", 1)
    second.incarnation = b"second"
    second.attach()
    farm.wait(0)
    (again,) = second.take()
    second.detach()  # a broken stream is no proof of anything
    assert isinstance(first.refused(), errors.IncarnationLost)
    assert farm.job("j").live[0].token == again
    second.attach()
    assert second.report(again) is VerdictCode.ACCEPTED
    second.goodbye()
    assert isinstance(first.refused(), errors.IncarnationLost)
    assert token != again


@pytest.mark.parametrize(("heartbeat_s", "lease_s"), [(3, 60), (61, 244)])
def test_an_orchestrators_lease_is_never_shorter_than_a_workers(heartbeat_s: int, lease_s: int) -> None:
    farm = Harness(CoreConfig(heartbeat_ns=heartbeat_s * SECOND_NS))
    below = farm.worker("below", orchestrator=True)
    farm.create("j", 1)
    (token,) = below.take()
    farm.wait(lease_s - 1)
    assert farm.states("j") == "A"
    assert below.report(token) is VerdictCode.ACCEPTED


def test_after_a_restart_an_orchestrator_below_is_awaited_for_its_own_lease() -> None:
    farm = Harness(CoreConfig(heartbeat_ns=30 * SECOND_NS))
    below = farm.worker("below", orchestrator=True)
    farm.create("j", 1)
    (token,) = below.take()
    farm.restart()
    other = farm.worker("other")
    farm.wait(115, beating=[other])
    assert other.take() == []
    below.attach()
    assert below.report(token) is VerdictCode.ACCEPTED


@pytest.mark.parametrize("word", ["beat", "credit", "report", "running"])
def test_any_word_renews_the_lease(farm: Harness, word: str) -> None:
    worker = farm.worker(slots=1)
    farm.create("j", 1)
    (token,) = worker.take()
    for _ in range(3):
        farm.wait(11)
        match word:
            case "beat":
                worker.beat()
            case "credit":
                worker.credit(1)
            case "report":
                worker.send("nope", 1, [worker.outcome(("nope", 0, 1, 1))])
            case _:
                worker.running(token)
    assert not farm.state.workers["w1"].lost
    assert not farm.state.workers["w1"].suspect


def test_a_broken_stream_proves_nothing(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", 2)
    (token,) = worker.take()
    worker.detach()
    farm.wait(11)
    assert farm.states("j") == "AQ"
    assert list(worker.attach().revoked) == []
    assert farm.job("j").live[0].token == token
    assert worker.take() == []


def test_an_orchestrators_lease_is_longer(farm: Harness) -> None:
    worker = farm.worker(orchestrator=True)
    farm.create("j", 1)
    worker.take()
    assert worker.harness.state.workers["w1"].lease_ns == 60 * SECOND_NS
    farm.wait(59)
    assert farm.states("j") == "A"
    farm.wait(2)
    assert farm.states("j") == "Q"
    farm.drop(effects.Audit, effects.Refuse)


def test_time_in_which_the_process_stood_still_counts_against_nobody(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", 1)
    worker.take()
    farm.wait(8)
    farm.tick(60)
    assert not farm.state.workers["w1"].lost
    farm.wait(3.5)
    assert not farm.state.workers["w1"].lost
    farm.wait(1)
    assert farm.state.workers["w1"].lost
    farm.drop(effects.Audit, effects.Refuse)


def test_many_short_pauses_are_no_silence_of_others(farm: Harness) -> None:
    """Each shorter than a heartbeat: what is said lies unread all the same."""
    farm.worker()
    for _ in range(10):
        farm.tick(2)
        farm.tick(0.05)
    assert not farm.state.workers["w1"].lost
    farm.wait(8.75)
    assert not farm.state.workers["w1"].lost
    farm.wait(0.5)
    assert farm.state.workers["w1"].lost
    farm.drop(effects.Audit, effects.Refuse)


def test_a_process_that_is_always_late_finds_the_dead_more_slowly_but_finds_them(farm: Harness) -> None:
    farm.worker()
    for _ in range(48):  # each counts as a sweep, a quarter of a second
        farm.tick(1)
    assert not farm.state.workers["w1"].lost
    farm.tick(1)
    assert farm.state.workers["w1"].lost
    farm.drop(effects.Audit, effects.Refuse)


def test_after_a_pause_there_is_a_heartbeat_to_read_what_came_meanwhile(farm: Harness) -> None:
    """Of a worker whose lease was all but over when the pause began."""
    worker = farm.worker()
    farm.wait(11.9)
    farm.tick(60)
    farm.wait(2.9)
    assert not farm.state.workers["w1"].lost
    worker.beat()
    farm.wait(11.9)
    farm.tick(60)
    farm.wait(3.3)
    assert farm.state.workers["w1"].lost
    farm.drop(effects.Audit, effects.Refuse)


def test_a_pause_during_a_recovery_leaves_a_heartbeat_to_come_back_in(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", 1)
    worker.take()
    worker.die()
    farm.restart()
    farm.wait(11.9)
    farm.tick(60)
    farm.wait(2.9)
    assert farm.state.recovering_until_ns is not None
    farm.wait(0.5)
    assert farm.state.recovering_until_ns is None
    farm.drop()


def test_a_pause_is_no_credit_for_a_worker_that_was_heard_after_it(farm: Harness) -> None:
    worker = farm.worker()
    farm.wait(1)
    farm.now += 60 * SECOND_NS
    worker.beat()  # read before the first tick after the pause
    farm.tick(0.01)
    farm.wait(12.5)
    assert farm.state.workers["w1"].lost
    farm.drop(effects.Audit, effects.Refuse)


def test_short_leases_run_out_although_sweeps_are_rare() -> None:
    config = CoreConfig(heartbeat_ns=SECOND_NS // 5)
    farm = Harness(config)
    farm.worker()
    for _ in range(40):
        farm.tick(config.sweep_ns / 1e9)
    assert farm.state.workers["w1"].lost
    assert CoreConfig().sweep_ns == SECOND_NS // 4
    farm.drop(effects.Audit, effects.Refuse)
    farm.close()


def test_a_new_incarnation_proves_that_the_old_one_is_dead(farm: Harness) -> None:
    worker = farm.worker(slots=2, window=3)
    farm.create("j", 3, retry=retrying(1))
    tokens = worker.take()
    worker.detach()
    worker.incarnation = b"second"
    kept = tokens[0]  # its report lay in the outbox
    worker.held = {kept: b""}
    worker.attach()
    job = farm.job("j")
    assert job.live[0].token == kept
    assert {index: note.infra_failures for index, note in job.notes.items()} == {1: 1, 2: 1}
    assert worker.report(kept) is VerdictCode.ACCEPTED
    assert sorted(worker.take()) == [("j", 1, 1, 2), ("j", 2, 1, 2)]


def test_a_second_live_process_of_one_id_is_refused_and_audited(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", 1)
    (token,) = worker.take()
    other = Worker(farm, "w1", 1)
    other.incarnation = b"other"
    other.attached = 10
    error = other.refused()
    assert isinstance(error, errors.WorkerIdInUse)
    assert "--worker-id" in str(error)
    assert worker.report(token) is VerdictCode.ACCEPTED
    farm.wait(6.5)
    other.attach()  # the first one has fallen silent
    farm.claim(effects.Refuse, session=worker.session)


def test_the_same_process_on_a_new_stream_ends_the_old_one(farm: Harness) -> None:
    worker = farm.worker()
    old = worker.session
    farm.create("j", 1)
    (token,) = worker.take()
    worker.attach()
    assert isinstance(farm.claim(effects.Refuse, session=old).error, errors.Unavailable)
    farm.do(events.Detach(session=old))
    assert farm.state.workers["w1"].session == worker.session
    assert worker.report(token) is VerdictCode.ACCEPTED


def test_another_major_version_is_refused(farm: Harness) -> None:
    worker = Worker(farm, "w2", 1, protocol_major=2)
    error = worker.refused()
    assert isinstance(error, errors.ProtocolUnsupported)
    assert "speaks protocol 1, the worker speaks 2" in str(error)


def test_an_epoch_from_nowhere_is_refused(farm: Harness) -> None:
    worker = Worker(farm, "w2", 1, max_epoch_seen=1 << 63)
    assert isinstance(worker.refused(), errors.InvalidArgument)
    assert farm.state.epoch == 1


@pytest.mark.parametrize("amount", [float("inf"), float("nan"), -1.0, 2 * AMOUNT_MAX])
def test_a_worker_with_resources_that_nobody_can_count_is_refused(farm: Harness, amount: float) -> None:
    farm.create("j", 1, resources={"gpu": 1.0})
    worker = Worker(farm, "w2", 1, resources={"gpu": amount})
    assert isinstance(worker.refused(), errors.InvalidArgument)
    assert farm.states("j") == "Q"


def test_a_higher_epoch_seen_means_that_the_journal_went_back_in_time(farm: Harness) -> None:
    w1 = farm.worker("w1", slots=2)
    farm.create("j", 2)
    tokens = w1.take()
    farm.worker("w2", max_epoch_seen=7)
    assert farm.claim(effects.Audit).text == "history gap: w2 has seen epoch 7; now 8"
    assert farm.state.history_gap
    assert farm.state.epoch == 8
    w1.run(tokens)
    farm.create("k", 1)
    assert w1.take() == [("k", 0, 8, 1)]
    farm.restart()
    assert farm.state.history_gap
    assert farm.state.epoch == 9


def test_what_is_of_another_queue_says_nothing_of_this_one(farm: Harness) -> None:
    """A cluster that is moved names the epoch and the tokens of the one before, whose jobs may have the same names."""
    w1 = farm.worker("w1")
    farm.create("j", 2)
    (token,) = w1.take()
    moved = Worker(farm, "w2", 1, max_epoch_seen=7, queue="elsewhere")
    moved.held = {("j", 0, 5, 1): b"", ("j", 1, 5, 1): b""}
    moved.attach()
    assert (farm.state.epoch, farm.state.history_gap) == (1, False)
    assert farm.job("j").live[0].token == token
    assert moved.take() == [("j", 1, 1, 1)]
    farm.worker("w3", max_epoch_seen=7, queue=farm.core.config.orchestrator_id)
    farm.claim(effects.Audit)
    assert farm.state.history_gap


def test_a_token_of_the_lost_history_does_not_displace_one_that_runs(farm: Harness) -> None:
    w1 = farm.worker("w1")
    farm.create("j", 1, close=False)
    (token,) = w1.take()
    w2 = Worker(farm, "w2", 1, max_epoch_seen=7)
    w2.held = {("j", 0, 5, 1): b""}
    assert w2.attach().revoked == [("j", 0, 5, 1)]
    farm.claim(effects.Audit)
    assert w1.beat() == []
    assert w1.report(token) is VerdictCode.ACCEPTED
    assert farm.states("j") == "S"


def test_a_success_of_the_lost_history_is_not_the_tasks(farm: Harness) -> None:
    """There the job may have been purged, and another one submitted under its name."""
    w1 = farm.worker("w1")
    farm.create("j", 1)
    (token,) = w1.take()
    farm.restart()
    farm.worker("w2", max_epoch_seen=7)
    farm.claim(effects.Audit)
    farm.restart()
    assert farm.state.lost_epochs == [(3, 7)]
    w1.attach()
    assert [w1.report(("j", 0, epoch, 1)) for epoch in (3, 7)] == [VerdictCode.UNKNOWN_TASK] * 2
    assert farm.states("j") == "A"
    assert w1.report(token) is VerdictCode.ACCEPTED
    assert farm.states("j") == "S"


def test_no_token_leaves_before_its_epoch_is_durable(farm: Harness) -> None:
    w1 = farm.worker("w1")
    farm.create("j", 1)
    (token,) = w1.take()
    farm.autocommit = False
    w2 = Worker(farm, "w2", 1, max_epoch_seen=7)
    farm.do(w2.hello())
    w1.send("j", 1, [w1.outcome(token)])
    farm.do(create_event(1, "k", 1))
    assert farm.claim_all(effects.SendTasks) == []
    farm.commit()
    assert farm.claim(effects.SendTasks).epoch == 8
    farm.drop()


def test_goodbye_hands_everything_back_at_no_cost(farm: Harness) -> None:
    worker = farm.worker(slots=2)
    farm.create("j", 2)
    worker.take()
    worker.goodbye()
    assert farm.states("j") == "QQ"
    assert farm.state.workers["w1"].gone
    assert farm.records[-1] == records.WorkerLeft(worker_id=W1)
    farm.wait(20)
    assert all(not note.infra_failures for note in farm.job("j").notes.values())
    worker.incarnation = b"2"
    worker.held.clear()
    worker.attach()
    assert [token[3] for token in worker.take()] == [2, 2]


def test_drain_gives_no_more_work_and_is_told_again_after_a_break(farm: Harness) -> None:
    worker = farm.worker(slots=1)
    farm.create("j", 3)
    (token,) = worker.take()

    def drain(on: bool) -> None:
        farm.ask(lambda n: events.DrainWorker(request=n, worker_id=W1, drain=on, limit_ns=5 * SECOND_NS))

    drain(True)
    assert farm.claim(effects.SendDrain) == effects.SendDrain(session=worker.session, limit_ns=5 * SECOND_NS)
    worker.run([token])
    assert worker.take() == []
    worker.detach()
    worker.attach()
    assert farm.claim(effects.SendDrain).session == worker.session
    assert worker.take() == []
    drain(False)
    assert str(farm.claim(effects.Refuse, session=worker.session).error) == "the drain is over: attach again"
    worker.attach()
    assert farm.claim_all(effects.SendDrain) == []
    assert len(worker.take()) == 1
    drain(False)  # where there is none nothing happens
    assert farm.claim_all(effects.Refuse) == []


def test_a_drain_is_told_again_with_the_time_that_is_left(farm: Harness) -> None:
    worker = farm.worker(slots=1)
    farm.create("j", 1)
    worker.take()
    farm.ask(lambda n: events.DrainWorker(request=n, worker_id=W1, drain=True, limit_ns=30 * SECOND_NS))
    farm.claim(effects.SendDrain)
    for left_s in (20, 10, 0, 0):
        farm.wait(10, beating=[worker])
        worker.detach()
        worker.attach()
        assert round(farm.claim(effects.SendDrain).limit_ns / SECOND_NS, 2) == left_s


def test_a_drained_worker_that_was_lost_and_still_runs_what_it_held_is_told_again(farm: Harness) -> None:
    """It is no new process, though it comes as another incarnation; one that only has reports to deliver may be."""
    worker = farm.worker(slots=2)
    farm.create("j", 2)
    first, second = worker.take()
    farm.ask(lambda n: events.DrainWorker(request=n, worker_id=W1, drain=True, limit_ns=30 * SECOND_NS))
    farm.claim(effects.SendDrain)
    worker.detach()
    farm.wait(13)
    farm.claim(effects.Audit)
    worker.incarnation = b"another"
    worker.finished = [first]
    worker.attach()
    assert round(farm.claim(effects.SendDrain).limit_ns / SECOND_NS) == 17
    worker.report(first)
    worker.held.pop(second)
    worker.detach()
    worker.incarnation = b"a new process"
    worker.attach()
    assert farm.claim_all(effects.SendDrain) == []
    assert worker.take() == []


def test_a_pause_of_the_orchestrator_is_no_run_timeout(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", 1, timeouts=Timeouts(run_ns=5 * SECOND_NS))
    (token,) = worker.take()
    worker.running(token, 0.0)
    farm.wait(2, beating=[worker])
    farm.tick(60)
    farm.tick()
    assert worker.report(token) is VerdictCode.ACCEPTED
    assert farm.states("j") == "S"


def test_an_attempt_that_the_backstop_ended_is_revoked_also_from_who_missed_that(farm: Harness) -> None:
    worker = farm.worker(slots=2)
    farm.create("j", 2, timeouts=Timeouts(run_ns=5 * SECOND_NS))
    first, second = worker.take()
    worker.running(first, 0.0)
    farm.wait(16, beating=[worker])
    worker.detach()
    farm.wait(2)
    assert farm.states("j") == "FA"
    assert worker.attach().revoked == [first]
    worker.held[first] = b""
    assert worker.beat() == [first], "as long as it runs"
    farm.restart()
    worker.held[first] = b""
    assert worker.attach().revoked == [first]
    worker.held[first] = b""
    worker.finished = [first]
    assert worker.attach().revoked == [], "its report is told that another outcome stands"
    farm.claim_all(effects.Refuse)
    assert worker.report(first) is VerdictCode.SUPERSEDED
    worker.run([second])


def test_a_late_hello_of_a_worker_that_has_left_is_refused(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", 1, type="t")
    worker.detach()
    late = worker.hello()
    worker.attach()
    (token,) = worker.take()
    worker.release(token)
    farm.drop(effects.SendTasks)
    worker.goodbye()
    farm.do(late)
    assert isinstance(farm.claim(effects.Refuse, session=late.session).error, errors.Unavailable)
    farm.claim(effects.Audit)
    assert farm.states("j") == "Q"
    worker.held.clear()
    worker.attach()
    assert len(worker.take()) == 1


def test_timers_of_what_has_ended_do_not_gather(farm: Harness) -> None:
    worker = farm.worker(slots=1)
    day_ns = 86_400 * SECOND_NS
    for number in range(3 * TIMERS_MIN):
        farm.create(f"j{number}", 1, timeouts=Timeouts(run_ns=day_ns))
        (token,) = worker.take()
        worker.running(token)
        worker.run([token])
        farm.purge(f"j{number}")
    assert len(farm.state.timers) <= TIMERS_MIN
    farm.create("j", 1, timeouts=Timeouts(run_ns=day_ns))
    (token,) = worker.take()
    worker.running(token)
    for _ in range(3 * TIMERS_MIN):
        farm.state.arm(farm.now + day_ns, "backstop", 1, 0, 1, 1)
    farm.wait(86_400 + 12 + 1, beating=[])
    assert farm.states("j") == "Q"
    farm.drop()


def test_an_orchestrators_next_process_is_told_of_the_drain_too(farm: Harness) -> None:
    """It does not leave as a worker does, and goes on with what it had."""
    below = farm.worker(slots=1, orchestrator=True)

    def drain(on: bool) -> None:
        farm.ask(lambda n: events.DrainWorker(request=n, worker_id=W1, drain=on, limit_ns=5 * SECOND_NS))

    drain(True)
    farm.claim(effects.SendDrain)
    below.detach()
    below.reborn()
    below.attach()
    assert farm.claim(effects.SendDrain).session == below.session
    farm.create("j", 1)
    assert below.take() == []
    drain(False)
    assert isinstance(farm.claim(effects.Refuse, session=below.session).error, errors.Weather)
    below.attach()
    assert farm.claim_all(effects.SendDrain) == []
    assert len(below.take()) == 1


def test_a_drained_id_that_comes_back_stays_drained_until_told_otherwise(farm: Harness) -> None:
    worker = farm.worker(slots=1)
    farm.ask(lambda n: events.DrainWorker(request=n, worker_id=W1, drain=True, limit_ns=SECOND_NS))
    farm.claim(effects.SendDrain)
    worker.goodbye()
    worker.reborn()
    worker.attach()
    farm.create("j", 1)
    assert worker.take() == []
    farm.ask(lambda n: events.DrainWorker(request=n, worker_id=W1, drain=False, limit_ns=0))
    farm.claim(effects.Refuse, session=worker.session)
    worker.attach()
    assert len(worker.take()) == 1


def test_an_unknown_worker_cannot_be_drained(farm: Harness) -> None:
    error = farm.refusal(lambda n: events.DrainWorker(request=n, worker_id=W1, drain=True, limit_ns=1))
    assert isinstance(error, errors.WorkerNotFound)


def test_workers_that_are_gone_are_forgotten_when_there_are_too_many() -> None:
    farm = Harness(CoreConfig(workers_known_max=3))
    for number in range(6):
        farm.worker(f"w{number}").goodbye()
    stays = farm.worker("stays")
    farm.wait(1, beating=[stays])
    assert set(farm.state.workers) == {"w4", "w5", "stays"}
    farm.close()


def test_a_ghost_is_queued_again_at_the_next_heartbeat(farm: Harness) -> None:
    worker = farm.worker(slots=2)
    farm.create("j", 2)
    tokens = worker.take()
    assert worker.beat(held=tokens[:1]) == []
    assert worker.take() == [("j", 1, 1, 2)]
    assert farm.job("j").notes[1].infra_failures == 0


def test_what_is_on_its_way_is_no_ghost(farm: Harness) -> None:
    worker = farm.worker(slots=2)
    farm.create("j", 1)
    worker.take()
    farm.create("k", 1)
    tokens = list(worker.held)
    assert worker.beat(held=tokens, frames=1) == []
    assert farm.states("k") == "A"
    worker.take()
    worker.beat()
    assert farm.states("k") == "A"


def test_what_a_reattached_worker_does_not_hold_was_never_there(farm: Harness) -> None:
    worker = farm.worker(slots=2)
    farm.create("j", 2)
    tokens = worker.take()
    del worker.held[tokens[0]]
    worker.detach()
    worker.attach()
    assert worker.take() == [("j", 0, 1, 2)]
    assert farm.job("j").notes[0].infra_failures == 0


def test_a_held_token_of_a_job_that_is_not_here_is_revoked(farm: Harness) -> None:
    worker = farm.worker()
    strange = [("nope", 0, 1, 1), ("j", 5, 1, 1), ("j", 0, 9, 1)]
    farm.create("j", 0, close=False)
    worker.held = dict.fromkeys(strange, b"")
    assert worker.beat() == strange
    worker.held = dict.fromkeys(strange, b"")
    assert sorted(worker.attach().revoked) == sorted(strange)
    farm.claim(effects.Refuse)


def test_what_still_runs_of_a_task_that_was_given_up_is_stopped() -> None:
    farm = Harness(CoreConfig(infra_failures_max=0))
    worker = farm.worker()
    farm.create("j", 1)
    (token,) = worker.take()
    worker.detach()
    farm.wait(13)
    farm.claim(effects.Audit)
    assert farm.states("j") == "D"
    worker.incarnation = b"2"
    assert worker.attach().revoked == [token]
    farm.close()


def test_a_frame_that_waits_holds_back_those_behind_it(farm: Harness) -> None:
    """Frames are counted: one that overtook another would make the other's attempts look as if they had never arrived."""
    worker = farm.worker(slots=2)
    farm.autocommit = False
    farm.do(create_event(1, "once", 1, at_most_once=True))
    farm.do(create_event(2, "often", 1))
    assert worker.take() == []
    assert worker.beat(frames=0) == []
    assert (farm.states("once"), farm.states("often")) == ("A", "A")
    farm.commit()
    assert worker.take() == [("once", 0, 1, 1), ("often", 0, 1, 1)]
    farm.drop(effects.Reply)


def test_dependencies_do_not_matter_to_leases(farm: Harness) -> None:
    worker = farm.worker(slots=1)
    farm.create("a", 1)
    farm.create("b", 1, dependencies=(each("a"),))
    worker.take()
    worker.detach()
    farm.wait(13)
    assert (farm.states("a"), farm.states("b")) == ("Q", "W")
    assert farm.job("a").counts[TaskState.QUEUED] == 1
    farm.drop(effects.Audit)


def test_a_pause_right_after_the_start_counts_against_nobody_either(farm: Harness) -> None:
    farm.worker()
    farm.tick(60)
    assert not farm.state.workers["w1"].lost


def test_a_late_hello_of_a_connection_that_was_given_up_changes_nothing(farm: Harness) -> None:
    """What it says was true before the newer session: the assignments of that are not in it, and must not be taken for missing."""
    worker = farm.worker("w1", slots=2, dial=2)
    farm.create("j", 1)
    assert worker.take() == [("j", 0, 1, 1)]
    session, held = worker.session, dict(worker.held)
    worker.fields["dial"], worker.held = 1, {}
    refusal = worker.refused()
    assert type(refusal).__name__ == "Unavailable"
    worker.session, worker.held = session, held
    worker.beat()
    assert farm.states("j") == "A"
    worker.run()
    assert farm.states("j") == "S"


def test_a_hello_without_a_number_may_be_a_late_one_and_only_a_heartbeat_says_what_never_arrived(farm: Harness) -> None:
    worker = farm.worker("w1", slots=2, dial=0)
    farm.create("j", 2, at_most_once=True)
    tokens = worker.take()
    held = dict(worker.held)
    worker.held = {}
    worker.attach()  # said before the frame arrived
    worker.held = held
    worker.attach()
    del worker.held[tokens[0]]
    assert farm.states("j") == "AA"
    worker.beat()
    assert worker.take() == [("j", 0, 1, 2)]
    farm.drop(effects.Refuse)


def test_what_was_told_to_stop_over_an_older_stream_is_not_awaited_for_ever(farm: Harness) -> None:
    """Also of a worker that does not number its connections: what is not held at the first heartbeat has stopped, or never arrived."""
    worker = farm.worker("w1", dial=0)
    farm.create("j", 1)
    (token,) = worker.take()
    farm.cancel("j")
    farm.drop(effects.SendRevoke)
    assert farm.state.workers["w1"].stopping == {token: 1}
    worker.held = {}
    worker.attach()
    worker.beat()
    assert farm.state.workers["w1"].is_empty
    farm.drop(effects.Refuse)


def test_who_has_seen_the_farthest_epoch_shuts_nobody_out(farm: Harness) -> None:
    far = farm.worker("w2", max_epoch_seen=EPOCH_SEEN_MAX)
    farm.claim(effects.Audit)
    assert farm.state.epoch == EPOCH_SEEN_MAX + 1
    farm.worker("w1", max_epoch_seen=farm.state.epoch)
    error = Worker(farm, "w3", 1, max_epoch_seen=farm.state.epoch + 1).refused()
    assert isinstance(error, errors.InvalidArgument)
    assert far.session in farm.state.sessions
