"""Explanations put state and journal together, and tell nothing that a crash could take back."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Sequence

import pytest
from orchestrator_harness import create_event, each, failure, retrying

from antfarm.model import Ending, FailureClass, JobId, SessionId, WorkerId
from services.orchestrator.core import events
from services.orchestrator.core.machine import Core
from services.orchestrator.core.records import Record
from services.orchestrator.core.turn import CoreConfig
from services.orchestrator.journal.backup import SEQS_SKIPPED
from services.orchestrator.journal.base import JournalFull
from services.orchestrator.journal.memory import MemoryJournal
from services.orchestrator.runtime import driver as driver_module
from services.orchestrator.runtime import explainer as explainer_module
from services.orchestrator.runtime.driver import Driver
from services.orchestrator.runtime.explainer import Explainer

SESSION = SessionId("s")


class Clock:
    """Stands still: what is told of times is the same in every run."""

    def monotonic_ns(self) -> int:
        return 0

    wall_ns = monotonic_ns


class Disk(MemoryJournal):
    """A journal that may be full, and notes where its history is read."""

    def __init__(self) -> None:
        super().__init__()
        self.full = False
        self.looked_at: list[tuple[int, int]] = []

    def append(self, records: Sequence[tuple[int, Record]]) -> None:
        if self.full:
            raise JournalFull("full")
        super().append(records)

    def history(self, job: int, first: int, last: int) -> list[tuple[int, Record]]:
        self.looked_at.append((first, last))
        return super().history(job, first, last)


class Bench:
    """A driver with one worker of type t, and its explainer."""

    def __init__(self) -> None:
        self.disk = Disk()
        core = Core(CoreConfig(), random.Random(1))
        self.driver = Driver(core, self.disk, Clock(), lambda effect: None)
        self.explainer = Explainer(self.driver)
        self.driver.post(events.Recover(wall_ns=0))
        self.driver.post(
            events.Attach(
                session=SESSION,
                worker_id=WorkerId("w1"),
                incarnation=b"1",
                protocol_major=1,
                slots=1,
                window=1,
                task_types=frozenset("t"),
            )
        )

    async def create(self, job_id: str, count: int = 1, **spec: object) -> None:
        await self.driver.ask(lambda number: create_event(number, job_id, count, **spec))

    def end(self, job_id: str, index: int, attempt: int, failure_class: FailureClass | None = None) -> None:
        """The worker reports the end of an attempt."""
        fields = (
            {"ending": Ending.SUCCEEDED}
            if failure_class is None
            else {"ending": Ending.FAILED, "failure": failure(failure_class)}
        )
        outcome = events.Outcome(report_no=1, index=index, attempt=attempt, **fields)  # type: ignore[arg-type]
        self.driver.post(events.Outcomes(session=SESSION, job_id=job_id, epoch=1, outcomes=[outcome]))

    async def told(self, job_id: str, index: int | None = None) -> str:
        job = self.driver.core.state.by_id[job_id]
        explanation = self.explainer.job(job) if index is None else self.explainer.task(job, index)
        return str(await asyncio.wait_for(explanation, 10))

    async def turn(self) -> None:
        """Let the driver take what was posted."""
        await asyncio.sleep(0)
        await asyncio.sleep(0)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    made.disk.full = False
    await made.driver.close()


async def test_a_task_that_ended_is_told_with_all_its_attempts(bench: Bench) -> None:
    await bench.create("j", retry=retrying(2, 0))
    bench.end("j", 0, 1, FailureClass.APP)
    await bench.turn()
    bench.end("j", 0, 2, FailureClass.APP)
    await bench.turn()
    assert await bench.told("j", 0) == (
        "Task j/0 (t) is FAILED; it was submitted 0s ago.\n"
        "Attempt 1 failed on w1: ValueError: it went wrong\n"
        "    why:  Counted as failure 1 of 2 attempts; queued again at once.\n"
        "It failed: ValueError: it went wrong (attempt 2 on w1, after 0s)\n"
        "    why:  All 2 attempts are used.\n"
        "    help: Mend the cause, then `antfarm job retry j`."
    )


async def test_the_failure_at_the_head_of_a_chain_is_told(bench: Bench) -> None:
    await bench.create("a")
    await bench.create("b", dependencies=(each("a"),))
    await bench.create("c", dependencies=(each("b"),))
    bench.end("a", 0, 1, FailureClass.PERMANENT)
    await bench.turn()
    assert (await bench.told("c", 0)).startswith(
        "Task c/0 (t) is FAILED; it was submitted 0s ago.\n"
        "It failed: the task of job b that it needs did not succeed\n"
        "    why:  A task whose result it needs did not succeed.\n"
        "    help: Mend that one, and submit both anew.\n"
        "What failed first is task a/0:\n"
        "It failed: ValueError: it went wrong (attempt 1 on w1, after 0s)\n"
        "    why:  This kind of failure is permanent: no retry can help.\n"
    )
    assert await bench.told("a") == (
        "Job a (t) is FAILED: 1 of 1 task ended, 1 of them without success.\n"
        "1 task FAILED: ValueError: it went wrong\n"
        "    help: antfarm task explain a/0"
    )


async def test_what_a_crash_could_take_back_is_not_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "DISK_RETRY_S", 0.01)
    await bench.create("j")
    bench.disk.full = True
    bench.end("j", 0, 1)
    stalled = (
        "\nThe journal's disk is full: the farm waits.\n"
        "    why:  Nothing is acknowledged and nothing expires until there is room; only what was durable before is told here.\n"
        "    help: Make room on the orchestrator's disk: everything goes on by itself."
    )
    await bench.turn()
    assert bench.driver.core.state.by_id["j"].ended
    assert await bench.told("j", 0) == "Task j/0 (t) is ACTIVE; it was submitted 0s ago." + stalled
    assert (await bench.told("j")).startswith("Job j (t) is RUNNING: ")
    assert (await bench.told("j")).endswith(stalled)
    bench.disk.full = False
    assert await bench.told("j", 0) != ""
    while bench.driver.stalled:  # noqa: ASYNC110 - the driver has no event for it
        await asyncio.sleep(0.005)
    assert (await bench.told("j", 0)).splitlines()[1] == "It succeeded: attempt 1 on w1, which ran for 0s."


async def test_history_is_read_in_pieces_from_the_newest_on_and_only_where_there_is_some(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.create("plain")
    assert "ACTIVE" in await bench.told("plain", 0)
    bench.end("plain", 0, 1)
    await bench.create("cancelled")
    await bench.driver.ask(lambda n: events.CancelJob(request=n, job_id=JobId("cancelled"), cause=""))
    await bench.told("cancelled", 0)
    assert bench.disk.looked_at == [], "no attempt of these jobs is on record"
    await bench.create("j", retry=retrying(4, 0))
    for attempt in (1, 2, 3):
        bench.end("j", 0, attempt, FailureClass.APP)
        await bench.turn()
        await bench.create(f"other{attempt}", 1, type="u")
    monkeypatch.setattr(explainer_module, "SPAN", 2)
    text = await bench.told("j", 0)
    assert [f"Attempt {n} failed" in text for n in (1, 2, 3)] == [True] * 3
    assert text.index("Attempt 1 ") < text.index("Attempt 2 ") < text.index("Attempt 3 ")
    spans = bench.disk.looked_at
    assert spans[0][1] == bench.driver.durable_seq
    assert all(older[1] < newer[0] for newer, older in itertools.pairwise(spans))
    assert spans[-1][0] == bench.driver.core.state.by_id["j"].created_seq
    monkeypatch.setattr(explainer_module, "SPANS_MAX", 1)
    assert "\nWhat came before these attempts was not looked for.\n" in await bench.told("j", 0)


async def test_attempts_of_before_a_restored_backup_are_found_below_the_leap_of_the_numbers(bench: Bench) -> None:
    await bench.create("j", retry=retrying(3, 0))
    bench.end("j", 0, 1, FailureClass.APP)
    await bench.turn()
    await bench.create("other", 1, type="u")
    bench.driver.core.state.seq += SEQS_SKIPPED  # as a restore does
    await bench.create("another", 1, type="u")
    bench.end("j", 0, 2, FailureClass.APP)
    await bench.turn()
    text = await bench.told("j", 0)
    assert [f"Attempt {n} failed" in text for n in (1, 2)] == [True] * 2
    assert "not looked for" not in text
    assert len(bench.disk.looked_at) == 3, "the second look finds nothing, the third begins with the job's last record"


async def test_more_attempts_than_are_shown_are_counted_when_all_of_the_job_was_read(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.create("j", retry=retrying(40, 0))
    for attempt in range(1, 26):
        bench.end("j", 0, attempt, FailureClass.APP)
        await bench.turn()
    text = await bench.told("j", 0)
    assert text.splitlines()[1:3] == [
        "5 earlier attempts not shown.",
        "Attempt 6 failed on w1: ValueError: it went wrong",
    ]
    assert "not looked for" not in text
    monkeypatch.setattr(explainer_module, "SPAN", 22)
    assert (await bench.told("j", 0)).splitlines()[1] == "What came before these attempts was not looked for."


async def test_an_attempt_that_may_run_on_after_its_task_ended_is_told(bench: Bench) -> None:
    await bench.create("j")
    await bench.driver.ask(lambda n: events.CancelJob(request=n, job_id=JobId("j"), cause=""))
    assert (await bench.told("j", 0)).splitlines()[1:3] == [
        "Attempt 1 on w1 was told to stop, and may run still.",
        "    why:  Its end does not count any more.",
    ]


async def test_a_purged_job_at_the_head_of_a_chain_is_named_as_that(bench: Bench) -> None:
    await bench.create("a")
    await bench.create("b", dependencies=(each("a"),))
    await bench.create("c", dependencies=(each("b"),))
    bench.end("a", 0, 1, FailureClass.PERMANENT)
    await bench.turn()
    await bench.driver.ask(lambda n: events.PurgeJob(request=n, job_id=JobId("a")))
    of_b = (
        "It failed: the task of job a that it needs did not succeed\n"
        "    why:  Job a was purged, and with it what is known of its tasks.\n"
        "    help: Submit both anew."
    )
    assert await bench.told("b", 0) == "Task b/0 (t) is FAILED; it was submitted 0s ago.\n" + of_b
    assert (await bench.told("c", 0)).endswith("\nAs far back as is known, that is because of task b/0:\n" + of_b)
    await bench.create("a", type="u")  # another job under that id changes nothing of it
    assert (await bench.told("b", 0)).endswith(of_b)


async def test_a_task_that_needs_more_than_a_job_has_is_told_so(bench: Bench) -> None:
    await bench.create("a", 1)
    await bench.create("b", 2, dependencies=(each("a"),))
    assert (await bench.told("b", 1)).endswith(
        "\nIt failed: the task of job a that it needs did not succeed\n"
        "    why:  It needs task 1 of job a, which has 1 task.\n"
        "    help: Submit no more tasks than that job has."
    )
