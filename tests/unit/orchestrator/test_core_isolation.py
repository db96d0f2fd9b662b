"""Poison: who is suspected of what, who runs alone and where, and when a task is given up for it (I18)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from orchestrator_harness import SWEEP_NS, Harness, Token, Worker

from antfarm.model import SECOND_NS, ConcurrencyLimit, FailureClass, JobId, RetryPolicy, VerdictCode, WorkerId
from services.orchestrator.core import effects, records
from services.orchestrator.core.state import State


def counts(farm: Harness, job_id: str, index: int = 0) -> tuple[int, int, int]:
    """(crashes, infra failures, suspicions) of a task that has not ended."""
    note = farm.job(job_id).notes[index]
    return note.crashes, note.infra_failures, note.suspected


def next_start(farm: Harness, *workers: Worker) -> tuple[Worker, Token]:
    """The next assignment to any of the workers, however long the pause before it."""
    for _ in range(400):
        for worker in workers:
            taken = worker.take()
            if taken:
                return worker, taken[0]
        farm.wait(SWEEP_NS / SECOND_NS, beating=list(workers))
    raise AssertionError("nothing was given out")


def test_a_suspect_that_waits_for_its_limit_is_first_when_that_has_room(farm: Harness) -> None:
    """Fresh tasks of the same limit wait as well, and would have it each time; two of three workers are empty."""
    limit = ConcurrencyLimit(name="one", max_active=1)
    first = farm.worker("w1")
    farm.create("s", 1, limit=limit)
    first.take()
    first.die()
    farm.drop()
    first.take()
    others = [farm.worker("w2", slots=2), farm.worker("w3", slots=2)]
    farm.create("fresh", 1_000, limit=limit)
    first.die()
    assert counts(farm, "s")[2] == 2
    seconds, began = 0, False
    while not began:
        taken = [token[0] for worker in (first, *others) for token in worker.take()]
        began = "s" in taken
        for worker in (first, *others):
            worker.run([token for token in worker.held if token[0] == "fresh"])
        farm.wait(1, beating=[first, *others])
        seconds += 1
        assert seconds < 10
    farm.drop()


def test_a_suspect_whose_worker_does_not_become_empty_lets_others_run_meanwhile(farm: Harness) -> None:
    """It fits on one worker alone, where something long runs; another suspect's worker is empty. One reservation at a time is allowed."""
    w1, w2, _ = workers = [
        farm.worker("w1", slots=2, types=("a",)),
        farm.worker("w2", types=("b",)),
        farm.worker("w3"),
    ]
    farm.create("s1", 1, type="a")
    farm.create("s2", 1, type="b")
    for worker in (w1, w2):
        worker.take()
        worker.die()
    farm.create("long", 1, type="a")
    farm.drop(effects.Audit)
    while "s1" not in {token[0] for token in w1.held} or "s2" not in {token[0] for token in w2.held}:
        farm.wait(1, beating=workers)
        w1.take()
        w2.take()
    for worker, job_id in ((w1, "s1"), (w2, "s2")):
        worker.fail(next(token for token in worker.held if token[0] == job_id), FailureClass.CRASH)
        farm.wait(5, beating=workers)
        assert farm.state.workers[WorkerId("w1")].alone_for is not None
    assert w2.take() == []
    seconds = 0
    while not w2.take():
        farm.wait(1, beating=workers)
        seconds += 1
        assert seconds < 70
    assert [token[0] for token in w2.held] == ["s2"]
    assert [token[0] for token in w1.held] == ["long"]
    w1.run()
    w2.run()
    farm.wait(5, beating=workers)
    assert [token[0] for token in w1.take()] == ["s1"]
    farm.drop()


@pytest.mark.parametrize("started", [0, 1, 2])
@pytest.mark.parametrize("how", ["silent", "restarted"])
def test_every_task_on_a_lost_worker_is_a_suspect_and_none_has_crashed(farm: Harness, how: str, started: int) -> None:
    worker = farm.worker(slots=3)
    farm.create("j", 3)
    for token in worker.take()[:started]:
        worker.running(token)
    if how == "silent":
        farm.wait(13)
    else:
        worker.die()
    farm.drop()
    assert [counts(farm, "j", index) for index in range(3)] == [(0, 1, 1)] * 3


def test_a_down_stream_orchestrator_runs_nothing_so_its_loss_makes_nobody_a_suspect(farm: Harness) -> None:
    worker = farm.worker(orchestrator=True)
    farm.create("j", 1)
    worker.take()
    worker.die()
    assert counts(farm, "j") == (0, 1, 0)
    assert len(worker.take()) == 1


@pytest.mark.parametrize(
    ("failure_class", "state"), [(FailureClass.CRASH, "D"), (FailureClass.INFRA, "D"), (FailureClass.APP, "F")]
)
def test_what_failed_below_had_its_retries_there(farm: Harness, failure_class: FailureClass, state: str) -> None:
    """Or every level would multiply them; and what is poison would kill as many workers again."""
    worker = farm.worker(orchestrator=True)
    farm.create("j", 1, retry=RetryPolicy(max_attempts=4))
    (token,) = worker.take()
    worker.fail(token, failure_class)
    assert farm.states("j") == state
    assert worker.take() == []


def test_a_long_task_whose_one_slot_worker_is_killed_three_times_has_not_crashed(farm: Harness) -> None:
    workers = [farm.worker(name) for name in ("w1", "w2", "w3")]
    farm.create("j", 1)
    for crashes in ((0, 1, 1), (0, 2, 2), (1, 2, 3)):
        holder, token = next_start(farm, *workers)
        holder.running(token)
        holder.die()
        assert counts(farm, "j") == crashes
    holder, token = next_start(farm, *workers)
    holder.run([token])
    assert farm.states("j") == "S"


def with_a_suspect(farm: Harness) -> tuple[Worker, Worker, Token]:
    """(other, holder, what the holder runs): job j's task has brought the other down twice, and waits for the holder to become empty."""
    w1, w2 = farm.worker("w1", slots=1), farm.worker("w2", slots=1)
    farm.create("k", 1)
    holder, running = next_start(farm, w1, w2)
    other = w2 if holder is w1 else w1
    farm.create("j", 1)
    for _ in range(2):
        assert next_start(farm, other)[1][0] == "j"
        other.die()
        holder.beat()
    assert counts(farm, "j") == (0, 2, 2)
    return other, holder, running


def test_a_worker_is_empty_when_what_it_was_told_to_stop_has_stopped(farm: Harness) -> None:
    other, holder, running = with_a_suspect(farm)
    farm.cancel("k")
    farm.drop(effects.SendRevoke)
    farm.wait(3.5, beating=[other])  # beyond its back-off
    assert other.take() == holder.take() == []
    holder.forget([running])
    holder.beat()
    assert [token[0] for token in holder.take()] == ["j"]


def test_a_task_whose_worker_was_stopping_another_has_not_crashed(farm: Harness) -> None:
    other, holder, running = with_a_suspect(farm)
    farm.cancel("k")
    farm.drop(effects.SendRevoke)
    holder.forget([running])
    farm.wait(10, beating=[other, holder])
    (suspect,) = holder.take()
    farm.restart()
    holder.held[running] = b""
    assert holder.attach().revoked == [running]
    assert farm.job("j").live[0].token == suspect
    holder.die()
    assert counts(farm, "j") == (0, 3, 3)


def test_poison_is_given_up_after_three_crashes_alone_on_two_workers(farm: Harness) -> None:
    workers = [farm.worker(name, slots=2) for name in ("w1", "w2", "w3")]
    farm.create("j", 1)
    where = []
    while farm.states("j") != "D":
        holder, _ = next_start(farm, *workers)
        where.append(holder.worker_id)
        holder.die()
    assert where == ["w1", "w2", "w3", "w1", "w2"]  # twice among others, then alone and elsewhere
    ((last,),) = [record.ended for record in farm.records if isinstance(record, records.TasksEnded)]
    assert last.failure is not None
    assert last.failure.failure_class is FailureClass.CRASH
    assert last.failure.message.endswith(
        "(poison: crash 3, the last one alone on its worker; it crashed on w1, w2, w3)"
    )


def test_with_one_worker_three_crashes_there_are_enough_and_with_two_they_are_not(farm: Harness) -> None:
    first = farm.worker("w1")
    farm.create("j", 1)
    for _ in range(2):
        first.fail(next_start(farm, first)[1], FailureClass.CRASH)
    (_, token) = next_start(farm, first)
    second = farm.worker("w2")
    first.fail(token, FailureClass.CRASH)
    assert farm.states("j") == "W"
    holder, token = next_start(farm, first, second)
    assert holder is second
    second.fail(token, FailureClass.CRASH)
    assert farm.states("j") == "D"


def suspects(farm: Harness, worker: Worker, count: int, **spec: Any) -> None:
    """A job "s" whose tasks were all on the worker when it died twice, and wait for what is left of their back-off."""
    farm.create("s", count, **spec)
    for _ in range(2):
        worker.take()
        worker.die()
    assert not farm.job("s").live


def test_a_suspect_waits_for_a_worker_to_become_empty_and_nothing_joins_it(farm: Harness) -> None:
    worker = farm.worker(slots=2)
    suspects(farm, worker, 1)
    farm.create("good", 5)
    first, second = worker.take()
    farm.wait(4, beating=[worker])
    worker.run([first])
    assert worker.take() == []  # the free slot waits for the other
    worker.run([second])
    (bad,) = worker.take()
    assert bad[0] == "s"
    farm.wait(5, beating=[worker])
    assert worker.take() == []
    worker.run([bad])
    assert len(worker.take()) == 2


def test_suspects_run_one_after_the_other(farm: Harness) -> None:
    worker = farm.worker(slots=4)
    suspects(farm, worker, 4)
    for _ in range(4):
        _, token = next_start(farm, worker)
        assert worker.take() == []
        assert list(worker.held) == [token]
        worker.run([token])
    assert farm.states("s") == "SSSS"


def test_a_third_of_the_workers_are_reserved_at_most_and_the_rest_is_full(farm: Harness) -> None:
    workers = [farm.worker(f"w{n}", slots=4) for n in range(1, 7)]
    for worker in workers[1:]:
        worker.credit(0)
    suspects(farm, workers[0], 4)
    for worker in workers[1:]:
        worker.credit(4)
    farm.wait(4, beating=workers)
    farm.create("other", 100)
    for worker in workers:
        worker.take()
    alone = [worker.worker_id for worker in farm.state.workers.values() if worker.alone_for is not None]
    assert alone == ["w2", "w3"]  # elsewhere
    assert [len(farm.state.workers[f"w{n}"].live) for n in range(1, 7)] == [4, 1, 1, 4, 4, 4]


def test_one_worker_at_a_time_becomes_empty(farm: Harness) -> None:
    workers = [farm.worker(f"w{n}", slots=2) for n in range(1, 10)]
    for worker in workers[1:]:
        worker.credit(0)
    suspects(farm, workers[0], 2)
    farm.create("other", 200)
    for worker in workers[1:]:
        worker.credit(2)
    farm.wait(4, beating=workers)
    assert [worker.worker_id for worker in farm.state.workers.values() if worker.alone_for is not None] == ["w2"]
    farm.drop(effects.SendTasks)


def test_endless_work_elsewhere_does_not_starve_a_suspect(farm: Harness) -> None:
    first, second = farm.worker("w1"), farm.worker("w2")
    second.credit(0)
    suspects(farm, first, 1)
    first.credit(0)
    second.credit(1)
    farm.create("endless", 1)
    second.take()
    first.credit(1)
    farm.wait(55, beating=[first, second])
    assert first.take() == []  # w1 died twice with it: it waits for w2
    farm.wait(10, beating=[first, second])
    assert [token[0] for token in first.take()] == ["s"]


def test_a_suspect_waits_for_the_worker_on_which_another_runs_rather_than_take_one_that_it_brought_down(
    farm: Harness,
) -> None:
    first, second, *rest = (farm.worker(f"w{n}", slots=2) for n in range(1, 7))
    for worker in (second, *rest):
        worker.credit(0)
    suspects(farm, first, 2)
    second.credit(2)
    farm.wait(4, beating=[first, second, *rest])
    ((_, alone, _, _),) = second.take()
    farm.wait(50, beating=[first, second, *rest])
    assert first.take() == []
    farm.wait(20, beating=[first, second, *rest])
    assert [token[1] for token in first.take()] == [1 - alone]  # but not for ever


def test_a_suspect_that_is_cancelled_frees_the_worker_that_was_reserved_for_it(farm: Harness) -> None:
    worker = farm.worker(slots=2)
    suspects(farm, worker, 1)
    farm.create("good", 5)
    first, _ = worker.take()
    farm.wait(4, beating=[worker])
    worker.run([first])
    assert worker.take() == []
    farm.cancel("s")
    assert len(worker.take()) == 1


def test_a_paused_job_holds_no_worker(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("bad", 1)
    for _ in range(2):
        worker.fail(next_start(farm, worker)[1], FailureClass.CRASH)
    farm.pause("bad")
    farm.create("good", 1)
    farm.wait(10, beating=[worker])
    assert [token[0] for token in worker.take()] == ["good"]
    worker.run()
    assert worker.take() == []
    farm.pause("bad", paused=False)
    assert [token[0] for token in worker.take()] == ["bad"]


def test_a_suspect_keeps_to_its_concurrency_limit(farm: Harness) -> None:
    first = farm.worker("w1")
    limit = ConcurrencyLimit(name="one", max_active=1)
    suspects(farm, first, 1, limit=limit)
    second = farm.worker("w2")
    first.credit(0)
    farm.create("a", 1, limit=limit)
    (token,) = second.take()
    second.credit(0)
    first.credit(1)
    farm.wait(10, beating=[first, second])
    assert first.take() == []
    second.run([token])
    assert [token[0] for token in first.take() + second.take()] == ["s"]


def test_suspicion_and_being_alone_outlive_the_orchestrator(farm: Harness) -> None:
    worker = farm.worker(slots=2)
    suspects(farm, worker, 1)
    _, token = next_start(farm, worker)
    farm.restart()
    worker.attach()
    assert farm.job("s").live[0].token == token
    farm.create("other", 3)
    assert worker.take() == []
    worker.die()
    assert counts(farm, "s") == (1, 2, 3)
    farm.drop(effects.SendTasks)


def test_suspects_that_were_queued_before_a_restart_run_alone_after_it(farm: Harness) -> None:
    worker = farm.worker(slots=2)
    suspects(farm, worker, 2)
    farm.restart(after_s=60)
    worker.attach()
    assert len(next_start(farm, worker)) == 2
    assert farm.states("s") == "AQ"


def test_a_third_crash_beside_others_is_not_the_last(farm: Harness) -> None:
    worker = farm.worker(slots=2)
    farm.create("s", 2)
    worker.take()
    for attempt in (1, 2):
        for index in (0, 1):
            worker.fail(("s", index, 1, attempt), FailureClass.CRASH)
        worker.take()
    farm.restart()
    worker.held = {("s", 0, 1, 3): b"", ("s", 1, 1, 3): b""}
    worker.attach()
    worker.fail(("s", 0, 1, 3), FailureClass.CRASH)
    assert (farm.states("s"), counts(farm, "s")) == ("WA", (3, 0, 3))
    worker.run([("s", 1, 1, 3)])
    worker.fail(next_start(farm, worker)[1], FailureClass.CRASH)
    assert farm.states("s") == "DS"


def test_what_is_adopted_beside_others_does_not_run_alone(farm: Harness) -> None:
    worker = farm.worker(slots=2)
    suspects(farm, worker, 2)
    farm.restart()
    worker.held = {("s", 0, 1, 3): b"", ("s", 1, 1, 3): b""}
    worker.attach()
    assert farm.states("s") == "AA"
    worker.die()
    assert [counts(farm, "s", index) for index in (0, 1)] == [(0, 3, 3)] * 2


def test_an_older_journal_knows_of_crashes_alone(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", 1)
    worker.fail(worker.take()[0], FailureClass.CRASH)
    record = next(record for record in farm.records if isinstance(record, records.AttemptFailed))
    old = State()
    for seq, earlier in enumerate(farm.records[: farm.records.index(record)], 1):
        old.apply(seq, earlier)
    old.apply(old.seq + 1, replace(record, suspected=0))
    note = old.by_id[JobId("j")].notes[0]
    assert (note.suspected, note.suspected_on) == (1, {"w1": True})
    farm.drop(effects.SendTasks)


def test_a_worker_is_not_empty_while_an_attempt_runs_on_that_was_given_up(farm: Harness) -> None:
    """It came back with an attempt after a newer one had failed elsewhere: a success of it still counts, and it is no bystander's crash."""
    w1, w2 = farm.worker("w1", slots=1), farm.worker("w2", slots=1)
    farm.create("k", 1)
    holder, running = next_start(farm, w1, w2)
    other = w2 if holder is w1 else w1
    farm.wait(16, beating=[other])  # the holder is silent beyond its lease
    farm.drop(effects.Audit, effects.Refuse)
    (newer,) = other.take()
    assert newer[:2] == running[:2]
    other.fail(newer, FailureClass.INFRA)
    holder.incarnation += b"+"
    assert holder.attach().revoked == []
    assert list(holder.held) == [running]
    assert not farm.job("k").live
    assert not farm.state.workers[holder.worker_id].is_empty
    assert holder.report(running) is VerdictCode.ACCEPTED
    assert farm.state.workers[holder.worker_id].is_empty


def test_suspects_that_begin_together_keep_their_concurrency_limit(farm: Harness) -> None:
    limit = ConcurrencyLimit(name="l", max_active=3)
    worker = farm.worker("w1", slots=2)
    farm.create("a", 2, limit=limit)
    worker.take()
    worker.die()
    worker.take()
    busy = farm.worker("wb", slots=3, types=("b",))
    farm.create("b", 3, type="b", limit=limit)
    worker.die()
    workers = [worker, busy, *(farm.worker(f"x{number}") for number in range(6))]
    farm.wait(8, beating=workers)
    busy.take()
    farm.wait(8, beating=workers)
    busy.run([next(iter(busy.held))])
    assert farm.state.limits["l"].live <= 3
    busy.run()
    farm.wait(1, beating=workers)
    assert farm.states("a") == "AA"
    farm.drop()
