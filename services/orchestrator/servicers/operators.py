"""Tasks, workers and the server itself as operators see them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence

from antfarm import __version__, wire
from antfarm.errors import WorkerNotFound
from antfarm.interceptor import Context
from antfarm.model import PROTOCOL_MAJOR, PROTOCOL_MINOR, SECOND_NS, JobId, TaskState, WorkerId
from antfarm.v1 import (
    backup_pb2,
    backup_pb2_grpc,
    common_pb2,
    system_pb2,
    system_pb2_grpc,
    task_pb2,
    task_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)
from services.orchestrator.core import events, waiting
from services.orchestrator.core.health import probation_text
from services.orchestrator.core.jobs import no_task
from services.orchestrator.core.state import Job, Worker
from services.orchestrator.runtime.driver import Driver
from services.orchestrator.runtime.explainer import Explainer
from services.orchestrator.runtime.logbook import Logbook
from services.orchestrator.runtime.sessions import Sessions
from services.orchestrator.runtime.views import results_of, task_state
from services.orchestrator.servicers.jobs import find_job, page_number, page_size

DRAIN_LIMIT_NS = 30 * SECOND_NS
LOG_POLL_S = 0.5
BACKUP_CHUNK_BYTES = 1 << 20
LISTED_TEXT_MAX = 300
"""Characters of a failure's message in a list."""


class TaskServicer(task_pb2_grpc.TaskServiceServicer):
    """Single tasks."""

    def __init__(self, driver: Driver, logbook: Logbook) -> None:
        self._driver = driver
        self._logbook = logbook
        self._explainer = Explainer(driver)

    async def GetTask(self, request: task_pb2.GetTaskRequest, context: Context) -> task_pb2.GetTaskResponse:
        """One task, with its payload while that is kept."""
        job = self._find(request.job_id, request.index)
        return task_pb2.GetTaskResponse(
            task=await self._task(job, request.index), payload=job.payloads[request.index] or b""
        )

    async def ListTasks(self, request: task_pb2.ListTasksRequest, context: Context) -> task_pb2.ListTasksResponse:
        """In the order of the index; the token is the index at which the next page begins."""
        job = find_job(self._driver, request.job_id)
        size, start = page_size(request.page_size), page_number(request.page_token, default=0)
        states = set(request.states)
        response = task_pb2.ListTasksResponse()
        for index in range(start, job.task_count):
            if states and job.states[index] not in states:
                continue
            if len(response.tasks) == size:
                response.next_page_token = str(index)
                break
            task = self._brief(job, index)
            if task.HasField("last_failure"):
                _shorten(task.last_failure)
            response.tasks.append(task)
        await self._add_failures(job, response.tasks)
        return response

    async def _add_failures(self, job: Job, tasks: Sequence[task_pb2.Task]) -> None:
        """What is on record of those that ended without success: one read for all. Of a success nothing is read: there may be a million."""
        durable_seq = self._driver.durable_seq
        failed = {
            task.index: task
            for task in tasks
            if task.state > TaskState.SUCCEEDED and job.outcome_seqs[task.index] <= durable_seq
        }
        wanted = frozenset(failed)
        for _, record in await self._driver.read_records(sorted({job.outcome_seqs[index] for index in wanted})):
            for result in results_of(record, job, wanted):
                task = failed[result.index]
                task.worker_id = result.worker_id
                if result.failure is not None:
                    task.last_failure.CopyFrom(wire.failure_to_wire(result.failure))
                    _shorten(task.last_failure)

    async def ExplainTask(self, request: task_pb2.ExplainTaskRequest, context: Context) -> task_pb2.ExplainTaskResponse:
        """In words."""
        job = self._find(request.job_id, request.index)
        explanation = await self._explainer.task(job, request.index)
        return task_pb2.ExplainTaskResponse(findings=wire.findings_to_wire(explanation))

    async def CancelTask(self, request: task_pb2.CancelTaskRequest, context: Context) -> task_pb2.CancelTaskResponse:
        """Cancel; durable when it answers."""
        await self._driver.ask(
            lambda number: events.CancelTask(
                request=number, job_id=JobId(request.job_id), index=request.index, cause=request.cause[:1024]
            )
        )
        job = self._find(request.job_id, request.index)
        return task_pb2.CancelTaskResponse(task=await self._task(job, request.index))

    async def StreamTaskLogs(
        self, request: task_pb2.StreamTaskLogsRequest, context: Context
    ) -> AsyncIterator[task_pb2.StreamTaskLogsResponse]:
        """What it logged while this orchestrator listened; else the tail in its record."""
        job = self._find(request.job_id, request.index)
        key, cursor, any_text = (request.job_id, request.index), 0, False
        while True:
            ended = job.states[request.index] >= TaskState.SUCCEEDED
            cursor, text = self._logbook.read(key, cursor)
            if text:
                any_text = True
                yield task_pb2.StreamTaskLogsResponse(text=text)
            if ended or not request.follow:
                break
            try:
                await asyncio.wait_for(self._logbook.news.wait(), LOG_POLL_S)
            except TimeoutError:
                continue
        if not any_text:
            task = await self._task(job, request.index)
            tail = task.result.failure.log_tail or task.last_failure.log_tail
            if tail:
                yield task_pb2.StreamTaskLogsResponse(text=tail)

    def _find(self, job_id: str, index: int) -> Job:
        job = find_job(self._driver, job_id)
        if index >= job.task_count:
            raise no_task(job, index)
        return job

    def _brief(self, job: Job, index: int) -> task_pb2.Task:
        task = task_pb2.Task(
            job_id=job.job_id,
            index=index,
            type=job.template.type,
            state=int(task_state(job, index, durable_seq=self._driver.durable_seq)),  # type: ignore[arg-type]
            attempt=job.winners[index] & 0xFFFFFFFF,
        )
        note = job.notes.get(index)
        if note is not None:
            task.attempt = note.attempt
            task.app_failures = note.app_failures
            task.crashes = note.crashes
            task.infra_failures = note.infra_failures
            if note.last_failure is not None:
                task.last_failure.CopyFrom(wire.failure_to_wire(note.last_failure))
            if note.wait_until_ns is not None and job.states[index] == TaskState.WAITING:
                task.waits_for = "the pause before its next attempt"
        attempt = job.live.get(index)
        if attempt is not None:
            task.attempt = attempt.attempt
            task.worker_id = attempt.worker.worker_id
            active_ns = self._driver.clock.monotonic_ns() - attempt.assigned_ns
            task.active_for.CopyFrom(wire.duration_to_wire(active_ns))
            if attempt.progress is not None:
                task.progress = attempt.progress
            task.progress_text = attempt.progress_text
            backup = job.backups.get(index)
            if backup is not None:
                task.backup_attempt = backup.attempt
                task.backup_worker_id = backup.worker.worker_id
        elif job.states[index] == TaskState.WAITING and not task.waits_for:
            task.waits_for = "tasks of " + ", ".join(other.job_id for other, _, _ in job.dependencies)
        elif job.states[index] == TaskState.QUEUED:
            state = self._driver.core.state
            paused = state.paused_types.get(job.template.type)
            if paused is not None:
                until = probation_text(paused, self._driver.clock.monotonic_ns())
                task.waits_for = f"the end of its type's pause: {until}"
            elif (job.number, index) in state.alone:
                task.waits_for = f"a worker for itself: it {waiting.suspicion(note)}"
        return task

    async def _task(self, job: Job, index: int) -> task_pb2.Task:
        task = self._brief(job, index)
        seq = job.outcome_seqs[index]
        if seq:
            for _, record in await self._driver.read_records([seq]):
                for result in results_of(record, job, frozenset([index])):
                    task.result.CopyFrom(wire.result_to_wire(result))
                    task.worker_id = result.worker_id
        return task


def _shorten(failure: common_pb2.Failure) -> None:
    """What a page has of a failure: a thousand of them, whole, are no message."""
    failure.ClearField("traceback")
    failure.ClearField("log_tail")
    failure.message = failure.message[:LISTED_TEXT_MAX]


class WorkerServicer(worker_pb2_grpc.WorkerServiceServicer):
    """Workers."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    async def ListWorkers(
        self, request: worker_pb2.ListWorkersRequest, context: Context
    ) -> worker_pb2.ListWorkersResponse:
        """By id; the token is the last id of the page before."""
        size = page_size(request.page_size)
        response = worker_pb2.ListWorkersResponse()
        for worker_id, worker in sorted(self._driver.core.state.workers.items()):
            if worker_id <= request.page_token:
                continue
            if len(response.workers) == size:
                response.next_page_token = response.workers[-1].worker_id
                break
            response.workers.append(self._worker(worker))
        return response

    async def GetWorker(self, request: worker_pb2.GetWorkerRequest, context: Context) -> worker_pb2.GetWorkerResponse:
        """One worker."""
        return worker_pb2.GetWorkerResponse(worker=self._worker(self._find(request.worker_id)))

    async def DrainWorker(
        self, request: worker_pb2.DrainWorkerRequest, context: Context
    ) -> worker_pb2.DrainWorkerResponse:
        """Ask it to finish and leave."""
        limit_ns = wire.duration_from_wire(request.limit) if request.HasField("limit") else DRAIN_LIMIT_NS
        await self._drain(request.worker_id, drain=True, limit_ns=limit_ns)
        return worker_pb2.DrainWorkerResponse(worker=self._worker(self._find(request.worker_id)))

    async def UndrainWorker(
        self, request: worker_pb2.UndrainWorkerRequest, context: Context
    ) -> worker_pb2.UndrainWorkerResponse:
        """Let it get work again."""
        await self._drain(request.worker_id, drain=False, limit_ns=0)
        return worker_pb2.UndrainWorkerResponse(worker=self._worker(self._find(request.worker_id)))

    async def _drain(self, worker_id: str, *, drain: bool, limit_ns: int) -> None:
        await self._driver.ask(
            lambda number: events.DrainWorker(
                request=number, worker_id=WorkerId(worker_id), drain=drain, limit_ns=limit_ns
            )
        )

    def _find(self, worker_id: str) -> Worker:
        worker = self._driver.core.state.workers.get(worker_id)
        if worker is None:
            raise WorkerNotFound(f"no worker {worker_id[:200]!r} here: `antfarm worker list` shows those that are")
        return worker

    def _worker(self, worker: Worker) -> worker_pb2.Worker:
        return worker_pb2.Worker(
            worker_id=worker.worker_id,
            state=_worker_state(worker),
            host=worker.host,
            slots=worker.slots,
            window=worker.window,
            held=len(worker.live),
            task_types=sorted(worker.task_types),
            labels=dict(worker.labels),
            orchestrator=worker.orchestrator,
            silent_for=wire.duration_to_wire(self._driver.clock.monotonic_ns() - worker.heard_ns),
            succeeded_count=worker.succeeded,
            failed_count=worker.failed,
            software=worker.software,
            remark=self._remark(worker),
            resources=dict(worker.resources),
        )

    def _remark(self, worker: Worker) -> str:
        state, now_ns = self._driver.core.state, self._driver.clock.monotonic_ns()
        if worker.quarantine is not None:
            return probation_text(worker.quarantine, now_ns)
        if worker.alone_for is not None:
            return waiting.reservation(state, worker.alone_for)
        return waiting.leaving(worker) if waiting.is_leaving(worker) else waiting.keeping(state, worker)


def _worker_state(worker: Worker) -> worker_pb2.WorkerState.ValueType:
    if worker.gone:
        return worker_pb2.WORKER_STATE_GONE
    if worker.lost:
        return worker_pb2.WORKER_STATE_LOST
    if worker.draining:
        return worker_pb2.WORKER_STATE_DRAINING
    if worker.suspect or worker.session is None:
        return worker_pb2.WORKER_STATE_SUSPECT
    if worker.quarantine is not None:
        return worker_pb2.WORKER_STATE_QUARANTINED
    if worker.alone_for is not None:
        return worker_pb2.WORKER_STATE_RESERVED
    return worker_pb2.WORKER_STATE_READY


class SystemServicer(system_pb2_grpc.SystemServiceServicer):
    """The server itself."""

    def __init__(self, driver: Driver, sessions: Sessions, *, orchestrator_id: str, warnings: tuple[str, ...]) -> None:
        self._driver = driver
        self._sessions = sessions
        self._orchestrator_id = orchestrator_id
        self._warnings = warnings
        self._started_ns = driver.clock.monotonic_ns()

    async def GetServerInfo(
        self, request: system_pb2.GetServerInfoRequest, context: Context
    ) -> system_pb2.GetServerInfoResponse:
        """Who answers, and what an operator should know."""
        state = self._driver.core.state
        warnings = [*self._warnings]
        if state.history_gap:
            warnings.append("history_gap")
        if state.disk_low:
            warnings.append("disk_low")
        warnings += [f"quarantined worker {name}" for name in state.quarantined]
        warnings += [f"paused task type {name}" for name in state.paused_types]
        return system_pb2.GetServerInfoResponse(
            program="orchestrator",
            software=__version__,
            protocol_major=PROTOCOL_MAJOR,
            protocol_minor=PROTOCOL_MINOR,
            features=["backup", "dependencies", "hierarchy", "pause"],
            server_id=self._orchestrator_id,
            epoch=state.epoch,
            storage_address=self._sessions.storage_address,  # what workers hear, also where it was learned since the start
            uptime=wire.duration_to_wire(self._driver.clock.monotonic_ns() - self._started_ns),
            warnings=warnings,
        )


class BackupServicer(backup_pb2_grpc.BackupServiceServicer):
    """Copies of the journal."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    async def CreateBackup(
        self, request: backup_pb2.CreateBackupRequest, context: Context
    ) -> AsyncIterator[backup_pb2.CreateBackupResponse]:
        """The copy piece by piece, its digest at the end."""
        digest = hashlib.sha256()
        async with self._driver.backup() as path:
            with path.open("rb") as file:
                while chunk := await asyncio.to_thread(file.read, BACKUP_CHUNK_BYTES):
                    digest.update(chunk)
                    yield backup_pb2.CreateBackupResponse(chunk=chunk)
        yield backup_pb2.CreateBackupResponse(sha256=digest.digest())
