"""Constants of the model that are measured apart from the farm's work, in the same run: one commit, one byte of it, a pipe, a call, a beat, a worker.

Each is a median, so that one interruption does not count. Times of single things on an idle machine, not of things in a row.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from antfarm.client.blocking import Farm
from antfarm.model import Ending, JobId, JobSpec, SessionId, TaskState, TaskTemplate, WorkerId
from bench.measure import timed
from bench.tasks import noop
from services.orchestrator.core import events, records
from services.orchestrator.core.machine import Core
from services.orchestrator.core.turn import CoreConfig
from services.orchestrator.journal import codec
from services.orchestrator.journal.sqlite import SqliteJournal

COMMIT_MS = "one commit, ms"
WRITE_US_KIB = "writing to the journal, µs a KiB"
PIPE_MS = "a pipe to another process and back, ms"
CALL_MS = "a call to the idle orchestrator and back, ms"
SUBMIT_MS = "a submission that nobody runs, until it is durable, ms"
BEAT_US = "a heartbeat at the orchestrator, µs"
BEAT_WORKER_US = "a heartbeat at its worker, µs"
TURN_US = "a turn of the core with one worker, µs"
TURN_WORKER_US = "a turn of the core, for each further worker, µs"
QUEUED_JOURNAL_BYTES = "journal of a queued task beside its payload, bytes"
ENDED_JOURNAL_BYTES = "journal of an outcome beside its result, bytes"
ALONE_JOURNAL_BYTES = "the same of one that was reported alone, bytes"

PAUSE_S = 0.003
"""Between two of what is measured: a task that comes alone finds everybody asleep."""
BATCH = 256
HERD = 200
ROW_BYTES = 40
"""About what a row of the journal takes beside its body: its numbers, its place in the page and in the index."""
PAYLOAD = b"sixteen bytes ok"


def of_machine() -> dict[str, float]:
    """Those that need no farm."""
    commit_ms, write_us_kib = journal()
    turn_us, turn_worker_us = turns()
    return {
        COMMIT_MS: commit_ms,
        WRITE_US_KIB: write_us_kib,
        PIPE_MS: pipe_ms(),
        TURN_US: turn_us,
        TURN_WORKER_US: turn_worker_us,
        **journal_bytes(),
    }


def of_farm(farm: Farm) -> dict[str, float]:
    """Those of an idle farm that somebody is connected to."""
    job = farm.map(noop, range(1), name="constants")
    job.wait()

    def submit() -> None:
        farm.submit("bench.nobody", 1)
        farm.flush()

    found = {CALL_MS: _median_ms(lambda: job.status, 100), SUBMIT_MS: _median_ms(submit, 100)}
    for status in list(farm.jobs()):
        if not status.state.terminal:
            farm.job(status.job_id).cancel()
    return found


def _median_ms(work: Callable[[], object], count: int) -> float:
    """Milliseconds that it takes when it is asked for now and then."""
    taken = []
    for _ in range(count):
        time.sleep(PAUSE_S)
        taken.append(timed(work))
    return 1e3 * statistics.median(taken)


# ---- the journal ------------------------------------------------------------------------------------------------------


def _ended(count: int, result: bytes) -> records.TasksEnded:
    ended = [
        records.EndedTask(index=index, state=TaskState.SUCCEEDED, epoch=1, attempt=1, result=result, run_us=12)
        for index in range(count)
    ]
    return records.TasksEnded(job=1, worker_id=WorkerId("worker-1"), ended=ended)


def journal() -> tuple[float, float]:
    """Milliseconds of a commit of one small record, and microseconds that each further KiB adds."""
    small, large, large_kib = _ended(1, b"1"), _ended(16, bytes(64 << 10)), 16 * 64
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        kept = SqliteJournal(Path(directory))
        numbers = iter(range(1, 1_000_000))
        small_ms = _median_ms(lambda: kept.append([(next(numbers), small)]), 100)
        large_ms = _median_ms(lambda: kept.append([(next(numbers), large)]), 20)
        kept.close()
    return small_ms, max(large_ms - small_ms, 0.0) * 1e3 / large_kib


def journal_bytes() -> dict[str, float]:
    """What the records of a task take beside its payload and its result. No measurement: the same on every machine."""
    added = records.TasksAdded(job=1, first_index=0, payloads=[PAYLOAD] * BATCH, wall_ns=time.time_ns())
    return {
        QUEUED_JOURNAL_BYTES: len(codec.encode(added)[1]) / BATCH - len(PAYLOAD),
        ENDED_JOURNAL_BYTES: len(codec.encode(_ended(BATCH, PAYLOAD))[1]) / BATCH - len(PAYLOAD),
        ALONE_JOURNAL_BYTES: len(codec.encode(_ended(1, PAYLOAD))[1]) - len(PAYLOAD),
    }


# ---- hops -------------------------------------------------------------------------------------------------------------


def pipe_ms() -> float:
    """A byte to another process and back."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_echo, args=(theirs,))
    process.start()
    theirs.close()

    def there_and_back() -> None:
        ours.send_bytes(b"x")
        ours.recv_bytes()

    try:
        there_and_back()  # it has started
        return _median_ms(there_and_back, 100)
    finally:
        ours.close()
        process.join()


def _echo(pipe: Connection) -> None:
    try:
        while True:
            pipe.send_bytes(pipe.recv_bytes())
    except (EOFError, OSError):
        pass


# ---- the core ---------------------------------------------------------------------------------------------------------


def turns() -> tuple[float, float]:
    """Microseconds of one turn of the core (an event and the placement after it) beside one worker, and for each further one."""
    one, many = _turn_us(1), _turn_us(HERD)
    return one, (many - one) / (HERD - 1)


def _turn_us(workers: int) -> float:
    core = Core(CoreConfig(), random.Random(1))
    core.handle(events.Recover(wall_ns=1), 1)
    for number in range(workers):
        core.handle(_attach(number), 1)
    taken = []
    for number in range(1, 101):
        began = time.process_time()
        _task(core, f"j{number}")
        taken.append(time.process_time() - began)
        sessions = [worker.session for worker in core.state.workers.values() if worker.live]
        outcome = events.Outcome(report_no=number, index=0, attempt=1, ending=Ending.SUCCEEDED, result=b"1", run_us=1)
        report = events.Outcomes(session=sessions[0], job_id=JobId(f"j{number}"), epoch=1, outcomes=[outcome])  # type: ignore[arg-type]
        core.handle(report, 1)
    return 1e6 * statistics.median(taken)


def _attach(number: int) -> events.Attach:
    return events.Attach(
        session=SessionId(f"s{number}"),
        worker_id=WorkerId(f"w{number}"),
        incarnation=number.to_bytes(16, "big"),
        protocol_major=1,
        slots=1,
        window=1_025,
        task_types=frozenset({"t"}),
        dial=1,
    )


def _task(core: Core, job_id: str) -> None:
    spec = JobSpec(template=TaskTemplate(type="t"))
    core.handle(events.CreateJob(request=1, job_id=JobId(job_id), spec=spec, payloads=[PAYLOAD], close=True), 1)
    core.place(1)
