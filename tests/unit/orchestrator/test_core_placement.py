"""Placement: ready tasks go to fit workers within their credit, in fair shares, spread out, and nothing starves."""

from __future__ import annotations

import sys
from collections import Counter

import pytest
from orchestrator_harness import Harness, Worker, create_event, crowd_out, failure, retrying

from antfarm.model import PAYLOAD_BYTES_MAX, ConcurrencyLimit, Ending, TaskTemplate
from services.orchestrator.core import effects, events, placement, state
from services.orchestrator.core.lanes import Lane, fits
from services.orchestrator.core.limits import AMOUNT_MAX
from services.orchestrator.core.state import Probation
from services.orchestrator.core.turn import CoreConfig


def served(farm: Harness, workers: list[Worker], rounds: int) -> Counter[str]:
    """How many tasks of each job are run when the workers run what they hold again and again."""
    counts: Counter[str] = Counter()
    for _ in range(rounds):
        for worker in workers:
            worker.take()
            if worker.held:
                token = next(iter(worker.held))
                counts[token[0]] += 1
                worker.run([token])
                worker.take()
    return counts


def test_tasks_go_out_in_the_order_of_their_index(farm: Harness) -> None:
    worker = farm.worker(slots=3)
    farm.create("j", 5)
    assert [token[1] for token in worker.take()] == [0, 1, 2]
    worker.run([("j", 1, 1, 1)])
    assert [token[1] for token in worker.take()] == [3]


@pytest.mark.parametrize("wants", [{"cpu": 2.0}, {"gpu": 2.0}])
def test_what_needs_more_than_ever_ends_at_once_is_kept_a_worker_for(farm: Harness, wants: dict[str, float]) -> None:
    """Narrow tasks would take each slot that frees, for ever, whatever the priority of the wide one."""
    workers = [farm.worker(f"w{n}", slots=2, resources={"gpu": 2.0}) for n in (1, 2)]
    farm.create("narrow", 1_000, resources={"gpu": 1.0})
    for worker in workers:
        worker.take()
    farm.create("wide", 1, resources=wants)
    seconds = 0
    while not any(token[0] == "wide" for worker in workers for token in worker.held):
        worker = workers[seconds % 2]
        worker.run([next(iter(worker.held))])
        farm.wait(1, beating=workers)
        for other in workers:
            other.take()
        seconds += 1
        assert seconds < 60
    assert 30 <= seconds <= 36
    (wide,) = [worker for worker in workers if any(token[0] == "wide" for token in worker.held)]
    wide.run([token for token in wide.held if token[0] == "wide"])
    assert len(wide.take()) == 2, "and then it takes what it took before"
    assert farm.state.kept_for is None


def test_no_worker_is_kept_for_what_waits_for_its_limit(farm: Harness) -> None:
    first = farm.worker("w1", slots=2)
    farm.create("wide", 2, resources={"cpu": 2.0}, limit=ConcurrencyLimit(name="one", max_active=1))
    assert len(first.take()) == 1
    other = farm.worker("w2", slots=2)
    farm.create("narrow", 1_000)
    for _ in range(60):
        other.take()
        other.run([next(iter(other.held))])
        farm.wait(1, beating=[first, other])
        assert farm.state.kept_for is None
    farm.drop(effects.SendTasks)


def test_no_worker_is_kept_for_tasks_that_stand_in_their_own_way(farm: Harness) -> None:
    """Two tasks for one GPU: the first is why the second waits, and the slots beside it are for others."""
    worker = farm.worker("w1", slots=4, resources={"gpu": 1.0})
    farm.create("g", 2, resources={"gpu": 1.0})
    (gpu,) = worker.take()
    farm.create("n", 1_000)
    worker.take()
    for _ in range(90):
        worker.run([token for token in worker.held if token != gpu])
        farm.wait(1, beating=[worker])
        worker.take()
        assert len(worker.held) == 4
    assert farm.state.kept_for is None


def test_of_a_kept_worker_others_take_what_leaves_room(farm: Harness) -> None:
    """One type's task has the GPU for long, so another type's waits: a slot is kept for that, the rest is not."""
    worker = farm.worker("w1", slots=4, resources={"gpu": 1.0}, types=("t", "u"))
    farm.create("g", 1, resources={"gpu": 1.0})
    (gpu,) = worker.take()
    farm.create("h", 1, resources={"gpu": 1.0}, type="u")
    farm.create("n", 1_000)
    worker.take()
    for _ in range(40):
        worker.run([token for token in worker.held if token != gpu])
        farm.wait(1, beating=[worker])
        worker.take()
    assert farm.state.kept_for is not None
    assert sorted(token[0] for token in worker.held) == ["g", "n", "n"]
    worker.run([gpu])
    assert [token[0] for token in worker.take()] == ["h"]
    farm.tick()
    assert farm.state.kept_for is None
    farm.drop(effects.SendTasks)


def test_no_worker_is_kept_that_asks_for_nothing(farm: Harness) -> None:
    """Its children may not start, so it holds nothing and would be taken for the emptiest."""
    broken, worker = farm.worker("w0", slots=2), farm.worker("w1", slots=2)
    broken.credit(0)
    farm.create("narrow", 1_000)
    farm.create("wide", 1, resources={"cpu": 2.0})
    worker.take()
    seconds = 0
    while not any(token[0] == "wide" for token in worker.held):
        worker.run([next(iter(worker.held))])
        farm.wait(1, beating=[broken, worker])
        worker.take()
        seconds += 1
        assert seconds < 40


def test_where_room_does_not_come_in_time_another_worker_is_kept(farm: Harness) -> None:
    first, second = workers = [farm.worker(f"w{n}", slots=2) for n in (1, 2)]
    second.credit(0)
    farm.create("long", 1)
    (long,) = first.take()
    second.credit(2)
    farm.create("narrow", 1_000)
    farm.create("wide", 1, resources={"cpu": 2.0})
    seconds = 0
    while not any(token[0] == "wide" for token in second.held):
        for worker in workers:
            worker.take()
            short = [token for token in worker.held if token != long]
            worker.run(short[:1])
        farm.wait(1, beating=workers)
        second.take()
        seconds += 1
        assert seconds < 100
    assert first.held.keys() >= {long}
    farm.drop(effects.SendTasks)


def test_where_room_does_not_come_in_time_other_tasks_have_their_turn(farm: Harness) -> None:
    """The GPU is taken for long. A wide task of another type, on another worker, does not wait for it."""
    gpu = farm.worker("g", slots=4, types=("t", "u"), resources={"gpu": 1.0})
    farm.create("long", 1, resources={"gpu": 1.0})
    gpu.take()
    farm.create("wants-it-too", 1, type="u", resources={"gpu": 1.0})
    other = farm.worker("w", slots=2, types=("n",))
    farm.create("narrow", 1_000, type="n")
    farm.create("wide", 1, type="n", resources={"cpu": 2.0})
    seconds = 0
    while not any(token[0] == "wide" for token in other.take()):
        other.run([next(iter(other.held))])
        farm.wait(1, beating=[gpu, other])
        seconds += 1
        assert seconds < 100
    assert seconds > 60, "the other one's turn was first"


def test_a_turn_goes_on_where_it_gave_way(farm: Harness) -> None:
    """It takes up to 200 s until a slot frees, which is more than the first turns' patience; two kinds of wide tasks wait."""
    workers = [farm.worker("w1", slots=2), farm.worker("w2", slots=2, types=("n",))]
    farm.create("narrow", 1_000)
    farm.create("narrow-too", 1_000, type="n")
    farm.create("wide", 1, resources={"cpu": 2.0})
    farm.create("wide-too", 1, type="n", resources={"cpu": 2.0})
    for worker in workers:
        worker.take()
    began: set[str] = set()
    for _ in range(60):  # of each worker one task ends every 200 s, 100 s after the other one
        for worker in workers:
            worker.run([next(iter(worker.held))])
        farm.wait(100, beating=workers)
        began |= {token[0] for worker in workers for token in worker.take()}
        if {"wide", "wide-too"} <= began:
            break
    else:
        raise AssertionError(f"only {began} began")
    farm.drop(effects.SendTasks)


@pytest.mark.parametrize("place", [True, False])
def test_a_limit_goes_in_turn_to_the_tasks_of_all_workers(farm: Harness, place: bool) -> None:
    """Each time it frees both workers are empty, and the first one would have it. Who has no place to run takes it from nobody."""
    limit = ConcurrencyLimit(name="one", max_active=1)
    first, second = workers = [farm.worker("w1", types=("a",)), farm.worker("w2", types=("b", "c"))]
    if not place:
        farm.create("c", 1, type="c")
        second.take()
    farm.create("a", 1_000, type="a", limit=limit)
    farm.create("b", 2, type="b", limit=limit)
    began = []
    for seconds in range(100):
        first.take()
        if second.take():
            began.append(seconds)
        for worker in workers:
            worker.run([token for token in worker.held if token[0] != "c"])
        farm.wait(1, beating=workers)
    assert began == ([31, 62] if place else [])
    assert farm.states("a").count("S") == 100 - len(began)
    farm.drop(effects.SendTasks)


@pytest.mark.parametrize("how", ["cancelled", "purged", "paused", "its type is paused"])
def test_a_limit_is_not_kept_for_tasks_that_do_not_wait_for_it_any_more(farm: Harness, how: str) -> None:
    limit = ConcurrencyLimit(name="one", max_active=1)
    first, _ = workers = [farm.worker("w1", types=("a",)), farm.worker("w2", types=("b",))]
    farm.create("a", 1_000, type="a", limit=limit)
    (running,) = first.take()
    farm.create("b", 2, type="b", limit=limit)
    farm.wait(31, beating=workers)
    assert farm.state.limits["one"].kept_for is farm.job("b").lane
    if how == "its type is paused":
        farm.state.paused_types["b"] = Probation(cause="", pause_ns=1 << 60, due_ns=1 << 60)
    elif how == "paused":
        farm.pause("b", paused=True)
    else:
        farm.cancel("b")
    if how == "purged":
        farm.purge("b")
    first.run([running])
    assert [token[0] for token in first.take()] == ["a"]
    farm.drop()


def test_a_worker_that_is_kept_for_tasks_that_were_cancelled_takes_others_again(farm: Harness) -> None:
    worker = farm.worker("w1", slots=2)
    farm.create("narrow", 1_000)
    farm.create("wide", 1, resources={"cpu": 2.0})
    crowd_out(farm, worker)
    assert worker.take() == []
    assert len(worker.held) == 1
    farm.cancel("wide")
    assert len(worker.take()) == 1
    assert farm.state.kept_for is None


def test_a_window_beyond_the_slots_is_filled_after_everybody_has_work(farm: Harness) -> None:
    w1, w2 = farm.worker("w1", slots=2, window=4), farm.worker("w2", slots=2, window=4)
    farm.create("a", 4)
    assert (len(w1.take()), len(w2.take())) == (2, 2)
    farm.create("b", 10)
    assert (len(w1.take()), len(w2.take())) == (2, 2)
    assert farm.states("b") == "AAAAQQQQQQ"


def test_few_tasks_spread_over_many_workers(farm: Harness) -> None:
    workers = [farm.worker(f"w{i}", slots=8, window=16) for i in range(4)]
    farm.create("a", 4)
    assert [len(worker.take()) for worker in workers] == [1, 1, 1, 1]
    farm.create("b", 4)
    assert [len(worker.take()) for worker in workers] == [1, 1, 1, 1]


def test_the_emptiest_worker_is_served_first(farm: Harness) -> None:
    w1 = farm.worker("w1", slots=4)
    farm.create("a", 3)
    w1.take()
    w2 = farm.worker("w2", slots=4)
    farm.create("b", 1)
    assert (len(w1.take()), len(w2.take())) == (0, 1)


def test_credit_bounds_what_is_outstanding(farm: Harness) -> None:
    worker = farm.worker(slots=2, window=3)
    farm.create("j", 10)
    assert len(worker.take()) == 3
    worker.credit(2)
    worker.run(list(worker.held)[:1])
    assert worker.take() == []
    worker.run(list(worker.held)[:1])
    assert len(worker.take()) == 1
    worker.credit(0)
    worker.run()
    assert worker.take() == []
    worker.credit(5)
    assert len(worker.take()) == 5


def test_only_a_worker_that_knows_the_type_gets_the_task(farm: Harness) -> None:
    w1, w2 = farm.worker("w1", types=("a", "b")), farm.worker("w2", types=("c",))
    farm.create("x", 1, type="c")
    assert w1.take() == []
    assert len(w2.take()) == 1
    farm.create("y", 1, type="d")
    assert w1.take() == w2.take() == []
    assert farm.states("y") == "Q"


def test_labels_must_be_carried_with_exactly_these_values(farm: Harness) -> None:
    w1, w2 = farm.worker("w1", labels={"zone": "a"}), farm.worker("w2", labels={"zone": "b", "gpu": "yes"})
    farm.create("x", 1, labels={"zone": "b"})
    assert w1.take() == []
    assert len(w2.take()) == 1
    farm.create("y", 1, labels={"zone": "a", "gpu": "yes"})
    assert w1.take() == []


def test_resources_bound_what_runs_side_by_side(farm: Harness) -> None:
    w1 = farm.worker("w1", slots=8, resources={"gpu": 2.0, "mem": 10.0})
    farm.worker("w2", slots=8)
    farm.create("x", 5, resources={"gpu": 1.0})
    assert len(w1.take()) == 2
    farm.create("y", 5, resources={"mem": 3.0})
    assert len(w1.take()) == 3
    w1.run([("x", 0, 1, 1)])
    assert w1.take() == [("x", 2, 1, 1)]
    farm.create("z", 1, resources={"gpu": 3.0})
    assert farm.states("z") == "Q"
    farm.create("cpu", 3, resources={"cpu": 4.0})
    assert [token[0] for token in w1.take()].count("cpu") in (0, 1, 2, 3)
    farm.drop(effects.SendTasks)


def test_of_next_to_nothing_a_worker_can_run_as_many_as_it_has_slots(farm: Harness) -> None:
    farm.worker("w1", slots=2, resources={"gpu": AMOUNT_MAX})
    farm.create("j", 3, resources={"gpu": 5e-324})
    assert farm.states("j") == "AAQ"
    farm.drop()


def test_a_concurrency_limit_holds_over_jobs_and_workers(farm: Harness) -> None:
    w1, w2 = farm.worker("w1", slots=4), farm.worker("w2", slots=4)
    limit = ConcurrencyLimit(name="web", max_active=3)
    farm.create("x", 5, limit=limit)
    farm.create("y", 5, limit=limit)
    farm.create("free", 2)
    taken = w1.take() + w2.take()
    assert sum(token[0] != "free" for token in taken) == 3
    assert sum(token[0] == "free" for token in taken) == 2
    for worker in (w1, w2):
        worker.run()
    assert sum(token[0] != "free" for token in w1.take() + w2.take()) == 3


def test_the_smallest_bound_of_all_jobs_that_name_a_limit_holds_until_they_have_ended(farm: Harness) -> None:
    worker = farm.worker(slots=10)
    farm.create("strict", 2, limit=ConcurrencyLimit(name="web", max_active=2))
    strict = worker.take()
    assert len(strict) == 2
    farm.create("lax", 10, limit=ConcurrencyLimit(name="web", max_active=5))
    assert worker.take() == []  # all of strict's tasks run, and its bound holds for all
    worker.run(strict[:1])
    assert len(worker.take()) == 1
    worker.run(strict[1:])
    assert len(worker.take()) == 4
    farm.restart()
    worker.attach()
    assert worker.take() == []
    assert len(farm.job("lax").live) == 5


def test_a_limit_is_free_again_when_an_attempt_is_lost_or_cancelled(farm: Harness) -> None:
    w1, w2 = farm.worker("w1"), farm.worker("w2")
    farm.create("j", 2, limit=ConcurrencyLimit(name="web", max_active=1))
    assert len(w1.take()) == 1
    w1.detach()
    farm.wait(13, beating=[w2])
    assert len(w2.take()) == 1
    farm.cancel_task("j", next(iter(w2.held))[1])
    farm.drop(effects.Audit, effects.SendRevoke)
    assert len(w2.take()) == 1
    assert farm.state.limits["web"].live == 1


# ---- fair shares -----------------------------------------------------------------------------------------------------


def test_jobs_share_evenly(farm: Harness) -> None:
    worker = farm.worker()
    for job_id in "abc":
        farm.create(job_id, 300)
    counts = served(farm, [worker], 90)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_a_batch_of_credit_is_shared_too(farm: Harness) -> None:
    farm.create("a", 300)
    farm.create("b", 300)
    worker = farm.worker(slots=100)
    counts = Counter(token[0] for token in worker.take())
    assert abs(counts["a"] - counts["b"]) <= 2


@pytest.mark.parametrize("steps", [1, 2, -1])
def test_each_step_of_priority_quadruples_the_share(farm: Harness, steps: int) -> None:
    worker = farm.worker()
    farm.create("plain", 400)
    farm.create("other", 400, priority=steps)
    counts = served(farm, [worker], 340)
    ratio = counts["other"] / counts["plain"]
    assert ratio == pytest.approx(4.0**steps, rel=0.15)


def test_a_low_priority_does_not_starve(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("high", 600, priority=3)
    farm.create("low", 10, priority=-1)
    counts = served(farm, [worker], 500)
    assert 1 <= counts["low"] <= 4


def test_a_job_that_comes_later_is_not_put_behind_those_before(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("old", 1_000)
    served(farm, [worker], 200)
    farm.create("new", 1_000)
    counts = served(farm, [worker], 100)
    assert abs(counts["old"] - counts["new"]) <= 2


def test_a_job_that_had_nothing_to_do_gets_no_credit_for_it(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("a", 1_000)
    farm.create("b", 1, close=False)
    served(farm, [worker], 200)
    farm.append("b", 1, 500)
    counts = served(farm, [worker], 100)
    assert abs(counts["a"] - counts["b"]) <= 2


def test_what_runs_on_other_workers_does_not_matter(farm: Harness) -> None:
    """A busy type must not push a newcomer of a slow type behind all those of the slow type that came before it."""
    quick, slow = farm.worker("quick", types=("quick",)), farm.worker("slow", types=("slow",))
    farm.create("x", 300, type="quick")
    farm.create("y", 100, type="slow")
    served(farm, [quick], 200)
    served(farm, [slow], 5)
    farm.create("z", 100, type="slow")
    counts = served(farm, [slow], 50)
    assert abs(counts["y"] - counts["z"]) <= 2


def test_a_worker_of_several_types_shares_between_jobs_not_between_types(farm: Harness) -> None:
    worker = farm.worker(types=("t", "u"))
    farm.create("t1", 500)
    farm.create("t2", 500)
    farm.create("u1", 500, type="u")
    counts = served(farm, [worker], 120)
    assert max(counts.values()) - min(counts.values()) <= 3


def test_a_worker_that_joins_two_types_starves_neither(farm: Harness) -> None:
    quick = farm.worker("quick", types=("quick",))
    farm.create("x", 300, type="quick")
    farm.create("y", 100, type="slow")
    served(farm, [quick], 200)
    quick.credit(0)
    both = farm.worker("both", types=("quick", "slow"))
    counts = served(farm, [both], 50)
    assert abs(counts["x"] - counts["y"]) <= 4


def test_a_trickle_gets_its_share_and_not_more(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("bulk", 1_000)
    farm.create("drops", 1, close=False)
    counts: Counter[str] = Counter()
    for _ in range(100):
        worker.take()
        (token,) = worker.held
        counts[token[0]] += 1
        worker.run()
        if token[0] == "drops":
            farm.append("drops", farm.job("drops").task_count, 1)
    worker.take()
    assert 40 <= counts["drops"] <= 55


def test_parts_of_one_parents_job_are_one_share_and_go_in_their_order(farm: Harness) -> None:
    worker = farm.worker(types=("t", "c"))
    farm.create("mine", 100)
    worker.take()
    for index in (1, 0):
        tasks = [events.ParentTask(index, 1, b"")]
        farm.do(events.ParentsAssigned(job_id="top", epoch=1, template=TaskTemplate(type="c"), tasks=tasks))
    counts = served(farm, [worker], 4)
    assert counts["up/top/0/relay-3"] == counts["up/top/1/relay-2"] == 1
    farm.drop(effects.ReportParents)


# ---- where it failed before -------------------------------------------------------------------------------------------


def test_a_retry_goes_elsewhere_while_there_is_an_elsewhere(farm: Harness) -> None:
    w1, w2 = farm.worker("w1"), farm.worker("w2")
    farm.create("j", 1, retry=retrying(5, 0.0))
    holder, other = (w1, w2) if w1.take() else (w2, w1)
    if other is w1:
        holder.take()
    (token,) = holder.held
    holder.fail(token)
    assert holder.take() == []
    assert len(other.take()) == 1
    other.fail(next(iter(other.held)))
    assert len(w1.take() + w2.take()) == 1


def test_a_retry_waits_for_another_worker_only_while_that_one_may_work(farm: Harness) -> None:
    w1, w2 = farm.worker("w1"), farm.worker("w2")
    farm.create("busy", 1, labels={}, close=False)
    w1.take()
    farm.create("j", 1, retry=retrying(5, 0.0))
    farm.drop(effects.SendTasks)
    w2.held = {("j", 0, 1, 1): b""}
    w2.fail(("j", 0, 1, 1))
    assert farm.states("j") == "Q"
    assert w2.take() == []
    w1.detach()
    assert w2.take() == [("j", 0, 1, 2)]


def test_what_is_avoided_does_not_hold_up_the_rest_of_the_job(farm: Harness) -> None:
    w1 = farm.worker("w1")
    farm.create("j", 3, retry=retrying(5, 0.0))
    (token,) = w1.take()
    farm.worker("w2", slots=1)
    farm.drop(effects.SendTasks)
    w1.fail(token)
    assert w1.take() == [("j", 2, 1, 1)]


# ---- frames ----------------------------------------------------------------------------------------------------------


def test_frames_are_bounded_in_tasks_and_bytes() -> None:
    farm = Harness(CoreConfig(frame_tasks_max=10, frame_bytes_max=10_000))
    farm.worker(slots=50)
    farm.create("small", 25)
    frames = farm.claim_all(effects.SendTasks)
    assert [sum(len(group) for _, group in frame.groups) for frame in frames] == [10, 10, 5]
    farm.create("big", [b"x" * 2_500] * 5)
    frames = farm.claim_all(effects.SendTasks)
    assert [sum(len(group) for _, group in frame.groups) for frame in frames] == [2, 2, 1]
    assert farm.state.workers["w1"].frames == 6
    farm.close()


def test_what_a_group_says_once_counts_towards_the_frame(farm: Harness) -> None:
    for number in range(100):
        farm.create(f"j{number}", 1, common_payload=b"x" * PAYLOAD_BYTES_MAX)
    farm.worker(slots=100)
    frames = farm.claim_all(effects.SendTasks)
    assert sum(len(frame.groups) for frame in frames) == 100
    assert max(len(frame.groups) for frame in frames) * PAYLOAD_BYTES_MAX < 2 << 20


@pytest.mark.slow
@pytest.mark.parametrize("shares", [5_000, 1])
def test_with_thousands_of_jobs_placement_does_not_look_at_each(shares: int) -> None:
    """Whether each is a client's, or all are parts of one job of the up-stream orchestrator."""
    farm = Harness()
    worker = farm.worker(slots=2, window=4)
    for number in range(5_000):  # without the check of all invariants after each
        if shares > 1:
            farm.feed(create_event(number, f"j{number}", 1))
        else:
            tasks = [events.ParentTask(2 * number, 1, b"")]  # no neighbours
            farm.feed(events.ParentsAssigned(job_id="top", epoch=1, template=TaskTemplate(type="t"), tasks=tasks))
    assert [len(lane.shares) for lane in farm.state.lanes.values()] == [shares]
    farm.place()
    farm.commit()
    farm.drop(effects.Reply)
    worker.take()
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    for _ in range(1_000):
        token = next(iter(worker.held))
        outcome = worker.outcome(token)
        farm.feed(events.Outcomes(session=worker.session, job_id=token[0], epoch=1, outcomes=[outcome]))
        sys.setprofile(count)
        step = farm.core.place(farm.now)
        sys.setprofile(None)
        del worker.held[token]
        for effect in step.effects:
            if isinstance(effect, effects.SendTasks):
                for number, group in effect.groups:
                    for task in group:
                        worker.held[farm.state.jobs[number].job_id, task.index, 1, task.attempt] = b""
    assert len(worker.held) == 4
    assert calls < 1_000 * 300, "a pass that looked at each job would make thousands of calls"


def test_an_outcome_of_every_kind_frees_the_slot(farm: Harness) -> None:
    worker = farm.worker(slots=1)
    farm.create("j", 5, retry=retrying(2, 100.0))
    for ending in (Ending.SUCCEEDED, Ending.FAILED, Ending.TIMED_OUT, Ending.RELEASED):
        (token,) = worker.take()
        kwargs = {} if ending is Ending.SUCCEEDED else {"failure": failure()}
        worker.report(token, ending, **kwargs)
    assert len(worker.take()) == 1


def test_a_task_of_two_cpus_takes_two_of_a_workers_slots(farm: Harness) -> None:
    worker = farm.worker(slots=4)
    farm.create("j", 5, resources={"cpu": 2})
    assert len(worker.take()) == 2
    farm.create("plain", 3)
    assert worker.take() == []
    worker.run([("j", 0, 1, 1)])
    assert [token[0] for token in worker.take()] in (["j"], ["plain", "plain"])
    assert farm.state.workers["w1"].taken == 4


def test_wide_tasks_go_to_workers_with_room_instead_of_waiting_behind_each_other(farm: Harness) -> None:
    w1, w2 = farm.worker("w1", slots=4), farm.worker("w2", slots=4)
    farm.create("j", 4, resources={"cpu": 2})
    assert (len(w1.take()), len(w2.take())) == (2, 2)


def test_a_window_beyond_the_slots_counts_wide_tasks_by_their_slots_too(farm: Harness) -> None:
    worker = farm.worker(slots=2, window=8)
    farm.create("j", 9, resources={"cpu": 2})
    assert len(worker.take()) == 4


def test_one_worker_that_fits_gets_a_wide_task_however_many_do_not(farm: Harness) -> None:
    fit = farm.worker("w1", slots=8, labels={"zone": "a"})
    farm.create("short", 1)
    fit.take()
    others = [farm.worker(f"w{i}", slots=4) for i in range(2, 6)]
    farm.create("more", 4)
    assert [len(other.take()) for other in others] == [1, 1, 1, 1], (
        "the fit worker is the emptiest now, and is served first"
    )
    farm.create("j", 1, resources={"cpu": 4}, labels={"zone": "a"})
    assert len(fit.take()) == 1
    assert all(other.take() == [] for other in others)


def test_a_task_larger_than_the_window_has_an_empty_worker_for_itself(farm: Harness) -> None:
    worker = farm.worker(slots=4, window=2)
    farm.create("j", 2, resources={"cpu": 3})
    assert len(worker.take()) == 1
    worker.run()
    assert len(worker.take()) == 1


def test_part_of_a_cpu_still_counts_one_of_the_window(farm: Harness) -> None:
    worker = farm.worker(slots=2, window=6)
    farm.create("j", 9, resources={"cpu": 0.25})
    assert len(worker.take()) == 6


def test_a_retry_waits_for_another_worker_for_half_a_minute_and_then_takes_any(farm: Harness) -> None:
    first, second = farm.worker("w1"), farm.worker("w2")
    second.credit(0)
    farm.create("j", 1, retry=retrying(2, 0.0))
    (token,) = first.take()
    second.credit(1)
    farm.create("long", 1)
    assert len(second.take()) == 1
    first.fail(token)
    farm.wait(29, beating=[first, second])
    assert first.take() == []
    farm.wait(2, beating=[first, second])
    assert first.take() == [("j", 0, 1, 2)]


def test_workers_of_other_types_cost_a_batch_no_look_at_what_they_offer(
    farm: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With tasks waiting, a thousand of them that come back at once must be welcomed before their leases end."""
    for number in range(20):
        farm.worker(f"other-{number}", types=("x",))
    farm.create("j", 5)
    looked_at: list[str] = []

    def noted(worker: state.Worker, lane: Lane) -> bool:
        looked_at.append(worker.worker_id)
        return fits(worker, lane)

    monkeypatch.setattr(placement, "fits", noted)
    worker = farm.worker("w", slots=1)
    assert len(worker.take()) > 0
    assert set(looked_at) == {"w"}
