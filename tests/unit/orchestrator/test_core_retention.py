"""Retention: ended jobs go when their time has come, no sooner, and nothing goes that somebody still needs."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from orchestrator_harness import Harness, durable_parts, each, whole

from antfarm.model import SECOND_NS, ConcurrencyLimit, JobSpec, TaskTemplate, VerdictCode
from services.orchestrator.core import effects, events, records, retention
from services.orchestrator.core.machine import Core
from services.orchestrator.core.state import State
from services.orchestrator.core.turn import CoreConfig
from services.orchestrator.journal import memory, sqlite
from services.orchestrator.journal.memory import MemoryJournal
from services.orchestrator.journal.sqlite import SqliteJournal

HOUR_S = 3600
HOUR_NS = HOUR_S * SECOND_NS
CONFIG = CoreConfig(keep_ended_ns=48 * HOUR_NS)


@pytest.fixture
def farm() -> Harness:
    return Harness(CONFIG)


def pass_hours(farm: Harness, hours: float) -> None:
    """One tick finds the gap, as after a pause; the next is an ordinary one."""
    farm.tick(hours * HOUR_S)
    farm.tick()


def run(farm: Harness, job_id: str, **spec: Any) -> None:
    """A job of one task that succeeds at once."""
    farm.create(job_id, **spec)
    worker = farm.worker("w1") if "w1" not in farm.state.workers else None
    worker = worker or farm.__dict__["w1"]
    farm.__dict__["w1"] = worker
    (token,) = worker.take()
    assert worker.report(token) is VerdictCode.ACCEPTED


def jobs(farm: Harness) -> list[str]:
    return sorted(job.job_id for job in farm.state.jobs.values())


def test_an_ended_job_is_purged_after_its_time_and_not_before(farm: Harness) -> None:
    run(farm, "a")
    pass_hours(farm, 24)
    run(farm, "b")
    pass_hours(farm, 23.9)
    assert jobs(farm) == ["a", "b"]
    pass_hours(farm, 0.2)
    assert jobs(farm) == ["b"]
    assert farm.records[-1] == records.JobPurged(job=1)
    pass_hours(farm, 24)
    assert jobs(farm) == []
    assert [row[0] for row in farm.journal.rows.values()] == [0] * len(farm.journal.rows)


def test_a_job_that_has_not_ended_stays_however_old_it_is(farm: Harness) -> None:
    farm.create("a")
    farm.create("open", 0, close=False)
    pass_hours(farm, 24 * 400)
    assert jobs(farm) == ["a", "open"]


def test_a_job_that_another_waits_for_stays_until_that_has_ended(farm: Harness) -> None:
    run(farm, "a")
    farm.create("b", 2, dependencies=(whole("a"),), type="u")
    pass_hours(farm, 100)
    assert jobs(farm) == ["a", "b"]
    farm.cancel("b")
    pass_hours(farm, 0.1)
    assert jobs(farm) == ["b"]
    assert farm.job("b").dependencies == [], "what was purged is not held by those it led to"


def test_a_retry_of_a_job_whose_inputs_were_purged_is_refused_as_before(farm: Harness) -> None:
    run(farm, "a")
    farm.create("b", 1, dependencies=(each("a"),), type="u")
    farm.cancel("b")
    farm.purge("a")
    message = "takes inputs from other jobs"
    for restarted in (False, True):
        if restarted:
            farm.restart()
        error = farm.refusal(lambda n: events.RetryJob(request=n, job_id="b", new_job_id="c"))  # type: ignore[arg-type]
        assert message in str(error)


def test_a_restart_counts_the_time_before_it_and_a_wild_clock_purges_nothing(farm: Harness) -> None:
    run(farm, "a")
    pass_hours(farm, 40)
    farm.restart(after_s=7 * HOUR_S)
    farm.tick()
    assert jobs(farm) == ["a"]
    farm.wall_offset_ns += 400 * 24 * HOUR_NS
    pass_hours(farm, 0.5)
    assert jobs(farm) == ["a"], "only the clock that never goes back counts while the process lives"
    pass_hours(farm, 1)
    assert jobs(farm) == []


def test_a_clock_that_was_set_back_keeps_longer_and_not_shorter(farm: Harness) -> None:
    run(farm, "a")
    farm.wall_offset_ns -= 400 * 24 * HOUR_NS
    farm.restart()
    pass_hours(farm, 47)
    assert jobs(farm) == ["a"]
    pass_hours(farm, 2)
    assert jobs(farm) == []


@pytest.mark.parametrize("crowd", ["tasks", "disk"])
def test_a_crowd_or_a_low_disk_shortens_the_time_to_a_day_and_no_further(crowd: str) -> None:
    farm = Harness(replace(CONFIG, ended_tasks_max=1 if crowd == "tasks" else 100))
    run(farm, "a")
    run(farm, "b")
    if crowd == "disk":
        farm.do(events.DiskLow(low=True))
    pass_hours(farm, 23)
    assert jobs(farm) == ["a", "b"]
    pass_hours(farm, 2)
    assert jobs(farm) == (["b"] if crowd == "tasks" else []), "the oldest first, and no more than needed"


def test_a_shorter_time_is_kept_to(farm: Harness) -> None:
    short = Harness(replace(CONFIG, keep_ended_ns=HOUR_NS))
    run(short, "a")
    pass_hours(short, 1.2)
    assert jobs(short) == []


def test_a_late_report_finds_its_task_until_the_job_is_purged(farm: Harness) -> None:
    """UNKNOWN_TASK is final: the worker forgets its report, so it must not come early."""
    farm.create("a", 1)
    worker = farm.worker("w1")
    (token,) = worker.take()
    farm.cancel("a")
    farm.drop(effects.SendRevoke)
    pass_hours(farm, 47)
    assert worker.report(token) is VerdictCode.SUPERSEDED
    pass_hours(farm, 2)
    assert worker.report(token) is VerdictCode.UNKNOWN_TASK


def test_many_jobs_are_purged_a_hundred_in_a_turn(farm: Harness) -> None:
    for number in range(250):
        farm.create(f"j{number}", 0)
    farm.tick(49 * HOUR_S)
    left = []
    for _ in range(4):
        farm.tick()
        left.append(len(farm.state.jobs))
    assert left == [150, 50, 0, 0]


def test_ids_of_purged_jobs_are_not_remembered_for_ever(farm: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new epoch takes their place: tokens of an earlier one are never taken for those of a new job of that id."""
    monkeypatch.setattr(retention, "PURGED_IDS_MAX", 3)
    for number in range(3):
        farm.create(f"j{number}", 0)
    epoch = farm.state.epoch
    pass_hours(farm, 49)
    assert (len(farm.state.purged), farm.state.epoch) == (3, epoch)
    pass_hours(farm, 1)
    assert (len(farm.state.purged), farm.state.epoch) == (0, epoch + 1)


# ---- a long life ---------------------------------------------------------------------------------------------------------


def facts(state: State) -> dict[str, Any]:
    """All that is durable of a state; of one that was only replayed, also where each task stands."""
    return {
        **durable_parts(state),
        "ended": list(state.ended),
        "states": {number: bytes(job.states) for number, job in state.jobs.items()},
        "dependencies": {
            number: [(other.number, kind, offset) for other, kind, offset in job.dependencies]
            for number, job in state.jobs.items()
        },
    }


class Everything(MemoryJournal):
    """A journal that forgets nothing but purged jobs, to compare with."""

    def __init__(self) -> None:
        super().__init__()
        self._look_at = 1 << 60


def replayed(journal: MemoryJournal | SqliteJournal) -> State:
    core = Core(CONFIG, random.Random(1))
    for seq, record in journal.replay():
        core.replay(seq, record)
    return core.state


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_a_compacted_journal_replays_to_the_same_state(
    seed: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Workers that come and go, parents, purges, jobs of an id that was used before, restarts, a history gap."""
    monkeypatch.setattr(memory, "LOOSE_RECORDS_MAX", 5)
    monkeypatch.setattr(sqlite, "LOOSE_RECORDS_MAX", 5)
    rng = random.Random(seed)
    state, seq, epoch, number = State(), 0, 0, 0
    whole, compacted, on_disk = Everything(), MemoryJournal(), SqliteJournal(tmp_path)
    for journal in (compacted, on_disk):
        journal._look_at = 5
    for _ in range(80):
        batch: list[tuple[int, records.Record]] = []
        for _ in range(rng.randint(1, 3)):
            name = f"n{rng.randrange(4)}"
            ended = list(state.ended)
            match rng.randrange(8):
                case 0:
                    gap = rng.random() < 0.2
                    epoch += 4 if gap else 1
                    record: records.Record = records.EpochStarted(epoch=epoch, wall_ns=1, history_gap=gap)
                case 1:
                    record = records.WorkerSeen(worker_id=name, orchestrator=rng.random() < 0.5)  # type: ignore[arg-type]
                case 2:
                    record = records.WorkerLeft(worker_id=name)  # type: ignore[arg-type]
                case 3:
                    template = TaskTemplate(type="t")
                    record = records.ParentBound(
                        job_id=name, index=0, epoch=epoch, attempt=seq + 1, template=template, payload=b"p"
                    )
                case 4:
                    record = records.ParentDone(job_id=name, index=0)
                case 5 if ended:
                    record = records.JobPurged(job=rng.choice(ended))
                case 6 if state.jobs:
                    job = state.jobs[max(state.jobs)]
                    record = records.JobClosed(job=job.number)
                    if job.closed:
                        record = records.JobEnded(job=job.number, wall_ns=2)
                        if job.ended_seq or not job.ended:
                            continue
                    elif rng.random() < 0.5:
                        record = records.TasksAdded(
                            job=job.number, first_index=job.task_count, payloads=[b"x"], wall_ns=3
                        )
                case _:
                    number += 1
                    spec = JobSpec(template=TaskTemplate(type="t"))
                    record = records.JobCreated(job=number, job_id=f"j{number}", spec=spec, wall_ns=4)  # type: ignore[arg-type]
            seq += 1
            state.apply(seq, record)
            batch.append((seq, record))
        for journal in (whole, compacted, on_disk):
            journal.append(batch)
    expected = facts(replayed(whole))
    assert facts(replayed(compacted)) == expected
    assert facts(replayed(on_disk)) == expected
    assert len(compacted.rows) < len(whole.rows)
    on_disk.close()


@pytest.mark.slow
def test_a_concurrency_limit_goes_with_the_last_job_that_names_it(farm: Harness) -> None:
    for name in ("web", "web", "disk"):
        farm.create(f"{name}{farm.state.next_job}", 1, limit=ConcurrencyLimit(name=name, max_active=1))
    farm.cancel("web1")
    farm.purge("web1")
    assert set(farm.state.limits) == {"web", "disk"}
    for job_id in ("web2", "disk3"):
        farm.cancel(job_id)
        farm.purge(job_id)
    assert farm.state.limits == {}
    assert farm.state.lanes == {}


def test_a_long_life_stays_as_small_as_a_short_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job each four hours for a hundred days: records, file, what is in memory and what a restart reads stop growing."""
    monkeypatch.setattr(sqlite, "LOOSE_RECORDS_MAX", 50)
    monkeypatch.setattr(retention, "PURGED_IDS_MAX", 20)
    farm = Harness(CONFIG)
    journal = SqliteJournal(tmp_path)
    journal.append(list(farm.journal.replay()))
    journal._look_at = 50
    farm.journal = journal  # type: ignore[assignment]
    worker = farm.worker("w1", slots=2)
    farm.autocommit = False
    sizes: list[dict[str, int]] = []
    for day in range(100):
        for hour in range(0, 24, 4):
            farm.do(events.Tick(wall_ns=farm.wall_ns))
            job_id = f"day{day}-{hour}"
            farm.do(events.CreateJob(request=1, job_id=job_id, spec=SPEC, payloads=[b"x" * 900, b"y"], close=True))  # type: ignore[arg-type]
            farm.commit()
            for token in worker.take():
                farm.do(
                    events.Outcomes(
                        session=worker.session, job_id=job_id, epoch=token[2], outcomes=[worker.outcome(token)]
                    )
                )
            pass_hours(farm, 4)
        farm.do(events.Goodbye(session=worker.session))
        farm.commit()
        worker.reborn()
        farm.do(worker.hello())
        farm.commit()
        farm.drop()
        assert not farm.held
        sizes.append(
            {
                "records": journal._db.execute("SELECT count(*) FROM record").fetchone()[0],
                "pages": journal._db.execute("PRAGMA page_count").fetchone()[0],
                "jobs": len(farm.state.jobs),
                "purged": len(farm.state.purged),
                "lanes": len(farm.state.lanes),
                "timers": len(farm.state.timers),
            }
        )
    early = {name: max(size[name] for size in sizes[5:25]) for name in sizes[0]}
    late = {name: max(size[name] for size in sizes[25:]) for name in sizes[0]}
    assert all(late[name] <= early[name] * 1.1 for name in late), (early, late)
    assert late["jobs"] < 20
    live = facts(farm.state)
    journal.close()
    again = SqliteJournal(tmp_path)
    assert facts(replayed(again)) == live
    again.close()


SPEC = JobSpec(template=TaskTemplate(type="t"))
