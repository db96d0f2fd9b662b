"""Every reason why a task waits, runs, was repeated or ended is told in words, exactly these, with what would help."""

from __future__ import annotations

import pytest
from orchestrator_harness import Harness, Token, Worker, crowd_out, each, retrying, straggler, whole

from antfarm.errors import WrongState
from antfarm.model import (
    SECOND_NS,
    ConcurrencyLimit,
    Ending,
    Explanation,
    Failure,
    FailureClass,
    Finding,
    RetryPolicy,
    TaskResult,
    TaskState,
    Timeouts,
    WorkerId,
)
from services.orchestrator.core import effects, events, explain, story
from services.orchestrator.core.turn import CoreConfig
from services.orchestrator.core.waiting import REASONS, Scene, keeping, stopping
from services.orchestrator.runtime.views import results_of


def scene(farm: Harness) -> Scene:
    return Scene(state=farm.state, config=farm.config, now=farm.now, wall_ns=farm.wall_ns)


def told(findings: list[Finding]) -> str:
    return str(Explanation(findings=tuple(findings)))


def now(farm: Harness, job_id: str, index: int = 0) -> str:
    """What is said of a task that has not ended."""
    before = farm.state.seq
    text = told(explain.task(scene(farm), farm.job(job_id), index))
    assert farm.state.seq == before
    assert text == told(explain.task(scene(farm), farm.job(job_id), index)), "explaining changes nothing"
    return text


def about(farm: Harness, job_id: str) -> str:
    """What is said of a job."""
    return told(
        [
            explain.job_head(scene(farm), farm.job(job_id), farm.job(job_id).state),
            *explain.job(scene(farm), farm.job(job_id)),
        ]
    )


def raised(worker: Worker, token: Token, **fields: object) -> None:
    """An attempt ended by an exception, or as the fields of Failure say."""
    fields = {
        "failure_class": FailureClass.APP, "kind": "ValueError", "message": "it went wrong", "traceback": "line 1", **fields
    }  # fmt: skip
    worker.report(token, Ending.FAILED, failure=Failure(**fields))  # type: ignore[arg-type]


def outcome(farm: Harness, job_id: str, index: int = 0) -> TaskResult:
    job = farm.job(job_id)
    ((_, record),) = farm.journal.read([job.outcome_seqs[index]])
    (result,) = results_of(record, job, frozenset([index]))
    return result


def end(farm: Harness, job_id: str, index: int = 0) -> str:
    """What is said of a task that has ended."""
    return told([story.end(farm.job(job_id), outcome(farm, job_id, index), farm.config)])


def past(farm: Harness, job_id: str, index: int = 0, last: int = 0) -> str:
    """What is said of its earlier attempts."""
    job = farm.job(job_id)
    history = [
        record
        for _, record in farm.journal.history(job.number, job.created_seq, farm.durable_seq)
        if getattr(record, "index", None) == index
    ]
    return told(story.attempts(job, history, last, farm.config))


# ---- QUEUED ----------------------------------------------------------------------------------------------------------


def test_no_worker_is_attached(farm: Harness) -> None:
    farm.create("j", 2)
    assert now(farm, "j", 1) == (
        "No worker is attached.\n    help: Start one: python -m services.worker --connect HOST:PORT --app MODULE_OR_FILE"
    )


def test_workers_that_were_lost_are_named(farm: Harness) -> None:
    for name in ("w4", "w2", "w1", "w3"):
        farm.worker(name, types=("other",))
    farm.wait(13)
    farm.drop()
    farm.create("j")
    assert "\n    why:  Lost: w1, w2, w3 and 1 more.\n" in now(farm, "j")


def test_a_paused_job_says_how_to_resume_it(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", 2)
    worker.take()
    farm.pause("j")
    worker.run()
    assert now(farm, "j", 1) == (
        "Job j is paused.\n    why:  No task of a paused job is given out; those that run go on.\n    help: antfarm job resume j"
    )


def test_the_nearest_workers_are_named_with_what_each_lacks(farm: Harness) -> None:
    farm.worker("far", types=("u",))
    farm.worker("near", labels={"zone": "b\x1b[31m\n"}, resources={"gpu": 2.0})
    farm.worker("middle")
    farm.worker("wide", slots=8, labels={"zone": "a"}, resources={"gpu": 0.5})
    farm.create("j", labels={"zone": "a"}, resources={"gpu": 1.0})
    assert now(farm, "j") == (
        "None of the 4 workers can run it.\n"
        "    why:  near has label zone=b\\x1b[31m, and a is asked for. wide has resource gpu=0.5, and 1 is asked for."
        " middle has no label zone, and a is asked for and has no resource gpu, and 1 is asked for.\n"
        "    help: Start a worker with --label zone=a, or submit the job with other needs."
    )


def test_the_only_worker_does_not_have_the_type_or_the_slots(farm: Harness) -> None:
    farm.worker("w1", types=("u",))
    farm.create("j")
    farm.create("k", type="u", resources={"cpu": 4.0})
    assert now(farm, "j") == (
        "The only worker, w1, cannot run it.\n"
        "    why:  w1 does not offer task type t.\n"
        "    help: Start a worker with --app MODULE_OR_FILE that has the task type, or submit the job with other needs."
    )
    assert now(farm, "k") == (
        "The only worker, w1, cannot run it.\n"
        "    why:  w1 has resource cpu=1, and 4 is asked for.\n"
        "    help: Start a worker with --slots 4, or submit the job with other needs."
    )


def test_workers_that_take_no_work_are_told_with_their_reason(farm: Harness) -> None:
    drained, broken, silent = farm.worker("w1"), farm.worker("w2"), farm.worker("w3")
    farm.ask(lambda n: events.DrainWorker(request=n, worker_id=WorkerId("w1"), drain=True, limit_ns=SECOND_NS))
    broken.detach()
    farm.wait(7, beating=[drained])
    farm.drop()
    farm.create("j")
    assert silent.held == {}
    assert now(farm, "j") == (
        "No worker that can run it takes work now.\n"
        "    why:  w1 is being drained. w2 has lost its connection, and is given up in 4.9s unless it comes back."
        " w3 has been silent for 7s, and is given up in 4.9s unless it is heard.\n"
        "    help: antfarm worker undrain w1, or start another worker."
    )


def test_full_workers_are_told_with_who_is_ahead(farm: Harness) -> None:
    worker = farm.worker(slots=2)
    farm.create("a", 2)
    farm.create("j", 3)
    farm.create("rival", 4)
    farm.create("paused", 4)
    farm.pause("paused")
    assert now(farm, "j", 2) == (
        "All places of the workers that can run it are taken: 1 worker with 2 places.\n"
        "    why:  They have 2 tasks of other jobs. 2 queued tasks of its job are before it. 4 queued tasks of other jobs share the places.\n"
        "    help: Wait, start more workers, or submit with a higher priority."
    )
    assert "why:  They have 2 tasks of other jobs. 4 queued tasks of other jobs share" in now(farm, "j", 0)
    assert "1 queued task of its job is before it." in now(farm, "j", 1)
    worker.take()


def test_nothing_is_said_to_be_before_a_task_whose_inputs_came_early(farm: Harness) -> None:
    above, worker = farm.worker("u1", slots=3, types=("u",)), farm.worker()
    farm.create("other")
    worker.take()
    farm.create("a", 3, type="u")
    farm.create("b", 3, dependencies=(each("a"),))
    _, second, third = above.take()
    above.report(third)
    above.report(second)
    assert farm.states("b") == "WQQ"
    assert "why:  They have 1 task of other jobs.\n" in now(farm, "b", 2)
    worker.run()
    assert worker.take() == [("b", 2, 1, 1)]


def test_nothing_is_said_to_be_before_a_task_that_was_out_already(farm: Harness) -> None:
    worker = farm.worker(slots=3)
    farm.create("j", 5, retry=retrying(2, 0))
    first, second, third = worker.take()
    farm.pause("j")
    worker.fail(third)
    worker.release(second)
    worker.release(first)
    farm.create("other", 3)
    others = worker.take()
    farm.pause("j", paused=False)
    assert farm.states("j") == "QQQQQ"
    assert ["before it" in now(farm, "j", index) for index in range(5)] == [False, False, False, True, True]
    for token in others:
        worker.report(token)
    assert [token[1] for token in worker.take()] == [2, 1, 0]


def test_a_task_of_several_cpus_waits_for_as_many_places(farm: Harness) -> None:
    worker = farm.worker(slots=2)
    farm.create("a")
    farm.create("j", resources={"cpu": 2.0})
    assert now(farm, "j").startswith(
        "No worker that can run it has 2 places free: 1 worker with 2 places.\n    why:  They have 1 task of other jobs.\n"
    ), "one place is free, and it needs two"
    worker.take()


def test_a_worker_that_is_kept_for_what_needs_much_at_once(farm: Harness) -> None:
    worker = farm.worker(slots=2)
    farm.create("narrow", 1_000)
    farm.create("wide", 1, resources={"cpu": 2.0}, type="t")
    crowd_out(farm, worker)
    kept = keeping(farm.state, farm.state.workers["w1"])
    assert kept == "keeps its free places for a task of type t, which needs more than ends at once"
    assert "w1 is kept for it: it begins there when enough has ended." in now(farm, "wide")
    assert "w1 has places free, which are kept for a task of type t." in now(farm, "narrow", 999)
    worker.run()
    assert worker.take() == [("wide", 0, 1, 1)]
    farm.tick()
    assert keeping(farm.state, farm.state.workers["w1"]) == ""


def test_a_concurrency_limit_that_is_reached(farm: Harness) -> None:
    worker = farm.worker(slots=4)
    farm.create("j", 3, limit=ConcurrencyLimit(name="site", max_active=1))
    assert now(farm, "j", 2) == (
        "The concurrency limit site is reached.\n"
        "    why:  1 may run at a time under that name, over all jobs, and 1 do.\n"
        "    help: Wait, or submit with a higher max_active; the smallest of all jobs that name the limit holds."
    )
    worker.take()


def test_resources_that_others_have(farm: Harness) -> None:
    worker = farm.worker(slots=4, resources={"gpu": 1.0})
    farm.create("j", 2, resources={"gpu": 1.0})
    assert now(farm, "j", 1) == (
        "The resources that it needs are taken by other tasks.\n"
        "    why:  It needs gpu=1; w1 can give that when others end.\n"
        "    help: Wait, ask for less, or start more workers."
    )
    worker.take()


def test_a_retry_that_waits_for_another_worker(farm: Harness) -> None:
    worker, other = farm.worker("w1"), farm.worker("w2")
    farm.create("j", 2, retry=retrying(2, 0))
    (token,) = worker.take()
    other.take()
    worker.fail(token)
    assert now(farm, "j", token[1]) == (
        "It waits for another worker than w1.\n"
        "    why:  It failed there, and a retry goes elsewhere while another worker can run it.\n"
        "    help: Wait for w2, or start more workers."
    )


def test_after_a_restart_the_workers_of_before_are_waited_for_by_tasks_of_before(farm: Harness) -> None:
    farm.worker("w1", types=("u",))
    farm.worker("w2", types=("t",), slots=0, window=0)
    farm.create("j")
    farm.restart()
    farm.worker("w2", slots=1)
    farm.create("later", 2)
    assert now(farm, "j").startswith(
        "The orchestrator was started again and waits for 1 worker of before: w1.\n"
        "    why:  One of them may still run the task. So that nothing is repeated, it is given out when all are back, or in 12s.\n"
        "    help: Start these workers again if they are down; otherwise wait."
    )
    assert "started again" not in now(farm, "later", 1)
    farm.drop()


def test_a_paused_type(farm: Harness) -> None:
    workers = [farm.worker(name, types=("t",)) for name in ("w1", "w2", "w3")]
    farm.create("j", 12, retry=retrying(9))
    for _ in range(3):
        for worker in workers:
            worker.take()
            worker.fail(next(iter(worker.held)), FailureClass.INFRA)
    farm.drop()
    for worker in workers:
        worker.run(worker.take() + list(worker.held))
    index = farm.states("j").index("Q")
    assert now(farm, "j", index).splitlines()[:3] == [
        "Tasks of type t are paused: what fails is the infrastructure, not one worker.",
        "    why:  the infrastructure failed its tasks on w1, the last one with: ValueError it went wrong; one task is tried in 30s.",
        "    help: Mend what the last failure names; the pause ends with the first success, or by antfarm job resume j.",
    ]


def test_a_suspect_has_its_worker_for_itself_and_others_are_told_so(farm: Harness) -> None:
    worker = farm.worker("w1")
    farm.create("j", 1)
    for _ in range(2):
        worker.take()
        worker.die()
        farm.wait(4, beating=[worker])
    farm.drop()
    assert farm.states("j") == "A"
    farm.create("k", 1)
    assert now(farm, "k") == (
        "No worker that can run it takes work now.\n"
        "    why:  w1 runs j/0, which is suspected of bringing workers down, and takes nothing beside it.\n"
        "    help: Wait, or start another worker."
    )


def test_a_suspect_that_waits_is_told_for_which_worker(farm: Harness) -> None:
    w1, w2 = farm.worker("w1"), farm.worker("w2")
    farm.create("k", 1)
    holder, other = (w1, w2) if w1.take() else (w2, w1)
    farm.create("j", 1)
    for _ in range(2):
        while not other.take():  # for a while it waits for the one where it has not been
            farm.wait(1, beating=[w1, w2])
        other.die()
    farm.wait(4, beating=[w1, w2])
    farm.drop()
    name = holder.worker_id
    assert now(farm, "j") == (
        f"It was twice on a worker or process that died; it is tried alone, on {name} as soon as nothing else runs there.\n"
        "    why:  It may have brought them down: if its worker dies again while nothing else runs there, that is a crash of the task."
        " 1 task there ends first.\n"
        "    help: Wait."
    )
    farm.create("l", 2)
    assert f"{name} becomes empty for j/0, which is suspected of bringing workers down" in now(farm, "l", 1)
    farm.drop()


def test_a_task_that_crashes_its_own_process_is_told_so_and_is_no_obstacle_to_itself(farm: Harness) -> None:
    """No worker died, and the worker that becomes empty for it does so for its sake."""
    worker = farm.worker("w1", slots=2)
    farm.create("px", retry=retrying(1, 0))
    for count in (1, 2):
        farm.wait(8, beating=[worker])
        (token,) = worker.take()
        if count == 2:
            farm.create("k")
            worker.take()
        worker.fail(token, FailureClass.CRASH)
    assert now(farm, "px").startswith("It failed and is tried again in ")
    assert now(farm, "px").splitlines()[0].endswith(", alone on its worker.")
    assert now(farm, "px").splitlines()[1:] == ["    why:  ValueError: it went wrong (crash 2 of 3)", "    help: Wait."]
    farm.wait(8, beating=[worker])
    told_of = (
        "    why:  Crash 2 of 3. Alone it harms no other task, and shows whose fault it is.{}\n"
        "    help: Wait; look at its memory and native code (antfarm task logs px/0)."
    )
    assert now(farm, "px") == (
        "It crashed twice; it is tried alone, on w1 as soon as nothing else runs there.\n"
        + told_of.format(" 1 task there ends first.")
    )
    farm.create("l")
    assert "w1 becomes empty for px/0, which crashed twice, and takes nothing beside it." in now(farm, "l")
    farm.create("py", type="t")
    worker.run([token for token in worker.held if token[0] == "k"])
    worker.take()
    assert now(farm, "px").startswith("It crashed twice; it is tried alone, on w1 now.\n" + told_of.format(""))


def test_a_suspect_that_has_no_worker_yet_is_told_who_comes_first(farm: Harness) -> None:
    worker = farm.worker("w1", slots=2)
    farm.create("a", retry=retrying(1, 0))
    farm.create("b", retry=retrying(1, 0))
    for _ in range(2):
        farm.wait(8, beating=[worker])
        for token in worker.take():
            worker.fail(token, FailureClass.CRASH)
    farm.wait(8, beating=[worker])
    ((job_id, *_),) = worker.take()
    other = "b" if job_id == "a" else "a"
    assert now(farm, other).startswith(
        "It crashed twice; it is tried alone, when a worker is kept for it.\n"
        "    why:  Crash 2 of 3. Alone it harms no other task, and shows whose fault it is. w1 is kept for others before it.\n"
    )
    farm.drop()


def test_full_workers_are_told_with_those_that_take_no_work(farm: Harness) -> None:
    worker, drained = farm.worker("w1", slots=1), farm.worker("w2", slots=1)
    farm.ask(lambda n: events.DrainWorker(request=n, worker_id=WorkerId("w2"), drain=True, limit_ns=SECOND_NS))
    farm.drop()
    farm.create("j", 2)
    worker.take()
    assert now(farm, "j", 1) == (
        "All places of the workers that can run it are taken: 1 worker with 1 place.\n"
        "    why:  They have 1 task of its job. w2 is being drained.\n"
        "    help: Wait, start more workers, or submit with a higher priority."
    )
    assert drained.held == {}


@pytest.mark.parametrize(
    ("at_most_once", "why"),
    [
        (False, "What has not ended by then is stopped and handed back, which counts on nothing."),
        (True, "What has not ended by then is stopped and given up: it runs at most once."),
    ],
)
def test_a_task_on_a_worker_that_is_drained_is_told_so(farm: Harness, at_most_once: bool, why: str) -> None:
    worker = farm.worker("w1")
    farm.create("j", at_most_once=at_most_once)
    worker.take()
    farm.ask(lambda n: events.DrainWorker(request=n, worker_id=WorkerId("w1"), drain=True, limit_ns=30 * SECOND_NS))
    farm.drop()
    assert now(farm, "j").endswith(
        "w1 is being drained: what runs there may go on for 30s from then on.\n"
        f"    why:  {why}\n"
        "    help: antfarm worker undrain w1"
    )


def test_a_worker_that_leaves_is_told_as_that_and_not_as_full(farm: Harness) -> None:
    """It grants no places: to wait for them would be in vain."""
    worker = farm.worker("w1")
    farm.create("j", 2)
    worker.take()
    worker.credit(0)
    running, queued = farm.states("j").index("A"), farm.states("j").index("Q")
    assert now(farm, "j", queued) == (
        "No worker that can run it takes work now.\n"
        "    why:  w1 grants no places: it is leaving, cannot load its tasks, or waits until its reports are taken (its log says which).\n"
        "    help: Start w1 again when it has left, or start another worker."
    )
    assert now(farm, "j", running).endswith(
        "\nw1 grants no places: it is leaving, cannot load its tasks, or waits until its reports are taken (its log says which).\n"
        "    why:  When it leaves, what has not ended in its time for that is stopped and handed back, which counts on nothing."
    )
    full = farm.worker("w2")
    full.take()
    farm.create("k")
    assert now(farm, "k").startswith(
        "All places of the workers that can run it are taken: 1 worker with 1 place.\n"
        "    why:  They have 1 task of other jobs. w1 grants no places: it is leaving, cannot load its tasks, or waits until its reports are taken (its log says which).\n"
    )
    full.goodbye()
    farm.ask(lambda n: events.DrainWorker(request=n, worker_id=WorkerId("w1"), drain=True, limit_ns=SECOND_NS))
    farm.drop()
    assert now(farm, "k") == (
        "No worker that can run it takes work now.\n"
        "    why:  w1 was drained, and is leaving.\n"
        "    help: antfarm worker undrain w1, or start another worker."
    )
    worker.goodbye()
    assert "No worker is attached.\n    why:  Left: w1, w2.\n" in now(farm, "k")
    farm.worker("below", orchestrator=True, window=0)
    assert "    why:  below asks for no work now.\n    help: Wait, or start another worker." in now(farm, "k")


def test_a_task_that_nothing_keeps(farm: Harness) -> None:
    farm.create("j")
    farm.feed(farm.worker("w1", slots=0, window=0).hello())
    farm.state.workers["w1"].window = 1
    assert now(farm, "j") == "Nothing keeps it: it is about to be given out."
    farm.drop()


# ---- WAITING ---------------------------------------------------------------------------------------------------------


def test_a_back_off_with_its_budget_and_its_time(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", retry=RetryPolicy(max_attempts=3, backoff_initial_ns=8 * SECOND_NS))
    (token,) = worker.take()
    raised(worker, token)
    left = (farm.job("j").notes[0].wait_until_ns or 0) - farm.now
    assert now(farm, "j") == (
        f"It failed and is tried again in {left // (SECOND_NS // 10) / 10:g}s.\n"
        "    why:  ValueError: it went wrong (1 of 3 attempts used)\n"
        "    help: Wait; `antfarm task show j/0` has the traceback."
    )


def test_dependencies_are_followed_to_what_everything_waits_for(farm: Harness) -> None:
    farm.create("a", 2)
    farm.create("b", 2, dependencies=(each("a"),))
    farm.create("c", 2, dependencies=(each("b"),))
    assert now(farm, "c", 1) == (
        "It waits for task b/1, which is WAITING.\n"
        "    help: antfarm task explain b/1\n"
        "At the end of what it waits for: task a/1 is QUEUED.\n"
        "No worker is attached.\n"
        "    help: Start one: python -m services.worker --connect HOST:PORT --app MODULE_OR_FILE"
    )


def test_a_whole_job_that_is_waited_for(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("a", 2, close=False)
    farm.create("b", 1, dependencies=(whole("a"),))
    worker.take()
    worker.run()
    worker.take()
    worker.run()
    assert now(farm, "b") == (
        "It waits for the whole of job a.\n"
        "    why:  2 of its 2 tasks have ended, and it is still open for more.\n"
        "    help: antfarm job explain a"
    )


def test_a_task_that_does_not_exist_yet(farm: Harness) -> None:
    farm.create("a", 1, close=False)
    farm.create("b", 2, dependencies=(each("a"),))
    assert now(farm, "b", 1) == (
        "It waits for task a/1, which does not exist yet.\n"
        "    why:  Job a is open and has 1 task.\n"
        "    help: Append the missing tasks, or close that job: what waits for more than it has then fails."
    )


def test_its_timeouts_are_told(farm: Harness) -> None:
    farm.create("j", timeouts=Timeouts(queue_ns=20 * SECOND_NS, total_ns=90 * SECOND_NS))
    farm.tick(2)
    assert now(farm, "j").endswith(
        "It expires in 18s unless it begins before (queue timeout).\n"
        "It expires in 1m28s unless it ends before (total timeout)."
    )


def test_a_wall_clock_that_is_set_changes_nothing_of_what_is_left_of_a_timeout(farm: Harness) -> None:
    farm.create("j", timeouts=Timeouts(queue_ns=20 * SECOND_NS, total_ns=90 * SECOND_NS))
    farm.tick(2)
    farm.wall_offset_ns += 3600 * SECOND_NS
    farm.tick(1)
    assert farm.states("j") == "Q"
    assert now(farm, "j").endswith(
        "It expires in 17s unless it begins before (queue timeout).\n"
        "It expires in 1m27s unless it ends before (total timeout)."
    )


# ---- ACTIVE ----------------------------------------------------------------------------------------------------------


def test_an_attempt_that_has_not_begun_or_runs(farm: Harness) -> None:
    worker = farm.worker(window=2)
    farm.create("j", 2)
    first, _ = worker.take()
    farm.tick(1)
    assert now(farm, "j", 1) == (
        "Attempt 1 was given to w1 1s ago, and nothing was heard of its start.\n"
        "    why:  w1 holds 2 tasks and runs 1 at a time; short ones are told of when they end."
    )
    worker.running(first)
    assert now(farm, "j") == (
        "Attempt 1 runs on w1, given to it 1s ago.\n"
        "    why:  It has told of no progress.\n"
        "    help: If it hangs: antfarm task logs -f j/0, or antfarm task cancel j/0. It has no run timeout, so nothing else ends it."
    )
    worker.running(first, progress=0.25, progress_text="half\nway")
    assert "\n    why:  25% done: half way\n" in now(farm, "j")


def test_a_backup_is_told_beside_the_first_attempt(farm: Harness) -> None:
    first, _ = straggler(farm)
    other = farm.worker("w2", host="b")
    farm.wait(35, beating=[first, other])
    assert len(other.take()) == 1
    assert now(farm, "j", 3).splitlines()[-2:] == [
        "Attempt 2 is its backup, given to w2 4.9s ago.",
        "    why:  The first attempt takes far longer than others of the job did; the first success counts, and the other one is stopped.",
    ]


def test_a_run_timeout_is_told(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", timeouts=Timeouts(run_ns=60 * SECOND_NS))
    (token,) = worker.take()
    worker.running(token)
    assert now(farm, "j").endswith("\n    help: Its worker ends it when it runs for more than 1m.")


@pytest.mark.parametrize(
    ("timeouts", "told"),
    [
        ({"run_ns": SECOND_NS // 20}, "Its worker ends it when it runs for more than 0.05s."),
        ({"progress_ns": 60 * SECOND_NS}, "It has no run timeout, but its worker ends it after 1m without progress."),
        ({"total_ns": 600 * SECOND_NS}, "It has no run timeout, but it expires 10m after its submission."),
        (
            {"progress_ns": 60 * SECOND_NS, "total_ns": 600 * SECOND_NS},
            "It has no run timeout, but its worker ends it after 1m without progress and it expires 10m after its submission.",
        ),
    ],
)
def test_what_ends_a_task_that_runs_is_named_exactly(farm: Harness, timeouts: dict[str, int], told: str) -> None:
    worker = farm.worker()
    farm.create("j", timeouts=Timeouts(**timeouts))
    (token,) = worker.take()
    worker.running(token)
    assert now(farm, "j").split("\n")[2].endswith(told)


def test_a_worker_that_falls_silent_with_the_task(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j")
    worker.take()
    farm.wait(8)
    assert now(farm, "j").endswith(
        "\nw1 has been silent for 8s, and is given up in 3.9s unless it is heard.\n"
        "    why:  Then the task is queued again, and a success that comes late still counts.\n"
        "    help: Look at that worker and its network."
    )


def test_an_attempt_that_a_worker_took_up_again(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j")
    worker.take()
    farm.restart()
    worker.attach()
    assert now(farm, "j") == (
        "w1 came back with attempt 1 0s ago and goes on with it.\n"
        "    why:  It was given out before the orchestrator was started again: nothing is repeated."
    )


def test_an_attempt_that_a_worker_took_up_again_after_a_silence(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", at_most_once=True)
    worker.take()
    farm.wait(13)
    farm.drop()
    worker.incarnation += b"+"
    worker.attach()
    assert now(farm, "j") == (
        "w1 came back with attempt 1 0s ago and goes on with it.\n"
        "    why:  It was given out before the worker fell silent: nothing is repeated."
    )


@pytest.mark.parametrize("at_most_once", [False, True])
def test_what_runs_with_a_steady_worker_is_not_told_as_taken_up_again(farm: Harness, at_most_once: bool) -> None:
    """Neither its record of issue, nor an epoch that began because a purged job's id came again, makes it older."""
    worker = farm.worker(slots=2)
    farm.create("again", type="u")
    farm.cancel("again")
    farm.create("j", at_most_once=at_most_once)
    (token,) = worker.take()
    worker.running(token)
    farm.purge("again")
    farm.create("again", type="u")
    assert farm.state.epoch > token[2]
    assert now(farm, "j").startswith("Attempt 1 runs on w1, given to it 0s ago.\n")


def test_a_task_that_an_orchestrator_below_has(farm: Harness) -> None:
    worker = farm.worker("orchestrator-7", orchestrator=True)
    farm.create("j")
    worker.take()
    assert now(farm, "j") == (
        "Attempt 1 is with orchestrator-7, an orchestrator below, since 0s.\n"
        "    why:  Nothing was heard of its start there.\n"
        "    help: Ask there: antfarm job list -c ITS_ADDRESS shows the jobs up/j/0/..."
    )
    worker.running(next(iter(worker.held)))
    assert "    why:  It has begun there.\n" in now(farm, "j")


def test_the_holder_of_an_at_most_once_task_is_waited_for(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", at_most_once=True)
    worker.take()
    farm.wait(13)
    farm.drop()
    assert now(farm, "j") == (
        "w1 was given the task and has fallen silent; it is given up in 4m59s.\n"
        "    why:  It runs at most once, so nobody else gets it; a success that comes until then counts.\n"
        "    help: Start w1 again with its state directory; leave out at_most_once if the task may be repeated."
    )
    assert past(farm, "j") == (
        "Attempt 1 was issued to w1, on record before it was sent.\n"
        "    why:  It runs at most once: no other worker gets it unless this one confirms that it never started."
    )


def test_the_holder_of_an_at_most_once_task_that_is_back_without_it(farm: Harness) -> None:
    """No help that was done already: it was started again, and the task was not there."""
    worker = farm.worker()
    farm.create("j", at_most_once=True)
    worker.take()
    worker.die()
    rest = (
        " without it; whether it ran is not known; it is given up in 5m.\n"
        "    why:  It runs at most once, so nobody else gets it.\n"
        "    help: Look at what it has done already; antfarm task cancel j/0 ends it at once."
        " Leave out at_most_once if the task may be repeated."
    )
    assert now(farm, "j") == "w1 is back" + rest
    worker.goodbye()
    assert now(farm, "j") == "w1 has left" + rest


def test_an_at_most_once_attempt_that_was_handed_back(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", at_most_once=True)
    (token,) = worker.take()
    worker.release(token)
    worker.take()
    assert "Its worker confirmed that the attempt never started, so it was given out again." in past(farm, "j")


# ---- what was ----------------------------------------------------------------------------------------------------------


def test_failed_attempts_are_told_from_the_record_after_the_end(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", retry=retrying(2, 0))
    (token,) = worker.take()
    worker.fail(token)
    (token,) = worker.take()
    raised(worker, token)
    assert farm.states("j") == "F"
    assert past(farm, "j") == (
        "Attempt 1 failed on w1: ValueError: it went wrong\n"
        "    why:  Counted as failure 1 of 2 attempts; queued again at once."
    )
    assert end(farm, "j") == (
        "It failed: ValueError: it went wrong (attempt 2 on w1, after 0s)\n"
        "    why:  All 2 attempts are used.\n"
        "    help: `antfarm task show j/0` has the traceback; mend the cause, then `antfarm job retry j`."
    )


def test_losses_and_crashes_count_apart(farm: Harness) -> None:
    worker = farm.worker(slots=2)
    farm.create("j", 2)
    for token in worker.take():
        worker.running(token)
    farm.wait(13)
    farm.drop()
    assert past(farm, "j") == (
        "Attempt 1 was lost with w1: node lost: worker w1 was silent for 12.0 s\n"
        "    why:  Counted as number 1 of the 5 losses and infrastructure failures that are tolerated; queued again at once; a success that came late would have counted."
    )
    farm.create("k")
    second = farm.worker("w2", slots=3)
    token = next(token for token in second.take() if token[0] == "k")
    second.fail(token, FailureClass.CRASH)
    assert past(farm, "k") == (
        "Attempt 1 failed on w2: ValueError: it went wrong\n    why:  Counted as crash 1 of 3; queued again at once."
    )
    second.take()


def test_attempts_that_are_not_recorded_show_as_a_gap(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j")
    (token,) = worker.take()
    worker.release(token)
    worker.take()
    worker.run()
    assert past(farm, "j", last=2) == (
        "1 attempt besides (number 1) ended without a record.\n"
        "    why:  They were handed back (drain, release), never arrived, or gave way to another attempt: that counts on nothing."
    )
    assert end(farm, "j") == "It succeeded: attempt 2 on w1, which ran for 0s."


def test_many_attempts_are_told_by_the_last_ones(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", retry=retrying(30, 0))
    for _ in range(25):
        (token,) = worker.take()
        worker.fail(token)
    worker.take()
    text = past(farm, "j")
    assert text.startswith("5 earlier attempts not shown.\nAttempt 6 failed on w1")
    assert text.count("Counted as failure") == story.SHOWN_MAX


def test_each_end_says_what_would_help(farm: Harness) -> None:
    worker = farm.worker(slots=20)

    def ends(job_id: str, failure_class: FailureClass, times: int = 1, **spec: object) -> str:
        farm.create(job_id, **spec)
        for _ in range(times):
            farm.wait(60, beating=[worker])
            (token,) = worker.take()
            worker.fail(token, failure_class)
        return end(farm, job_id).split("\n", 1)[1]

    assert ends("permanent", FailureClass.PERMANENT) == (
        "    why:  This kind of failure is permanent: no retry can help.\n"
        "    help: Mend the task or its input, then `antfarm job retry permanent`."
    )
    assert ends("app", FailureClass.APP) == (
        "    why:  Its type has one attempt, the default: an exception or a timeout ends the task.\n"
        "    help: If another try can help, `antfarm job retry app`, or give the type retries= and submit it anew."
    )
    assert ends("crash", FailureClass.CRASH, 3) == (
        "    why:  What runs it died 3 times with it, the last time with nothing beside it.\n"
        "    help: Look at its memory and native code (`antfarm task logs crash/0`), then `antfarm job retry crash`."
    )
    assert ends("infra", FailureClass.INFRA, 6) == (
        "    why:  More than 5 of its attempts were lost with a worker, or failed for the infrastructure (Storage, say).\n"
        "    help: Look at the workers and at Storage (`antfarm worker list --all`), then `antfarm job retry infra`."
    )
    assert ends("once", FailureClass.APP, at_most_once=True) == (
        "    why:  It runs at most once, so it is not tried again.\n"
        "    help: Look at what it has done already, then `antfarm job retry once`."
    )


def test_crashes_beyond_three_are_counted_truly_until_the_proof(farm: Harness) -> None:
    """Three crashes are not the end while another worker could run it; nothing may say that they are."""
    first, second = farm.worker("w1"), farm.worker("w2")
    second.credit(0)
    farm.create("j")

    def crash(worker: Worker) -> None:
        for _ in range(400):
            taken = worker.take()
            if taken:
                worker.fail(taken[0], FailureClass.CRASH)
                return
            farm.wait(1, beating=[first, second])
        raise AssertionError("nothing was given out")

    for _ in range(2):
        crash(first)
    farm.wait(20, beating=[first, second])
    (token,) = first.take()
    second.credit(1)
    first.fail(token, FailureClass.CRASH)
    assert farm.states("j") == "W"
    assert "(crash 3, not the last one: it did not run alone, or another worker could run it)" in now(farm, "j")
    crash(second)
    assert farm.states("j") == "D"
    assert "\n    why:  What runs it died 4 times with it, the last time with nothing beside it.\n" in end(farm, "j")


def test_cancelled_and_expired_tasks(farm: Harness) -> None:
    farm.create("j")
    farm.cancel("j", "enough\n of it\x07")
    assert end(farm, "j") == (
        "It was cancelled: enough of it\\x07\n    help: `antfarm job retry j` runs what was cancelled, as a new job."
    )
    farm.create("k", timeouts=Timeouts(queue_ns=SECOND_NS))
    farm.wait(2)
    assert end(farm, "k") == (
        "It expired: its time in the queue is over\n"
        "    why:  Its queue timeout is 1s, and it waited for a worker all that time.\n"
        "    help: Start more workers, then `antfarm job retry k`; or give it a longer queue=, and submit it anew."
    )


@pytest.mark.parametrize(
    ("timeouts", "message", "cure"),
    [
        ({"run_ns": 2}, "ran longer than its limit of 2 s", "If it needs longer than 2s, submit it anew with a longer run="),
        ({"run_ns": 2}, "the run timeout passed and its worker did not end it", "If it needs longer than 2s, submit it anew with a longer run="),
        ({"progress_ns": 0.05, "run_ns": 9}, "showed no progress for 0.05 s", "Call ctx.progress at least every 0.05s, or submit it anew with a longer progress="),
        ({"progress_ns": 1}, "without words", "Call ctx.progress at least every 1s, or submit it anew with a longer progress="),
        ({"progress_ns": 1, "run_ns": 9}, "ran longer than its limit of 9 s", "If it needs longer than 9s, submit it anew with a longer run="),
    ],
)  # fmt: skip
def test_a_timeout_is_told_with_its_cure_and_no_traceback_is_promised(
    farm: Harness, timeouts: dict[str, float], message: str, cure: str
) -> None:
    worker = farm.worker()
    limits = Timeouts(**{name: int(length * SECOND_NS) for name, length in timeouts.items()})
    farm.create("j", timeouts=limits, retry=retrying(2))
    for log_tail in ("", "last words"):
        (token,) = worker.take()
        raised(worker, token, kind="timeout", message=message, traceback="", log_tail=log_tail)
        if not log_tail:
            assert now(farm, "j").splitlines()[2] == f"    help: Wait. {cure}."
            farm.wait(2, beating=[worker])
    assert end(farm, "j").splitlines()[1:] == [
        "    why:  All 2 attempts are used.",
        f"    help: `antfarm task logs j/0` has what it wrote last. {cure}.",
    ]
    farm.create("once", timeouts=limits, at_most_once=True)
    (token,) = worker.take()
    raised(worker, token, kind="timeout", message=message, traceback="")
    assert end(farm, "once").endswith(
        f"    help: Look at what it has done already, then `antfarm job retry once`. {cure}."
    )


def test_an_exception_that_is_called_timeout_has_its_traceback(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", timeouts=Timeouts(run_ns=SECOND_NS))
    (token,) = worker.take()
    raised(worker, token, kind="timeout")
    assert end(farm, "j").endswith(
        "    help: `antfarm task show j/0` has the traceback."
        " If another try can help, `antfarm job retry j`, or give the type retries= and submit it anew."
    )


def test_a_total_timeout_tells_of_the_attempt_that_ran(farm: Harness) -> None:
    """More workers help what waited alone."""
    worker = farm.worker(slots=2)
    farm.create("j", 3, timeouts=Timeouts(total_ns=4 * SECOND_NS))
    first, second = worker.take()
    worker.running(first, 0.0)
    farm.wait(4, beating=[worker])
    told_of = {
        first[1]: "attempt 1 was running on w1 for 4s when it was stopped",
        second[1]: "attempt 1 had been with w1 for 4s when it was stopped",
    }
    for index, words in told_of.items():
        assert end(farm, "j", index) == (
            f"It expired: its total deadline has passed; {words}\n"
            "    why:  Its total timeout is 4s, from its submission on, all attempts and waiting included.\n"
            "    help: Submit it anew with a longer total=."
        )
    (waited,) = {0, 1, 2} - told_of.keys()
    assert end(farm, "j", waited).startswith("It expired: its total deadline has passed\n")
    assert "Whether it waited or ran at last is not on record." in end(farm, "j", waited)
    assert told(stopping(scene(farm), farm.job("j"), first[1])) == (
        "Attempt 1 on w1 was told to stop, and may run still.\n    why:  Its end does not count any more."
    )
    farm.drop()
    worker.held.clear()
    worker.beat()
    assert stopping(scene(farm), farm.job("j"), first[1]) == []


def test_a_worker_that_stops_an_attempt_for_its_total_time_tells_the_same(farm: Harness) -> None:
    """The orchestrator may hear of it before its own clock says so."""
    worker = farm.worker()
    farm.create("j", timeouts=Timeouts(total_ns=4 * SECOND_NS))
    (token,) = worker.take()
    worker.running(token, 0.0)
    farm.wait(3, beating=[worker])
    raised(worker, token, failure_class=FailureClass.EXPIRED, kind="expired", message="its time is over", traceback="")
    assert end(farm, "j").startswith(
        "It expired: its time is over; attempt 1 was running on w1 for 3s when it was stopped\n"
    )


def test_a_job_that_takes_inputs_is_to_be_submitted_anew(farm: Harness) -> None:
    """It cannot be retried."""
    worker = farm.worker()
    farm.create("a")
    farm.create("b", 2, dependencies=(whole("a"),), timeouts=Timeouts(queue_ns=3 * SECOND_NS))
    for _ in range(2):
        (token,) = worker.take()
        worker.fail(token, FailureClass.PERMANENT)
    farm.cancel_task("b", 1)
    worker.take()
    assert end(farm, "b").endswith("\n    help: Mend the task or its input, then submit it anew.")
    assert end(farm, "b", 1).endswith("\n    help: Submit it anew to run it after all.")
    farm.create("open", close=False)
    farm.create("c", dependencies=(whole("open"),), timeouts=Timeouts(queue_ns=3 * SECOND_NS))
    farm.wait(4, beating=[worker])
    assert end(farm, "c").endswith(
        "    why:  Its queue timeout is 3s, and it waited for a worker or for what it depends on all that time.\n"
        "    help: Start more workers, then submit it anew; or give it a longer queue=, and submit it anew."
    )
    farm.drop()


def test_the_first_failure_of_a_chain_is_found(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("a", 2)
    farm.create("b", 2, dependencies=(each("a"),))
    farm.create("c", 2, dependencies=(each("b"),))
    (token,) = worker.take()
    worker.fail(token)
    worker.take()
    assert (farm.states("b")[0], farm.states("c")[0]) == ("F", "F")
    assert story.culprit(farm.job("c"), 0) == (farm.job("a"), 0)
    assert story.culprit(farm.job("a"), 0) is None, "it failed by itself"
    assert end(farm, "c") == (
        "It failed: the task of job b that it needs did not succeed\n"
        "    why:  A task whose result it needs did not succeed.\n"
        "    help: Mend that one, and submit both anew."
    )
    for job_id in ("c", "b"):
        farm.cancel(job_id)
    farm.drop()


# ---- jobs ------------------------------------------------------------------------------------------------------------


def test_a_job_tells_of_one_task_for_all_in_the_same_state(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", 3, close=False, name="days")
    worker.take()
    assert about(farm, "j") == (
        "Job j 'days' (t) is OPEN: 0 of 3 tasks ended.\n"
        "It is open: more tasks may come, and it does not end before it is closed.\n"
        "1 task is ACTIVE; the first is j/0:\n"
        "Attempt 1 was given to w1 0s ago, and nothing was heard of its start.\n"
        "    why:  w1 holds 1 task and runs 1 at a time; short ones are told of when they end.\n"
        "2 tasks are QUEUED; the first is j/1:\n"
        "All places of the workers that can run it are taken: 1 worker with 1 place.\n"
        "    why:  They have 1 task of its job.\n"
        "    help: Wait, start more workers, or submit with a higher priority."
    )


def test_a_job_that_was_cancelled_says_by_what(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", 3, max_failures=0)
    (token,) = worker.take()
    worker.fail(token)
    farm.drop()
    assert about(farm, "j") == (
        "Job j (t) is CANCELLED: 3 of 3 tasks ended, 3 of them without success.\n"
        "It was cancelled: more than 0 tasks ended without success.\n"
        "    help: To run what did not succeed: `antfarm job retry j`; max_failures is 0."
    )


def test_no_retry_is_advised_for_a_cancelled_job_that_takes_inputs(farm: Harness) -> None:
    farm.create("a")
    farm.create("b", dependencies=(each("a"),))
    farm.cancel("b")
    with pytest.raises(WrongState):
        farm.retry("b", "c")
    assert about(farm, "b") == (
        "Job b (t) is CANCELLED: 1 of 1 task ended, 1 of them without success.\n"
        "It was cancelled: cancelled by a user.\n"
        "    help: To run what did not succeed: submit it anew."
    )


def test_an_open_job_whose_tasks_have_ended_and_a_full_disk(farm: Harness) -> None:
    farm.create("j", 0, close=False)
    farm.do(events.DiskLow(low=True))
    assert about(farm, "j") == (
        "Job j (t) is OPEN: 0 of 0 tasks ended.\n"
        "It is open: more tasks may come, and it does not end before it is closed.\n"
        "    help: Append tasks, or close it (CloseJob; a map closes its job by itself).\n"
        "The orchestrator's disk is nearly full: no new tasks are taken.\n"
        "    help: Make room on it, and submit again."
    )


def test_retries_of_a_job_are_counted_and_waiting_ones_are_named(farm: Harness) -> None:
    worker = farm.worker(slots=2)
    farm.create("a", 1, type="u")
    farm.create("j", 2, dependencies=(each("a"),), retry=retrying(2))
    farm.create("k", 2, retry=retrying(2, 100))
    first, _ = worker.take()
    worker.fail(first)
    text = about(farm, "k")
    assert "1 attempt of its tasks failed or were lost, and the tasks went on." in text
    assert "1 task is WAITING; the first is k/0:\nIt failed and is tried again in" in text


def test_only_what_failed_is_told_as_waiting_for_a_retry(farm: Harness) -> None:
    """Not one that runs at most once and whose worker is waited for."""
    first, holder = farm.worker("w1"), farm.worker("u1", types=("u",))
    farm.create("a", 3)
    farm.create("b", 3, type="u", at_most_once=True, dependencies=(each("a"),))
    (token,) = first.take()
    first.report(token)
    assert holder.take() == [("b", 0, 1, 1)]
    farm.wait(14, beating=[first])
    farm.drop()
    assert (farm.states("b"), list(farm.job("b").live)) == ("AWW", [])
    assert "for a retry" not in about(farm, "b")


def test_an_infrastructure_failure_that_a_worker_reported_is_told_as_no_loss(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", retry=RetryPolicy(backoff_initial_ns=0, backoff_max_ns=0))
    (token,) = worker.take()
    worker.fail(token, FailureClass.INFRA)
    assert past(farm, "j") == (
        "Attempt 1 failed on w1: ValueError: it went wrong\n"
        "    why:  Counted as number 1 of the 5 losses and infrastructure failures that are tolerated; queued again at once."
    )
    worker.take()


def test_failures_are_grouped_by_their_cause() -> None:
    farm = Harness(CoreConfig())
    worker = farm.worker(slots=4)
    farm.create("j", 4)
    for token in worker.take():
        worker.fail(token, FailureClass.PERMANENT if token[1] == 2 else FailureClass.APP)
    job = farm.job("j")
    indices = explain.failed_indices(job, 3)
    assert indices == [0, 1, 2]
    outcomes = [outcome(farm, "j", index) for index in indices]
    assert told(list(explain.causes(job, outcomes))) == (
        "3 tasks FAILED: ValueError: it went wrong\n"
        "    help: antfarm task explain j/0\n"
        "There are more: 3 of 4 were looked at, with 1 cause.\n"
        "    help: antfarm task list --job j --state FAILED,DEAD_LETTER,EXPIRED,CANCELLED"
    )
    farm.close()


# ---- all of it -------------------------------------------------------------------------------------------------------


def test_an_explanation_is_bounded() -> None:
    explanation = explain.bounded(Finding(what="x" * 1_000) for _ in range(10_000))
    assert 60_000 < len(str(explanation).encode()) <= explain.TEXT_BYTES_MAX
    assert explanation.findings[-1].what == "More was left out: the explanation is at its limit of 64 KiB."


def test_ten_thousand_workers_and_hostile_words_stay_short(farm: Harness) -> None:
    for number in range(300):
        farm.worker(f"w{number:03}", labels={"zone": "\x1b]0;" * 500})
    farm.create("j", labels={"zone": "a" * 10_000, **{f"k{n}": "v" for n in range(200)}})
    text = now(farm, "j")
    assert len(text) < 3_000
    assert text.replace("\n", "").isprintable()


def test_every_reason_is_looked_at_for_tasks_in_every_state(farm: Harness) -> None:
    """A reason says nothing about a task that it is not about: each may be asked of each task that has not ended."""
    worker = farm.worker()
    farm.create("a", 3, retry=retrying(2, 100))
    farm.create("b", 1, dependencies=(each("a"),))
    (token,) = worker.take()
    worker.fail(token)
    assert farm.states("a") == "WAQ"
    assert farm.states("b") == "W"
    told_of = {
        (job_id, index): [reason.__name__ for reason in REASONS if list(reason(scene(farm), farm.job(job_id), index))]
        for job_id, index in (("a", 0), ("a", 1), ("a", 2), ("b", 0))
    }
    assert told_of == {("a", 0): ["_backs_off"], ("a", 1): ["_held"], ("a", 2): ["_all_taken"], ("b", 0): ["_depends"]}
    farm.drop(effects.SendTasks)


def test_the_state_of_a_task_heads_its_explanation(farm: Harness) -> None:
    farm.create("j", 1)
    farm.tick(2)
    head = explain.task_head(scene(farm), farm.job("j"), 0, TaskState.QUEUED)
    assert head == Finding(what="Task j/0 (t) is QUEUED; it was submitted 2s ago.")
