"""The driver: one group commit at a time, effects no earlier than what they rest on, and a disk that is slow, full or broken."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from orchestrator_harness import create_event

from antfarm.errors import Conflict, DiskFull, Unavailable
from antfarm.model import SECOND_NS, JobId, JobSpec, SessionId, TaskTemplate, Timeouts, WorkerId
from services.orchestrator.core import effects, events
from services.orchestrator.core.effects import Effect
from services.orchestrator.core.machine import Core
from services.orchestrator.core.records import Record
from services.orchestrator.core.turn import CoreConfig
from services.orchestrator.journal.base import BackupStopped, JournalBroken, JournalFull
from services.orchestrator.journal.memory import MemoryJournal
from services.orchestrator.runtime import driver as driver_module
from services.orchestrator.runtime import timers
from services.orchestrator.runtime.driver import Driver, explain_failure
from services.orchestrator.runtime.timers import tick_forever


class Clock:
    """A clock that goes on by a microsecond with each look."""

    def __init__(self) -> None:
        self.now = 0

    def monotonic_ns(self) -> int:
        self.now += 1_000
        return self.now

    def wall_ns(self) -> int:
        return self.now


class Disk(MemoryJournal):
    """A journal whose commits wait for `gate`, and fail as told."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.trouble: Exception | None = None
        self.batches: list[int] = []
        self.free = (1 << 40, 1 << 40)
        self.away: OSError | None = None
        self.reads = 0
        self.unreadable: Exception | None = None

    def append(self, records: Sequence[tuple[int, Record]]) -> None:
        assert threading.current_thread() is not threading.main_thread(), "the loop's thread must not wait for a disk"
        assert self.gate.wait(20)
        if self.trouble is not None:
            raise self.trouble
        self.batches.append(len(records))
        super().append(records)

    def read(self, seqs: Sequence[int]) -> list[tuple[int, Record]]:
        self.reads += 1
        if self.unreadable is not None:
            raise self.unreadable
        return super().read(seqs)

    def history(self, job: int, first: int, last: int) -> list[tuple[int, Record]]:
        if self.unreadable is not None:
            raise self.unreadable
        return super().history(job, first, last)

    def free_bytes(self) -> tuple[int, int]:
        if self.away is not None:
            raise self.away
        return self.free


class Bench:
    """A driver, its disk, and what it delivered."""

    def __init__(self) -> None:
        self.disk = Disk()
        self.delivered: list[Effect] = []
        self.clock = Clock()
        self.driver = Driver(Core(CoreConfig(), None), self.disk, self.clock, self.delivered.append)  # type: ignore[arg-type]
        self.driver.post(events.Recover(wall_ns=0))


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    made.disk.gate.set()
    await made.driver.close()
    if made.driver.failed.done() and not made.driver.failed.cancelled():
        made.driver.failed.exception()


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(0.001)


def create(job_id: str, count: int = 1) -> Callable[[int], events.Event]:
    return lambda number: create_event(number, job_id, count)


def hello(session: str) -> events.Attach:
    return events.Attach(
        session=SessionId(session),
        worker_id=WorkerId(session),
        incarnation=b"1",
        protocol_major=1,
        slots=1,
        window=1,
        task_types=frozenset("t"),
    )


async def test_an_answer_comes_when_what_it_answers_is_durable(bench: Bench) -> None:
    bench.disk.gate.clear()
    asked = asyncio.create_task(bench.driver.ask(create("a")))
    await asyncio.sleep(0.02)
    assert not asked.done()
    assert len(bench.disk.rows) <= 1  # the epoch at most
    bench.disk.gate.set()
    assert not (await asked).existed
    assert bench.driver.durable_seq == len(bench.disk.rows) == bench.driver.core.state.seq


async def test_what_gathers_during_a_commit_is_one_commit_together(bench: Bench) -> None:
    await bench.driver.ask(create("first"))
    before = len(bench.disk.batches)
    bench.disk.gate.clear()
    asked = [asyncio.create_task(bench.driver.ask(create(f"j{i}"))) for i in range(50)]
    await asyncio.sleep(0.02)
    more = [asyncio.create_task(bench.driver.ask(create(f"k{i}"))) for i in range(50)]
    await asyncio.sleep(0.02)
    bench.disk.gate.set()
    await asyncio.gather(*asked, *more)
    assert len(bench.disk.batches) == before + 2


async def test_a_refusal_does_not_wait_for_the_disk(bench: Bench) -> None:
    await bench.driver.ask(create("a", 1))
    bench.disk.gate.clear()
    waiting = asyncio.create_task(bench.driver.ask(create("b")))
    with pytest.raises(Conflict):
        await asyncio.wait_for(bench.driver.ask(lambda n: create_event(n, "a", 1, priority=3)), 5)
    bench.disk.gate.set()
    await waiting


async def test_a_caller_that_gives_up_harms_nobody(bench: Bench) -> None:
    bench.disk.gate.clear()
    asked = asyncio.create_task(bench.driver.ask(create("a")))
    await asyncio.sleep(0.01)
    asked.cancel()
    bench.disk.gate.set()
    await bench.driver.ask(create("b"))
    assert set(bench.driver.core.state.by_id) == {"a", "b"}


async def test_effects_leave_in_order_and_work_at_once(bench: Bench) -> None:
    bench.driver.post(hello("w"))
    await until(lambda: any(isinstance(e, effects.Welcome) for e in bench.delivered))
    bench.delivered.clear()
    bench.disk.gate.clear()
    asked = asyncio.create_task(bench.driver.ask(create("a")))
    await until(lambda: bool(bench.delivered))  # an ordinary assignment waits for nothing
    assert [type(effect) for effect in bench.delivered] == [effects.SendTasks]
    assert not asked.done()
    bench.disk.gate.set()
    await asked


async def test_a_full_disk_loses_nothing_and_goes_on_when_there_is_room(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "DISK_RETRY_S", 0.01)
    await bench.driver.ask(create("a"))
    bench.disk.trouble = JournalFull("full")
    asked = asyncio.create_task(bench.driver.ask(create("b")))
    await until(lambda: bench.driver.core.state.disk_low)
    with pytest.raises(DiskFull):
        await bench.driver.ask(create("c"))
    assert not asked.done()
    bench.disk.trouble = None
    assert not (await asked).existed
    bench.driver.tick()
    await until(lambda: not bench.driver.core.state.disk_low)
    await bench.driver.ask(create("c"))


async def test_whoever_waits_for_a_number_hears_when_it_is_durable_or_cannot_be(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "DISK_RETRY_S", 0.01)
    await bench.driver.ask(create("a"))
    assert await bench.driver.settled(bench.driver.core.state.seq)
    bench.disk.gate.clear()
    asked = asyncio.create_task(bench.driver.ask(create("b")))
    await until(lambda: "b" in bench.driver.core.state.by_id)
    settled = asyncio.create_task(bench.driver.settled(bench.driver.core.state.seq))
    await asyncio.sleep(0.01)
    assert not settled.done()
    bench.disk.trouble = JournalFull("full")
    bench.disk.gate.set()
    assert not await settled
    bench.disk.trouble = None
    await asked
    assert await bench.driver.settled(bench.driver.core.state.seq)


async def test_a_disk_that_runs_low_refuses_new_tasks_until_it_has_room(bench: Bench) -> None:
    bench.disk.free = (10 << 20, 1 << 40)
    bench.driver.tick()
    with pytest.raises(DiskFull):
        await bench.driver.ask(create("a"))
    bench.disk.free = (1 << 40, 1 << 40)
    bench.driver.tick()
    await bench.driver.ask(create("a"))


async def test_a_small_disk_is_low_at_a_twentieth(bench: Bench) -> None:
    bench.disk.free = (6 << 20, 100 << 20)
    bench.driver.tick()
    await bench.driver.ask(create("a"))
    bench.disk.free = (4 << 20, 100 << 20)
    bench.driver.tick()
    with pytest.raises(DiskFull):
        await bench.driver.ask(create("b"))


async def test_a_broken_journal_stops_the_program_and_answers_nobody(bench: Bench) -> None:
    await bench.driver.ask(create("a"))
    bench.disk.trouble = JournalBroken("the disk is gone")
    asked = asyncio.create_task(bench.driver.ask(create("b")))
    with pytest.raises(JournalBroken, match="the disk is gone"):
        await bench.driver.failed
    assert not asked.done()
    asked.cancel()
    assert explain_failure(JournalBroken("it is so")) == "it is so"


@pytest.mark.parametrize("what", ["records", "history"])
async def test_a_journal_that_cannot_be_read_stops_the_program_and_answers_nobody(bench: Bench, what: str) -> None:
    """Whoever asked is cancelled, which is no answer: a task of the up-stream link takes it for no word about a plan or an end."""
    await bench.driver.ask(create("a"))
    bench.disk.unreadable = JournalBroken("the disk is gone")
    read = bench.driver.read_records([2]) if what == "records" else bench.driver.read_history(1, 1, 2)
    reading = asyncio.create_task(read)
    await asyncio.wait((reading,))
    assert reading.cancelled()
    with pytest.raises(JournalBroken, match="the disk is gone"):
        await bench.driver.failed
    durable = len(bench.disk.rows)
    asked = asyncio.create_task(bench.driver.ask(create("b")))
    await asyncio.sleep(0.02)
    assert len(bench.disk.rows) == durable, "nothing is handled any more"
    assert not asked.done()
    asked.cancel()


async def test_a_disk_that_cannot_be_looked_at_stops_the_program(bench: Bench) -> None:
    bench.disk.away = OSError(5, "Input/output error")
    bench.driver.tick()
    with pytest.raises(JournalBroken, match="cannot be looked at"):
        await bench.driver.failed


async def test_a_defect_stops_the_program_and_says_so(bench: Bench) -> None:
    bench.driver.post("no event")  # type: ignore[arg-type]
    with pytest.raises(KeyError) as caught:
        await bench.driver.failed
    assert "a defect stopped the orchestrator" in explain_failure(caught.value)


async def test_closing_commits_what_is_there(bench: Bench) -> None:
    asked = asyncio.create_task(bench.driver.ask(create("a")))
    await asyncio.sleep(0)
    await bench.driver.close()
    await asked
    assert len(bench.disk.rows) == bench.driver.core.state.seq


async def test_closing_does_not_wait_for_a_full_disk(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "DISK_RETRY_S", 0.01)
    await bench.driver.ask(create("a"))
    bench.disk.trouble = JournalFull("full")
    asked = asyncio.create_task(bench.driver.ask(create("b")))
    await until(lambda: bench.driver.core.state.disk_low)
    await asyncio.wait_for(bench.driver.close(), 5)
    assert not asked.done()
    asked.cancel()
    error = bench.driver.failed.exception()
    assert isinstance(error, JournalFull)
    assert "make room, then start again" in explain_failure(error)


async def test_watchers_are_woken_by_what_is_durable(bench: Bench) -> None:
    await bench.driver.ask(create("a"))
    changed = bench.driver.watch(1)
    bench.disk.gate.clear()
    asked = asyncio.create_task(
        bench.driver.ask(lambda n: events.CancelJob(request=n, job_id=JobId("a"), cause="tired"))
    )
    await asyncio.sleep(0.02)
    assert not changed.is_set()
    bench.disk.gate.set()
    await asyncio.wait_for(changed.wait(), 5)
    await asked
    bench.driver.unwatch(1, changed)
    changed.clear()
    await bench.driver.ask(lambda n: events.PurgeJob(request=n, job_id=JobId("a")))
    assert not changed.is_set()


async def test_fresh_outcomes_are_read_from_memory_and_old_ones_from_the_journal(bench: Bench) -> None:
    await bench.driver.ask(create("a", 2))
    await bench.driver.ask(lambda n: events.CancelTask(request=n, job_id=JobId("a"), index=0, cause=""))
    seq = bench.driver.core.state.by_id["a"].outcome_seqs[0]
    (cached,) = await bench.driver.read_records([seq])
    assert bench.disk.reads == 0
    found = await bench.driver.read_records([2, seq, 99])
    assert [number for number, _ in found] == [2, seq]
    assert found[1] == cached
    assert bench.disk.reads == 1


async def test_ticks_come_with_each_sweep_and_when_a_timer_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses between ticks are looked at, not waited for."""
    made = Bench()
    now = made.driver.clock.monotonic_ns()
    made.driver.core.state.arm(now + 20_000_000, "retry", 1, 0)
    pauses: list[float] = []
    ticks = 0

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise asyncio.CancelledError

    def tick() -> None:
        nonlocal ticks
        ticks += 1
        made.driver.core.state.timers.clear()

    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "sleep", pause)
        patch.setattr(made.driver, "tick", tick)
        with pytest.raises(asyncio.CancelledError):
            await tick_forever(made.driver)
    sweep_s = made.driver.core.config.sweep_ns / 1e9
    assert pauses == [pytest.approx(0.02, rel=1e-3), sweep_s, sweep_s]
    assert ticks == 2
    await made.driver.close()


async def test_nothing_expires_while_nothing_can_be_recorded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk for longer than any lease and deadline: the farm waits, and goes on where it stood."""
    monkeypatch.setattr(driver_module, "DISK_RETRY_S", 0.01)
    driver, clock = bench.driver, bench.clock
    driver.post(hello("w"))
    spec = JobSpec(template=TaskTemplate(type="t", timeouts=Timeouts(total_ns=100 * SECOND_NS)))
    await driver.ask(
        lambda n: events.CreateJob(request=n, job_id=JobId("a"), spec=spec, payloads=[b"x", b"y"], close=True)
    )
    driver.tick()
    await until(lambda: len(driver.core.state.jobs[1].live) == 1)
    bench.disk.trouble = JournalFull("full")
    waiting = asyncio.create_task(driver.ask(lambda n: events.PauseJob(request=n, job_id=JobId("a"), paused=True)))
    await until(lambda: driver.stalled)
    for _ in range(3):
        clock.now += 90 * SECOND_NS
        driver.tick()
        await asyncio.sleep(0)
    job = driver.core.state.jobs[1]
    assert (len(job.live), job.ended_count) == (1, 0)
    bench.disk.trouble = None
    await waiting
    driver.tick()
    await asyncio.sleep(0)
    assert (len(job.live), job.ended_count) == (1, 0), "the first tick finds a gap, which counts against nobody"
    driver.tick()
    await until(lambda: job.ended)
    assert not driver.core.state.workers["w"].lost, "its lease runs anew; what was too late by its deadline expires now"


async def test_a_full_disk_does_not_hurry_the_clock(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """With time standing still, a deadline that is overdue would have the ticker spin."""
    monkeypatch.setattr(driver_module, "DISK_RETRY_S", 0.01)
    await bench.driver.ask(create("a"))
    bench.driver.core.state.arm(0, "total", 1, 0, 1)
    bench.driver.stalled = True
    ticks: list[int] = []
    monkeypatch.setattr(bench.driver, "tick", lambda: ticks.append(1))
    pauses: list[float] = []

    async def sleep(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) == 3:
            raise asyncio.CancelledError

    monkeypatch.setattr(timers, "asyncio", SimpleNamespace(sleep=sleep))
    with pytest.raises(asyncio.CancelledError):
        await tick_forever(bench.driver)
    assert pauses == [bench.driver.core.config.sweep_ns / 1e9] * 3


async def test_whoever_has_been_read_counts_before_the_time_is_looked_at(bench: Bench) -> None:
    """A tick that comes before a hello in the same turn must not end the lease that the hello renews."""
    bench.driver.post(hello("s1"))
    await until(lambda: "s1" in bench.driver.core.state.sessions)
    bench.driver.post(events.Detach(session=SessionId("s1")))
    (worker,) = bench.driver.core.state.workers.values()
    worker.heard_ns -= worker.lease_ns + SECOND_NS
    bench.driver.tick()
    bench.driver.post(replace(hello("s2"), worker_id=WorkerId("s1")))
    await until(lambda: worker.session == "s2")
    assert not worker.lost


class Copier(Disk):
    """A journal whose copy takes until it is `whole`, or until it is not wanted any more."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.copy = directory / "copy" / "journal"
        self.whole = threading.Event()
        self.heeds = True
        self.running = False

    def back_up(self, stopped: Callable[[], bool] = bool) -> Path:
        self.running = True
        self.copy.parent.mkdir()
        try:
            while not self.whole.wait(0.01):
                if self.heeds and stopped():
                    self.copy.parent.rmdir()
                    raise BackupStopped
            return self.copy
        finally:
            self.running = False


@pytest.fixture
def copier(bench: Bench, tmp_path: Path) -> Iterator[Copier]:
    disk = bench.driver._journal = Copier(tmp_path)
    yield disk
    disk.whole.set()


async def back_up(driver: Driver) -> Path:
    async with driver.backup() as path:
        assert path.parent.exists()
        return path


async def test_a_stop_ends_a_backup_at_once_and_lets_go_of_the_journal_after_it(bench: Bench, copier: Copier) -> None:
    asked = asyncio.create_task(back_up(bench.driver))
    await until(copier.copy.parent.exists)
    await bench.driver.close()
    assert (copier.running, copier.copy.parent.exists()) == (False, False)
    with pytest.raises(Unavailable, match="the orchestrator is stopping"):
        await asked


async def test_a_backup_whose_caller_is_cancelled_over_and_over_is_removed_when_its_thread_has_ended(
    bench: Bench, copier: Copier
) -> None:
    """The loop cancels once more whoever is left when it closes."""
    copier.heeds = False
    asked = asyncio.create_task(back_up(bench.driver))
    await until(copier.copy.parent.exists)
    closing = asyncio.create_task(bench.driver.close())
    await asyncio.sleep(0.01)
    for _ in range(3):
        asked.cancel()
        closing.cancel()
        await asyncio.sleep(0.01)
        assert not asked.done()
        assert not closing.done()
    copier.whole.set()
    await asyncio.wait((asked, closing))
    assert asked.cancelled()
    assert closing.cancelled()
    assert (copier.running, copier.copy.parent.exists()) == (False, False)
