"""Parents: a task from above becomes a plan, tasks and a summary here, once, whatever is killed or repeated (I19, semantics section 11)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from orchestrator_harness import Harness, Worker, failure, retrying

from antfarm import errors
from antfarm.model import (
    SECOND_NS,
    ConcurrencyLimit,
    Ending,
    Failure,
    FailureClass,
    JobId,
    RetryPolicy,
    TaskState,
    TaskTemplate,
    Timeouts,
    VerdictCode,
)
from services.orchestrator.core import effects, events, limits, records
from services.orchestrator.core.events import HeldToken
from services.orchestrator.core.parents import KEPT_MAX
from services.orchestrator.core.turn import CoreConfig

PLANNED = ("s:plan", "s:summarise", "child")
STAGE = TaskTemplate(type="s", version="7", common_payload=b"{}", retry=RetryPolicy(max_attempts=2))
KEY = ("top", 4)


class Reported(NamedTuple):
    """What up-stream is told of a parent."""

    token: HeldToken
    state: TaskState
    failure: Failure | None
    by: tuple[int, int] | None
    """Record that ends it, and index of the task there."""


def assigned(
    *tokens: HeldToken, template: TaskTemplate = STAGE, payload: bytes = b"[1]", since_epoch: int = 1
) -> events.ParentsAssigned:
    """Tasks of one job and epoch."""
    job_id, _, epoch, _ = tokens[0]
    tasks = [events.ParentTask(index, attempt, payload) for _, index, _, attempt in tokens]
    return events.ParentsAssigned(job_id=job_id, epoch=epoch, template=template, tasks=tasks, since_epoch=since_epoch)


def assign(farm: Harness, epoch: int = 1, attempt: int = 1, template: TaskTemplate = STAGE, index: int = 4) -> None:
    farm.do(assigned(("top", index, epoch, attempt), template=template))


def started(farm: Harness, epoch: int = 1, attempt: int = 1, template: TaskTemplate = STAGE) -> None:
    assign(farm, epoch, attempt, template)
    assert farm.state.parents[KEY].token == (*KEY, epoch, attempt)


def ack(farm: Harness, *tokens: HeldToken) -> None:
    farm.do(events.ParentsAcked(tokens=tokens))


def revoke(farm: Harness, *tokens: HeldToken, cause: str = "") -> None:
    farm.do(events.ParentsRevoked(tokens=tokens, cause=cause))


def reports(farm: Harness) -> list[Reported]:
    """All that has been told up-stream, in order."""
    told = [Reported(fail.token, TaskState.FAILED, fail.failure, None) for fail in farm.claim_all(effects.FailParent)]
    for effect in farm.claim_all(effects.ReportParents):
        ((_, record),) = farm.journal.read([effect.seq])
        ended = records.ended_tasks(record, [end.local for end in effect.ends])
        for end in effect.ends:
            task = ended[end.local]
            told.append(Reported(end.token, task.state, task.failure, (effect.seq, end.local)))
    return told


def reported(farm: Harness) -> Reported:
    (one,) = reports(farm)
    return one


def expand(farm: Harness, children: int = 2, **fields: Any) -> None:
    plan = farm.state.by_id.get("{}{}/{}/plan".format("up/", *fields.get("parent", KEY)))
    event: dict[str, Any] = {
        "parent": KEY,
        "plan": plan.number if plan is not None else 0,
        "template": TaskTemplate(type="child"),
        "payloads": [b"%d" % i for i in range(children)],
        "failure": None,
    }
    farm.do(events.ParentExpanded(**{**event, **fields}))


def planned(farm: Harness, worker: Worker, children: int = 2) -> None:
    """The plan has run and was read."""
    (token,) = worker.take()
    assert token[0] == "up/top/4/plan"
    worker.run([token])
    plan = farm.job("up/top/4/plan")
    read = farm.claim(effects.ReadPlan)
    assert (read.parent, read.result_seq, read.job) == (KEY, plan.outcome_seqs[0], plan.number)
    expand(farm, children)


def test_a_parent_is_bound_before_it_is_started(farm: Harness) -> None:
    worker = farm.worker(types=PLANNED)
    farm.autocommit = False
    assign(farm)
    assert farm.state.parents[KEY].seq > farm.durable_seq
    farm.commit()
    worker.take()
    bound = [r for r in farm.records if isinstance(r, records.ParentBound)]
    assert bound == [
        records.ParentBound(
            job_id="top",
            index=4,
            epoch=1,
            attempt=1,
            template=STAGE,
            payload=b"[1]",
            wall_ns=bound[0].wall_ns,
        ),
    ]


def test_what_a_parent_becomes_runs_only_when_it_is_durable(farm: Harness) -> None:
    """Nobody submits it again: what began before could be made, and run, once more after a restart."""
    worker = farm.worker(slots=3, types=PLANNED)
    farm.autocommit = False
    assign(farm)
    assert worker.take() == []
    farm.commit()
    (plan,) = worker.take()
    farm.autocommit = True
    worker.run([plan])
    farm.claim(effects.ReadPlan)
    farm.autocommit = False
    expand(farm)
    assert worker.take() == []
    farm.commit()
    assert [token[:2] for token in worker.take()] == [("up/top/4/tasks", 0), ("up/top/4/tasks", 1)]


def test_plan_tasks_summary(farm: Harness) -> None:
    worker = farm.worker(slots=3, types=PLANNED)
    started(farm)
    plan = farm.job("up/top/4/plan").spec.template
    assert (plan.type, plan.version, plan.common_payload) == ("s:plan", "7", b"{}")
    planned(farm, worker)
    children = worker.take()
    assert [token[0] for token in children] == ["up/top/4/tasks"] * 2
    worker.run(children)
    (summary,) = worker.take()
    assert summary[0] == "up/top/4/summary"
    spec = farm.job("up/top/4/summary").spec
    assert spec.template.type == "s:summarise"
    assert [(d.job_id, d.kind.name) for d in spec.dependencies] == [("up/top/4/tasks", "ALL")]
    worker.run([summary])
    report = reported(farm)
    job = farm.job("up/top/4/summary")
    assert report == ((*KEY, 1, 1), TaskState.SUCCEEDED, None, (job.outcome_seqs[0], 0))


def test_a_stage_closes_and_the_next_begins_in_one_step(farm: Harness) -> None:
    worker = farm.worker(slots=2, types=PLANNED)
    started(farm)
    planned(farm, worker)
    first, second = worker.take()
    worker.run([first])
    farm.autocommit = False
    worker.send(second[0], second[2], [worker.outcome(second)])
    kinds = [type(record) for _, record in farm.pending]
    assert kinds[:4] == [records.TasksEnded, records.JobEnded, records.JobCreated, records.TasksAdded]
    farm.commit()
    worker.verdicts()
    worker.take()


def test_the_summary_runs_however_the_children_ended(farm: Harness) -> None:
    worker = farm.worker(slots=2, types=PLANNED)
    started(farm)
    planned(farm, worker)
    first, second = worker.take()
    worker.fail(first)
    worker.fail(second)
    (summary,) = worker.take()
    worker.run([summary])
    assert reported(farm).state is TaskState.SUCCEEDED


def test_a_plan_of_nothing_goes_straight_to_its_summary(farm: Harness) -> None:
    worker = farm.worker(types=PLANNED)
    started(farm)
    planned(farm, worker, children=0)
    assert [token[0] for token in worker.take()] == ["up/top/4/summary"]


def test_a_failed_plan_is_the_parents_failure(farm: Harness) -> None:
    worker = farm.worker(types=PLANNED)
    started(farm)
    (token,) = worker.take()
    worker.fail(token, FailureClass.PERMANENT)
    report = reported(farm)
    plan = farm.job("up/top/4/plan")
    assert (report.state, report.by) == (TaskState.FAILED, (plan.outcome_seqs[0], 0))


def test_a_plan_that_cannot_be_read_or_carried_out_fails_the_parent(farm: Harness) -> None:
    worker = farm.worker(types=PLANNED)
    broken: list[dict[str, Any]] = [
        {"template": None, "failure": failure(FailureClass.PERMANENT, "plan")},
        {"template": TaskTemplate(type="no good")},
        {"payloads": [b"x" * 70_000]},
        {"template": None},
    ]
    for number, fields in enumerate(broken, 1):
        started(farm, attempt=number)
        if number == 1:
            worker.run(worker.take())
        farm.claim(effects.ReadPlan)
        expand(farm, **fields)
        report = reported(farm)
        assert report.state is TaskState.FAILED
        assert report.failure is not None
        assert report.failure.failure_class is FailureClass.PERMANENT
        assert "up/top/4/tasks" not in farm.state.by_id


def test_without_a_plan_the_task_is_relayed_one_to_one(farm: Harness) -> None:
    worker = farm.worker(types=("s",))
    template = TaskTemplate(
        type="s", at_most_once=True, limit=ConcurrencyLimit(name="web", max_active=1),
        timeouts=Timeouts(run_ns=SECOND_NS), labels={}, common_payload=b"{}",
    )  # fmt: skip
    started(farm, template=template)
    (token,) = worker.take()
    assert token[:2] == ("up/top/4/relay-1", 0)
    assert worker.held[token] == b"[1]"
    relayed = farm.job("up/top/4/relay-1").spec.template
    assert (relayed.type, relayed.at_most_once, relayed.limit, relayed.timeouts) == (
        "s", True, None, template.timeouts,
    )  # fmt: skip
    worker.fail(token)
    assert reported(farm).state is TaskState.FAILED


def test_a_parent_waits_for_somebody_who_can_plan_or_run_it(farm: Harness) -> None:
    started(farm)
    assert not farm.state.jobs
    farm.worker("other", types=("x",))
    assert not farm.state.jobs
    worker = farm.worker(types=PLANNED)
    assert [token[0] for token in worker.take()] == ["up/top/4/plan"]


def test_the_same_token_again_changes_nothing_and_an_older_one_neither(farm: Harness) -> None:
    farm.worker(types=PLANNED)
    started(farm, 2, 3)
    farm.drop(effects.SendTasks)
    before = farm.state.seq
    for epoch, attempt in ((2, 3), (2, 2), (1, 9)):
        assign(farm, epoch, attempt)
    assert farm.state.seq == before


def test_a_newer_token_takes_over_what_the_older_one_began(farm: Harness) -> None:
    worker = farm.worker(slots=2, types=PLANNED)
    started(farm)
    planned(farm, worker)
    children = worker.take()
    started(farm, 1, 2)
    started(farm, 2, 1)
    assert len(farm.state.jobs) == 2
    worker.run(children)
    worker.run(worker.take())
    assert reported(farm).token == (*KEY, 2, 1)


def test_a_newer_token_of_an_ended_parent_is_answered_at_once(farm: Harness) -> None:
    worker = farm.worker(types=("s",))
    started(farm)
    worker.run(worker.take())
    first = reported(farm)
    started(farm, 1, 2)
    second = reported(farm)
    assert (first.token, second.token) == ((*KEY, 1, 1), (*KEY, 1, 2))
    assert first.by == second.by
    assert worker.take() == []


def test_a_revoked_parent_is_cancelled_and_forgotten(farm: Harness) -> None:
    worker = farm.worker(slots=2, types=PLANNED)
    started(farm)
    planned(farm, worker)
    children = worker.take()
    revoke(farm, ("top", 4, 1, 1), cause="not wanted")
    assert sorted(farm.claim(effects.SendRevoke).tokens) == children
    assert not farm.state.jobs
    assert not farm.state.parents
    assert {job for job, _, _ in farm.journal.rows.values()} == {0}
    assert worker.report(children[0]) is VerdictCode.UNKNOWN_TASK
    worker.held.clear()


def test_a_revoke_of_an_older_token_spares_the_newer_one(farm: Harness) -> None:
    farm.worker(types=PLANNED)
    started(farm)
    started(farm, 1, 2)
    revoke(farm, ("top", 4, 1, 1))
    assert farm.state.parents[KEY].attempt == 2
    revoke(farm, ("nope", 4, 1, 1))
    farm.drop(effects.SendTasks)


def test_what_comes_again_after_a_revoke_begins_anew_and_takes_no_late_word_of_before(farm: Harness) -> None:
    worker = farm.worker(types=("s",))
    started(farm)
    (old,) = worker.take()
    revoke(farm, ("top", 4, 1, 1))
    farm.claim(effects.SendRevoke)
    started(farm, 1, 2)
    (new,) = worker.take()
    assert new[0] != old[0]
    assert worker.report(old) is VerdictCode.SUPERSEDED
    assert worker.report(new) is VerdictCode.ACCEPTED
    reported(farm)


def test_an_answer_to_a_plan_of_an_earlier_binding_is_ignored(farm: Harness) -> None:
    worker = farm.worker(types=PLANNED)
    started(farm)
    (token,) = worker.take()
    worker.run([token])
    farm.claim(effects.ReadPlan)
    earlier = farm.job("up/top/4/plan").number
    revoke(farm, ("top", 4, 1, 1))
    expand(farm, plan=earlier)
    started(farm, 1, 2)
    expand(farm, plan=earlier)
    worker.run(worker.take())
    farm.claim(effects.ReadPlan)
    expand(farm, plan=earlier)
    expand(farm, plan=earlier, template=None, failure=failure())
    assert farm.state.by_id.keys() == {"up/top/4/plan"}


def test_once_acknowledged_nothing_is_bound_and_people_may_still_look(farm: Harness) -> None:
    worker = farm.worker(types=("s",))
    started(farm)
    worker.run(worker.take())
    reported(farm)
    ack(farm, ("top", 4, 1, 2))
    assert farm.state.parents.keys() == {KEY}
    ack(farm, ("top", 4, 1, 1))
    assert not farm.state.parents
    assert farm.state.by_id.keys() == {"up/top/4/relay-1"}


def test_a_retry_from_above_does_the_failed_stage_anew_and_keeps_what_succeeded(farm: Harness) -> None:
    worker = farm.worker(slots=2, types=PLANNED)
    started(farm, template=TaskTemplate(type="s"))
    planned(farm, worker)
    worker.run(worker.take())
    (summary,) = worker.take()
    worker.fail(summary)
    assert reported(farm).state is TaskState.FAILED
    started(farm, 1, 2, template=TaskTemplate(type="s"))
    (summary,) = worker.take()
    assert summary[0] == "up/top/4/summary"
    worker.run([summary])
    assert reported(farm).state is TaskState.SUCCEEDED


def ran(farm: Harness, worker: Worker) -> None:
    """A stage has gone through to its summary's success."""
    planned(farm, worker)
    worker.run(worker.take())
    (summary,) = worker.take()
    assert summary[0] == "up/top/4/summary"
    worker.run([summary])
    assert reported(farm).state is TaskState.SUCCEEDED


def test_what_has_the_name_of_a_task_whose_end_is_known_above_is_another_one(farm: Harness) -> None:
    """Its job was purged there and submitted anew: its plan, tasks and summary run, with its own arguments."""
    worker = farm.worker(slots=2, types=PLANNED)
    started(farm)
    ran(farm, worker)
    ack(farm, (*KEY, 1, 1))
    assert farm.state.by_id.keys() == {"up/top/4/plan", "up/top/4/tasks", "up/top/4/summary"}
    farm.do(assigned((*KEY, 2, 1), payload=b"[2]", since_epoch=2))
    (plan,) = worker.take()
    assert (plan[0], worker.held[plan]) == ("up/top/4/plan", b"[2]")
    assert farm.state.by_id.keys() == {"up/top/4/plan"}
    worker.run([plan])
    farm.claim(effects.ReadPlan)
    expand(farm)
    worker.run(worker.take())
    worker.run(worker.take())
    assert reported(farm).token == (*KEY, 2, 1)


def test_what_has_the_name_of_a_task_of_a_purged_job_is_another_one_though_that_ones_verdict_is_on_its_way(
    farm: Harness,
) -> None:
    worker = farm.worker(slots=2, types=PLANNED)
    started(farm)
    ran(farm, worker)
    farm.do(assigned((*KEY, 2, 1), payload=b"[2]", since_epoch=2))
    (plan,) = worker.take()
    assert (plan[0], worker.held[plan]) == ("up/top/4/plan", b"[2]")
    assert reports(farm) == []
    ack(farm, (*KEY, 1, 1))
    assert farm.state.parents[KEY].token == (*KEY, 2, 1)


def test_the_same_of_a_relayed_task_that_runs_or_has_ended(farm: Harness) -> None:
    worker, (first, second) = relayed(farm, 0, 1, slots=2)
    worker.run([first])
    assert [report.token for report in reports(farm)] == [("top", 0, 1, 1)]
    again = assigned(("top", 0, 2, 1), ("top", 1, 2, 1), template=PLAIN, payload=b"[2]", since_epoch=2)
    farm.do(again)
    assert farm.claim(effects.SendRevoke).tokens == [second]
    worker.forget([second])
    worker.beat()
    assert reports(farm) == []
    tokens = worker.take()
    assert [(token[0], token[1], worker.held[token]) for token in tokens] == [
        ("up/top/0/relay-2", 0, b"[2]"),
        ("up/top/0/relay-2", 1, b"[2]"),
    ]
    worker.run(tokens)
    assert [report.token for report in reports(farm)] == [("top", 0, 2, 1), ("top", 1, 2, 1)]


def test_what_runs_of_a_task_that_has_ended_above_is_stopped(farm: Harness) -> None:
    """One reading of its plan failed, and was told; another one, asked for under a newer token, did not."""
    worker = farm.worker(slots=2, types=PLANNED)
    started(farm)
    worker.run(worker.take())
    started(farm, attempt=2)
    assert len(farm.claim_all(effects.ReadPlan)) == 2
    expand(farm, template=None, failure=failure())
    assert reported(farm).state is TaskState.FAILED
    expand(farm)
    children = worker.take()
    ack(farm, (*KEY, 1, 2))
    assert sorted(farm.claim(effects.SendRevoke).tokens) == sorted(children)
    assert farm.states("up/top/4/tasks") == "CC"
    assert not farm.state.parents
    worker.forget(children)


@pytest.mark.parametrize("acked", [True, False])
def test_a_retry_from_above_of_a_relayed_task_runs_it_again(farm: Harness, acked: bool) -> None:
    """Also when the newer token overtakes the verdict on the older one: its failure would be counted twice otherwise."""
    worker = farm.worker(types=("s",))
    template = TaskTemplate(type="s")
    started(farm, template=template)
    worker.fail(worker.take()[0])
    reported(farm)
    if acked:
        ack(farm, ("top", 4, 1, 1))
    started(farm, 1, 2, template=template)
    worker.run(worker.take())
    assert reported(farm).state is TaskState.SUCCEEDED


def test_old_jobs_of_finished_parents_are_purged(farm: Harness) -> None:
    worker = farm.worker(types=("s",))
    for index in range(KEPT_MAX + 5):
        assign(farm, index=index, template=TaskTemplate(type="s"))
        worker.run(worker.take())
        ack(farm, ("top", index, 1, 1))
        farm.drop(effects.ReportParents)
    assert len(farm.state.jobs) == KEPT_MAX
    assert "up/top/4/relay-5" not in farm.state.by_id
    assert "up/top/5/relay-6" in farm.state.by_id


def test_a_restart_knows_which_jobs_of_finished_parents_are_the_oldest(farm: Harness) -> None:
    worker = farm.worker(types=("s",))
    for index in range(KEPT_MAX + 2):
        if index == KEPT_MAX:
            farm.restart()
            worker = farm.worker(types=("s",))
        assign(farm, index=index, template=TaskTemplate(type="s"))
        worker.run(worker.take())
        if index != 1:  # the second one's report is not answered
            ack(farm, ("top", index, 1, 1))
        farm.drop(effects.ReportParents)
    assert len(farm.state.jobs) == KEPT_MAX + 1
    assert "up/top/0/relay-1" not in farm.state.by_id
    assert "up/top/1/relay-2" in farm.state.by_id


def test_ended_jobs_of_a_parent_that_is_not_finished_stay_however_old(farm: Harness) -> None:
    worker = farm.worker(types=("s",))
    for index in range(KEPT_MAX + 5):
        assign(farm, index=index, template=TaskTemplate(type="s"))
        worker.run(worker.take())
        if index:  # the first one's report is not answered
            ack(farm, ("top", index, 1, 1))
        farm.drop(effects.ReportParents)
    assert len(farm.state.jobs) == KEPT_MAX + 1
    assert "up/top/0/relay-1" in farm.state.by_id


@pytest.mark.parametrize("stage", ["bound", "plan", "planned", "tasks", "summary", "reported"])
def test_a_restart_at_any_stage_goes_on_and_repeats_nothing(farm: Harness, stage: str) -> None:
    worker = farm.worker(slots=2, types=PLANNED)
    ran: list[str] = []

    def run() -> None:
        for token in list(worker.held):
            ran.append(f"{token[0]}/{token[1]}")
            worker.run([token])
        worker.take()

    def restart(when: str) -> None:
        if when == stage:
            farm.restart()
            worker.attach()
            worker.take()

    started(farm)
    worker.take()
    restart("bound")
    restart("plan")
    run()
    restart("planned")
    farm.claim(effects.ReadPlan) if stage != "planned" else farm.drop(effects.ReadPlan)
    expand(farm)
    worker.take()
    restart("tasks")
    run()
    restart("summary")
    run()
    if stage == "reported":
        reported(farm)
    restart("reported")
    assert reported(farm).state is TaskState.SUCCEEDED
    assert sorted(ran) == ["up/top/4/plan/0", "up/top/4/summary/0", "up/top/4/tasks/0", "up/top/4/tasks/1"]


def test_what_waited_for_somebody_to_run_it_is_relayed_together(farm: Harness) -> None:
    """As if it had come now: neighbours of one template and epoch in one job, whenever they came."""
    other = replace(PLAIN, common_payload=b"other")
    for index in (0, 1):
        assign(farm, template=PLAIN, index=index)
    farm.do(assigned(("top", 2, 1, 1), ("top", 3, 1, 1), template=PLAIN))
    farm.do(assigned(("top", 4, 1, 1), ("top", 5, 1, 1), template=other))
    farm.do(assigned(("top", 6, 1, 1), ("top", 8, 1, 1), template=other))
    farm.do(assigned(("top", 9, 2, 1), ("top", 10, 2, 1), template=other))
    farm.worker(slots=20, types=("s:plan",))
    assert farm.state.jobs == {}
    worker = farm.worker("w2", slots=20, types=("r",))
    runs = [(job.job_id.rpartition("/")[0], job.task_count) for job in farm.state.jobs.values()]
    assert runs == [("up/top/0", 4), ("up/top/4", 3), ("up/top/8", 1), ("up/top/9", 2)]
    assert farm.state.waiting_parents == {}
    worker.run(worker.take())
    assert sorted(one.token for one in reports(farm)) == [
        *(("top", index, 1, 1) for index in (*range(7), 8)),
        *(("top", index, 2, 1) for index in (9, 10)),
    ]


@pytest.mark.parametrize("total_s", [None, 60])
def test_what_waited_is_relayed_with_what_is_left_of_its_time(farm: Harness, total_s: int | None) -> None:
    total_ns = None if total_s is None else total_s * SECOND_NS
    template = replace(PLAIN, timeouts=Timeouts(total_ns=total_ns))
    for index in (0, 1):
        assign(farm, template=template, index=index)
        farm.wait(10)
    farm.worker(slots=20, types=("r",))
    left = [
        (job.task_count, None if (left_ns := job.template.timeouts.total_ns) is None else round(left_ns / SECOND_NS))
        for job in farm.state.jobs.values()
    ]
    assert left == ([(2, None)] if total_s is None else [(1, 40), (1, 50)])
    farm.drop(effects.SendTasks)


def test_a_report_waits_for_the_outcome_that_it_tells(farm: Harness) -> None:
    worker = farm.worker(types=("s",))
    started(farm)
    (token,) = worker.take()
    farm.autocommit = False
    worker.send(token[0], token[2], [worker.outcome(token)])
    assert farm.sent == []
    farm.commit()
    reported(farm)
    worker.verdicts()


def test_a_full_disk_or_too_many_payloads_stop_no_parent() -> None:
    farm = Harness(CoreConfig(payload_bytes_max=1))
    farm.do(events.DiskLow(low=True))
    worker = farm.worker(slots=2, types=PLANNED)
    started(farm)
    planned(farm, worker)
    worker.run(worker.take())
    worker.run(worker.take())
    assert reported(farm).state is TaskState.SUCCEEDED
    farm.close()


def test_jobs_of_a_bound_parent_cannot_be_purged(farm: Harness) -> None:
    worker = farm.worker(types=PLANNED)
    started(farm)
    worker.run(worker.take())
    farm.claim(effects.ReadPlan)
    error = farm.refusal(lambda n: events.PurgeJob(request=n, job_id=JobId("up/top/4/plan")))
    assert isinstance(error, errors.JobNotEnded)
    assert "task top/4 of the orchestrator above" in str(error)


def test_a_local_cancel_is_reported_above(farm: Harness) -> None:
    worker = farm.worker(types=("s",))
    started(farm)
    worker.take()
    farm.cancel("up/top/4/relay-1")
    farm.claim(effects.SendRevoke)
    assert reported(farm).state is TaskState.CANCELLED
    worker.held.clear()


def test_an_orchestrator_does_not_feed_itself() -> None:
    farm = Harness(CoreConfig(orchestrator_id="me"))
    other = Worker(farm, "orchestrator-x", 1, orchestrator=True, descendants=("x", "me"))
    error = other.refused()
    assert isinstance(error, errors.Cycle)
    assert "name another --upstream" in str(error)
    Worker(farm, "orchestrator-y", 1, orchestrator=True, descendants=("y", "z")).attach()
    farm.close()


@pytest.mark.parametrize(
    "template",
    [
        TaskTemplate(type=""),
        TaskTemplate(type="s", resources={"gpu": float("nan")}),
        TaskTemplate(type="s", resources={"gpu": float("inf")}),
        TaskTemplate(type="s", timeouts=Timeouts(run_ns=0)),
        TaskTemplate(type="s", retry=RetryPolicy(backoff_initial_ns=-1)),
        TaskTemplate(type="s", retry=RetryPolicy(backoff_max_ns=1 << 62)),
    ],
)
def test_what_could_be_no_job_here_is_reported_as_failed_and_not_bound(farm: Harness, template: TaskTemplate) -> None:
    farm.worker("w1", types=("s", ""))
    before = farm.state.seq
    assign(farm, template=template)
    report = reported(farm)
    assert (report.token, report.state) == ((*KEY, 1, 1), TaskState.FAILED)
    assert report.failure is not None
    assert report.failure.failure_class is FailureClass.PERMANENT
    assert (farm.state.seq, farm.state.parents) == (before, {})


@pytest.mark.parametrize("job_id", ["", "..", "a b", "a/../b", "x" * 381])
def test_a_task_from_above_whose_id_leads_elsewhere_is_refused(farm: Harness, job_id: str) -> None:
    farm.do(assigned((job_id, 0, 1, 1)))
    assert reported(farm).state is TaskState.FAILED
    assert farm.state.parents == {}


def test_an_id_that_grew_on_its_way_down_is_taken(farm: Harness) -> None:
    worker = farm.worker("w1", types=PLANNED, slots=2)
    job_id = "up/" * 40 + "x" * 230
    farm.do(assigned((job_id, 0, 1, 1)))
    worker.run(worker.take())
    farm.drop()
    expand(farm, parent=(job_id, 0))
    assert farm.states(f"up/{job_id}/0/tasks") == "AA"
    farm.drop()


# ---- relayed as they came, many in one job ----------------------------------------------------------------------------

PLAIN = TaskTemplate(type="r")


def tokens(*indices: int, epoch: int = 1, attempt: int = 1) -> list[HeldToken]:
    return [("top", index, epoch, attempt) for index in indices]


def relayed(farm: Harness, *indices: int, slots: int = 9, **token: int) -> tuple[Worker, list[Any]]:
    """A worker that holds what these became."""
    worker = farm.worker(slots=slots, types=("r",))
    farm.do(assigned(*tokens(*indices, **token), template=PLAIN))
    return worker, worker.take()


def test_neighbours_become_one_job_and_each_end_is_told_as_it_comes(farm: Harness) -> None:
    worker, here = relayed(farm, 3, 4, 5)
    assert [token[:2] for token in here] == [("up/top/3/relay-1", local) for local in range(3)]
    assert farm.job("up/top/3/relay-1").spec.name == "r top/3-5"
    worker.run(here[1:])
    assert [(one.token, one.by and one.by[1]) for one in reports(farm)] == [
        (("top", 4, 1, 1), 1),
        (("top", 5, 1, 1), 2),
    ]
    worker.fail(here[0])
    told = reported(farm)
    assert (told.token, told.state) == (("top", 3, 1, 1), TaskState.FAILED)


def test_what_ends_together_is_told_together(farm: Harness) -> None:
    worker, here = relayed(farm, 0, 1, 2)
    worker.send(here[0][0], here[0][2], [worker.outcome(token) for token in here])
    (effect,) = farm.claim_all(effects.ReportParents)
    assert effect.ends == [effects.ParentEnd(token, local) for local, token in enumerate(tokens(0, 1, 2))]
    worker.verdicts()


def test_gaps_and_other_attempts_part_jobs_and_one_index_is_taken_once(farm: Harness) -> None:
    farm.worker(slots=9, types=("r",))
    again = ("top", 6, 1, 2)
    farm.do(assigned(*tokens(0, 1, 3, 6, 7), again, *tokens(7), template=PLAIN))
    farm.drop(effects.SendTasks)
    sizes = {job.job_id: job.task_count for job in farm.state.jobs.values()}
    assert sizes == {"up/top/0/relay-1": 2, "up/top/3/relay-2": 1, "up/top/6/relay-3": 1, "up/top/7/relay-4": 1}
    assert farm.state.parents["top", 6].token == again


def test_a_newer_token_takes_a_relayed_task_over_and_does_nothing_anew(farm: Harness) -> None:
    worker, here = relayed(farm, 0, 1)
    worker.run(here[:1])
    reported(farm)
    farm.do(assigned(*tokens(0, 1, attempt=2), template=PLAIN))
    assert reported(farm).token == ("top", 0, 1, 2)
    assert (worker.take(), len(farm.state.jobs)) == ([], 1)
    worker.run(here[1:])
    assert reported(farm).token == ("top", 1, 1, 2)


def test_a_relayed_task_that_failed_is_done_anew_under_a_newer_token_and_its_neighbours_are_not(farm: Harness) -> None:
    worker, here = relayed(farm, 0, 1)
    worker.fail(here[0])
    reported(farm)
    farm.do(assigned(*tokens(0, attempt=2), template=PLAIN))
    (again,) = worker.take()
    assert again[0] == "up/top/0/relay-2"
    worker.run([again, here[1]])
    assert [one.token for one in reports(farm)] == [("top", 0, 1, 2), ("top", 1, 1, 1)]


def test_what_is_revoked_of_a_job_is_cancelled_alone(farm: Harness) -> None:
    worker, here = relayed(farm, 0, 1, 2)
    revoke(farm, *tokens(1), *tokens(1, attempt=0), cause="not wanted")
    assert farm.claim(effects.SendRevoke).tokens == [here[1]]
    assert farm.states("up/top/0/relay-1") == "ACA"
    assert farm.claim_all(effects.ReportParents) == []
    worker.held.pop(here[1])
    worker.run([here[0], here[2]])
    assert [one.token for one in reports(farm)] == tokens(0, 2)


def test_a_job_of_relayed_tasks_is_kept_until_all_their_ends_are_known_above(farm: Harness) -> None:
    worker, here = relayed(farm, 0, 1)
    worker.run(here)
    reports(farm)
    ack(farm, *tokens(0))
    error = farm.refusal(lambda n: events.PurgeJob(request=n, job_id=JobId("up/top/0/relay-1")))
    assert "part of task top/1 of the orchestrator above" in str(error)
    ack(farm, *tokens(0, 1))
    assert (farm.state.parents, farm.state.relays) == ({}, {})
    farm.purge("up/top/0/relay-1")


@pytest.mark.parametrize("acked", [True, False])
def test_a_restart_tells_the_ends_that_are_not_known_above_and_repeats_nothing(farm: Harness, acked: bool) -> None:
    worker, here = relayed(farm, 0, 1, 2)
    worker.run(here[:2])
    reports(farm)
    if acked:
        ack(farm, *tokens(0))
    farm.restart()
    assert [one.token for one in reports(farm)] == (tokens(1) if acked else tokens(0, 1))
    worker.attach()
    assert worker.take() == []
    worker.run(here[2:])
    assert reported(farm).token == ("top", 2, 1, 1)


def test_tasks_that_waited_for_a_worker_are_relayed_when_one_comes(farm: Harness) -> None:
    farm.do(assigned(*tokens(0, 1), template=PLAIN))
    assert not farm.state.jobs
    worker = farm.worker(slots=2, types=("r",))
    worker.run(worker.take())
    assert [one.token for one in reports(farm)] == tokens(0, 1)
    farm.restart()
    assert [one.token for one in reports(farm)] == tokens(0, 1)


def test_a_cancel_here_is_told_of_all_tasks_that_had_not_ended(farm: Harness) -> None:
    worker, here = relayed(farm, 0, 1, 2)
    worker.run(here[:1])
    reports(farm)
    farm.cancel("up/top/0/relay-1")
    farm.claim(effects.SendRevoke)
    assert [(one.token, one.state) for one in reports(farm)] == [(token, TaskState.CANCELLED) for token in tokens(1, 2)]
    worker.held.clear()


def test_a_job_of_tasks_that_are_done_belongs_to_nobody_though_one_of_them_has_come_again(farm: Harness) -> None:
    """It waits, because nobody can run it now; the job in which it failed before may be purged."""
    worker, here = relayed(farm, 0)
    worker.fail(here[0])
    reported(farm)
    farm.do(events.Goodbye(session=worker.session))
    farm.do(assigned(*tokens(0, attempt=2), template=PLAIN))
    assert farm.state.parents["top", 0].job == 0
    farm.purge("up/top/0/relay-1")


# ---- drained and out of time -----------------------------------------------------------------------------------------


def drain(farm: Harness, *, over: bool) -> list[tuple[bool, list[HeldToken]]]:
    """(never started, tokens) of what is given back."""
    farm.do(events.ParentsDrained(over=over))
    return [(effect.never_started, list(effect.tokens)) for effect in farm.claim_all(effects.ReleaseParents)]


def test_a_drain_gives_back_what_has_not_begun_and_at_its_end_the_rest(farm: Harness) -> None:
    worker, here = relayed(farm, 0, 1, 2, 3, slots=2)
    assert [token[1] for token in here] == [0, 1]
    worker.credit(0)
    worker.run([here[0]])
    assert [report.token for report in reports(farm)] == [("top", 0, 1, 1)]
    assert drain(farm, over=False) == [(True, [("top", 2, 1, 1), ("top", 3, 1, 1)])]
    assert farm.states("up/top/0/relay-1") == "SACC"
    assert set(farm.state.parents) == {("top", 0), ("top", 1)}
    assert drain(farm, over=True) == [(False, [("top", 1, 1, 1)])]
    assert farm.states("up/top/0/relay-1") == "SCCC"
    assert farm.claim(effects.SendRevoke).tokens == [here[1]]
    assert set(farm.state.parents) == {("top", 0)}, "its end is told, and waits for the verdict"
    assert drain(farm, over=True) == []


def test_a_drain_waits_with_what_may_have_begun_before_a_restart(farm: Harness) -> None:
    worker, here = relayed(farm, 0, 1, slots=1)
    farm.restart()
    assert drain(farm, over=False) == [], "who holds it has not come back"
    worker.attach()
    assert farm.states("up/top/0/relay-1") == "AQ"
    assert drain(farm, over=False) == [(True, [("top", 1, 1, 1)])]
    worker.run([here[0]])
    assert [report.token for report in reports(farm)] == [("top", 0, 1, 1)]


def test_a_drain_lets_an_expansion_go_on_until_its_end(farm: Harness) -> None:
    assign(farm)
    assert drain(farm, over=False) == [(True, [(*KEY, 1, 1)])], "nobody can plan it here"
    assert not farm.state.parents
    worker = farm.worker(slots=3, types=PLANNED)
    started(farm, attempt=2)
    planned(farm, worker)
    worker.take()
    assert drain(farm, over=False) == []
    assert drain(farm, over=True) == [(False, [(*KEY, 1, 2)])]
    assert not farm.state.parents
    assert not farm.state.jobs
    farm.claim_all(effects.SendRevoke)


def test_what_a_drain_gives_back_leaves_when_that_is_durable(farm: Harness) -> None:
    assign(farm)
    farm.autocommit = False
    farm.do(events.ParentsDrained(over=False))
    assert farm.claim_all(effects.ReleaseParents) == []
    farm.commit()
    assert len(farm.claim_all(effects.ReleaseParents)) == 1


def test_what_a_parent_becomes_has_no_more_time_than_the_parent(farm: Harness) -> None:
    worker = farm.worker(slots=3, types=PLANNED)
    assign(farm, template=replace(STAGE, timeouts=Timeouts(total_ns=60 * SECOND_NS)))
    assert farm.job("up/top/4/plan").template.timeouts == Timeouts(total_ns=60 * SECOND_NS)
    farm.wait(20, beating=[worker])
    own = TaskTemplate(type="child", timeouts=Timeouts(run_ns=1, total_ns=50 * SECOND_NS))
    (token,) = worker.take()
    worker.run([token])
    farm.claim(effects.ReadPlan)
    expand(farm, 3, template=own)
    timeouts = farm.job("up/top/4/tasks").template.timeouts
    assert (timeouts.run_ns, round((timeouts.total_ns or 0) / SECOND_NS, 3)) == (1, 40.0)
    worker.take()
    farm.restart()
    worker.attach()
    farm.wait(39, beating=[worker])
    assert farm.states("up/top/4/tasks") == "AAA"
    farm.wait(2, beating=[worker])
    assert farm.states("up/top/4/tasks") == "EEE"
    farm.wait(1, beating=[worker])
    assert farm.states("up/top/4/summary") == "E"
    end = reported(farm)
    assert (end.token, end.state) == ((*KEY, 1, 1), TaskState.EXPIRED)
    farm.drop(effects.SendRevoke, effects.SendTasks)


@pytest.mark.parametrize("stage", ["plan", "summary"])
def test_the_plan_and_the_summary_of_what_runs_at_most_once_do_so_too(farm: Harness, stage: str) -> None:
    worker = farm.worker(slots=2, types=PLANNED)
    assign(farm, template=replace(STAGE, at_most_once=True))
    if stage == "summary":
        planned(farm, worker)
        worker.run(worker.take())
    (token,) = worker.take()
    assert token[0] == f"up/top/4/{stage}"
    worker.running(token)
    worker.die()
    farm.wait(310, beating=[worker])
    assert worker.take() == []
    assert reported(farm).state is TaskState.DEAD_LETTER
    farm.drop(effects.Refuse)


def test_a_relayed_task_has_no_more_retries_than_are_left(farm: Harness) -> None:
    worker = farm.worker(slots=9, types=("r",))
    template = replace(PLAIN, retry=RetryPolicy(max_attempts=3, backoff_initial_ns=0))
    tasks = [events.ParentTask(index, 1, b"[1]", used) for index, used in enumerate((0, 0, 1, 2, 5))]
    farm.do(events.ParentsAssigned(job_id="top", epoch=1, template=template, tasks=tasks))
    worker.take()
    assert [(job.job_id, job.template.retry.max_attempts) for job in farm.state.jobs.values()] == [
        ("up/top/0/relay-1", 3),
        ("up/top/2/relay-2", 2),
        ("up/top/3/relay-3", 1),
        ("up/top/4/relay-4", 1),
    ]


def test_an_expanded_task_has_no_more_retries_than_are_left(farm: Harness) -> None:
    farm.worker(types=PLANNED)
    task = events.ParentTask(4, 1, b"[1]", 1)
    farm.do(events.ParentsAssigned(job_id="top", epoch=1, template=STAGE, tasks=[task]))
    assert farm.job("up/top/4/plan").template.retry.max_attempts == 1
    farm.drop(effects.SendTasks)


def test_what_is_given_out_says_how_many_retries_were_used(farm: Harness) -> None:
    worker = farm.worker()
    farm.create("j", 1, retry=retrying(5, 0.0))
    for used in range(3):
        farm.wait(1, beating=[worker])
        (frame,) = farm.claim_all(effects.SendTasks)
        assert [task.app_failures for _, tasks in frame.groups for task in tasks] == [used]
        token = ("j", 0, 1, used + 1)
        worker.held[token] = b""
        worker.frames += 1
        worker.fail(token)
    farm.wait(1, beating=[worker])
    farm.drop(effects.SendTasks)


def test_what_is_given_back_says_how_many_retries_it_has_used_here(farm: Harness) -> None:
    """Not those that were used above before it came; and of an expanded one nothing is gone on with, so that its stages have used none."""
    worker = farm.worker(slots=3, types=("r", *PLANNED))
    tasks = [events.ParentTask(index, 1, b"[1]", used) for index, used in enumerate((0, 0, 1))]
    again = replace(PLAIN, retry=retrying(4, 60.0))
    farm.do(events.ParentsAssigned(job_id="top", epoch=1, template=again, tasks=tasks))
    for token in worker.take()[1:]:
        worker.fail(token)
    assign(farm, template=replace(STAGE, retry=retrying(4, 60.0)))
    (plan,) = [token for token in worker.take() if token[0] == "up/top/4/plan"]
    worker.fail(plan)
    farm.do(events.ParentsDrained(over=True))
    given_back = farm.claim(effects.ReleaseParents)
    assert sorted(given_back.tokens) == [("top", 0, 1, 1), ("top", 1, 1, 1), ("top", 2, 1, 1), (*KEY, 1, 1)]
    assert given_back.app_failures == {("top", 1, 1, 1): 1, ("top", 2, 1, 1): 1}
    farm.drop(effects.SendRevoke, effects.SendTasks)


@pytest.mark.parametrize("where", ["above", "the same cluster"])
def test_a_task_that_a_drained_cluster_gives_back_has_no_attempt_more_than_its_policy_says(
    farm: Harness, where: str
) -> None:
    """Two of three fail in the cluster, and it is given back in its back-off: one is left, over a restart too."""
    above, ran = Harness(), 0
    above.create("top", 1, type="r", retry=retrying(3, 0.0))
    cluster, here = above.worker("cluster", orchestrator=True, types=("r",)), farm.worker(types=("r",))

    def handed_down() -> HeldToken:
        (frame,) = above.claim_all(effects.SendTasks)
        ((_, (task,)),) = frame.groups
        cluster.frames += 1
        token = ("top", 0, frame.epoch, task.attempt)
        cluster.held[token] = task.payload
        tasks = [events.ParentTask(0, task.attempt, task.payload, task.app_failures)]
        template = above.job("top").template
        farm.do(events.ParentsAssigned(job_id="top", epoch=frame.epoch, template=template, tasks=tasks))
        return token

    token = handed_down()
    for _ in range(2):
        here.fail(here.take()[0])
        farm.tick()
        ran += 1
    cluster.credit(0)
    farm.do(events.ParentsDrained(over=True))
    given_back = farm.claim(effects.ReleaseParents)
    assert list(given_back.tokens) == [token]
    used = given_back.app_failures[token]
    assert cluster.report(token, Ending.RELEASED, app_failures=used) is VerdictCode.ACCEPTED
    above.restart()
    farm.drop(effects.SendRevoke, effects.SendTasks)
    here.held.clear()
    cluster.attach()
    if where == "above":
        worker = above.worker("w2", types=("r",))
        worker.fail(worker.take()[0])
        assert above.states("top") == "F"
    else:
        cluster.credit(1)
        handed_down()
        here.beat(held=[])
        here.fail(here.take()[0])
        assert reported(farm).state is TaskState.FAILED
    assert ran + 1 == 3


def test_the_wall_clock_takes_nothing_of_a_parents_time(farm: Harness) -> None:
    worker = farm.worker(slots=3, types=PLANNED)
    assign(farm, template=replace(STAGE, timeouts=Timeouts(total_ns=60 * SECOND_NS)))
    farm.wall_offset_ns += 7_200 * SECOND_NS
    farm.wait(20, beating=[worker])
    planned(farm, worker)
    assert round((farm.job("up/top/4/tasks").template.timeouts.total_ns or 0) / SECOND_NS, 3) == 40.0
    farm.drop(effects.SendTasks)


def test_a_task_that_waited_for_a_worker_is_relayed_with_the_time_that_is_left(farm: Harness) -> None:
    assign(farm, template=replace(PLAIN, timeouts=Timeouts(total_ns=60 * SECOND_NS)))
    farm.wait(20)
    farm.restart(after_s=30)
    worker = farm.worker(types=("r",))
    worker.take()
    assert round((farm.job("up/top/4/relay-1").template.timeouts.total_ns or 0) / SECOND_NS, 3) == 10.0


def test_a_plan_of_more_than_a_record_may_hold_fails_the_parent(farm: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PLAN_BYTES_MAX", 1 << 20)
    worker = farm.worker(types=PLANNED)
    started(farm)
    worker.run(worker.take())
    farm.claim(effects.ReadPlan)
    expand(farm, payloads=[bytes(60_000)] * 18)
    end = reported(farm).failure
    assert end is not None
    assert (end.failure_class, end.message) == (
        FailureClass.PERMANENT,
        "the plan cannot be carried out: its tasks are 1 MiB of arguments, the limit is 1 MiB: keep large ones in Storage, or submit several smaller requests",
    )


def test_what_runs_at_most_once_and_was_handed_back_goes_back_as_never_started(farm: Harness) -> None:
    worker = farm.worker(types=("r",))
    assign(farm, template=replace(PLAIN, at_most_once=True))
    (token,) = worker.take()
    worker.credit(0)
    worker.release(token)
    assert farm.states("up/top/4/relay-1") == "Q"
    assert drain(farm, over=False) == [(True, [(*KEY, 1, 1)])]
    assign(farm, attempt=2, template=replace(PLAIN, at_most_once=True))
    farm.restart()
    assert drain(farm, over=False) == [(True, [(*KEY, 1, 2)])], "its token would be in the journal"


def test_parents_that_end_while_they_wait_for_a_worker_are_not_waited_for(farm: Harness) -> None:
    for number in range(1, 4):
        assign(farm, attempt=number)
        revoke(farm, (*KEY, 1, number))
    assert farm.state.waiting_parents == {}


def test_children_keep_a_shorter_time_of_their_own(farm: Harness) -> None:
    worker = farm.worker(slots=3, types=PLANNED)
    assign(farm, template=replace(STAGE, timeouts=Timeouts(total_ns=60 * SECOND_NS)))
    (token,) = worker.take()
    worker.run([token])
    farm.claim(effects.ReadPlan)
    expand(farm, 1, template=TaskTemplate(type="child", timeouts=Timeouts(total_ns=5 * SECOND_NS)))
    assert farm.job("up/top/4/tasks").template.timeouts == Timeouts(total_ns=5 * SECOND_NS)
    worker.take()
