"""Puts the orchestrator together: journal, core, driver, sessions, services, up-stream link; and the order of start and stop.

Stop: sessions end first (workers keep running and come back), then the server, then the last commit, then the journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from antfarm import net, program  # isort: skip - before gRPC is loaded, which reads what antfarm.net sets

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from antfarm.address import is_loopback, join_address
from antfarm.errors import AntFarmError, Internal, Unavailable
from antfarm.failpoint import failpoint
from antfarm.interceptor import ErrorInterceptor
from antfarm.model import SECOND_NS
from antfarm.v1 import (
    backup_pb2,
    backup_pb2_grpc,
    job_pb2,
    job_pb2_grpc,
    report_queue_pb2,
    report_queue_pb2_grpc,
    system_pb2,
    system_pb2_grpc,
    task_pb2,
    task_pb2_grpc,
    work_queue_pb2,
    work_queue_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)
from services.orchestrator.core import effects, events
from services.orchestrator.core.machine import Core
from services.orchestrator.core.turn import CoreConfig
from services.orchestrator.journal.backup import restore
from services.orchestrator.journal.base import Journal, JournalBroken, JournalFull
from services.orchestrator.journal.mount import network_type
from services.orchestrator.journal.sqlite import SqliteJournal
from services.orchestrator.runtime.above import Above
from services.orchestrator.runtime.driver import Driver, explain_failure
from services.orchestrator.runtime.logbook import Logbook
from services.orchestrator.runtime.sessions import Sessions
from services.orchestrator.runtime.timers import SystemClock, tick_forever
from services.orchestrator.servicers.jobs import JobServicer
from services.orchestrator.servicers.operators import BackupServicer, SystemServicer, TaskServicer, WorkerServicer
from services.orchestrator.servicers.queues import ReportQueueServicer, WorkQueueServicer
from services.orchestrator.settings import OrchestratorSettings

if TYPE_CHECKING:
    from services.orchestrator.upstream import Upstream

log = logging.getLogger("antfarm.orchestrator")

STOP_GRACE_S = 1.0
FIRST_EPOCHS = 1 << 20
"""First epochs that orchestrators with one above them may have."""
_SERVICES = tuple(
    descriptor.full_name
    for module in (job_pb2, task_pb2, work_queue_pb2, report_queue_pb2, worker_pb2, system_pb2, backup_pb2)
    for descriptor in module.DESCRIPTOR.services_by_name.values()
)


async def serve(settings: OrchestratorSettings) -> int:
    """Serve until a signal; the program's exit code. UserError in one line when it cannot start."""
    if settings.restore:
        return _restore(settings)
    tls = net.Tls.from_paths(settings.tls_cert, settings.tls_key, settings.tls_ca)
    net.check_bind(settings.host, tls, insecure=settings.insecure)
    program.allow_open_files()
    stop = program.stop_on_signals()
    if kind := network_type(settings.state_directory):
        log.warning(
            "--state %s lies on a network file system (%s), where no lock and no write-ahead log of SQLite can be trusted:"
            " give a --state on a local disk",
            settings.state_directory,
            kind,
        )
    journal = SqliteJournal(settings.state_directory, settings.ballast_mib << 20)
    try:
        orchestrator = Orchestrator(settings, journal, tls)
        return await orchestrator.run(stop)
    except JournalBroken as error:
        raise Internal(str(error)) from None
    finally:
        journal.close()


def _restore(settings: OrchestratorSettings) -> int:
    directory = settings.state_directory
    state = restore(Path(settings.restore).expanduser(), directory, SystemClock().wall_ns())
    tasks = sum(job.task_count for job in state.jobs.values())
    log.info("restored to %s: %d jobs with %d tasks, epoch %d", directory, len(state.jobs), tasks, state.epoch)
    return program.EXIT_OK


class Orchestrator:
    """One orchestrator process: everything that lives between start and stop."""

    def __init__(self, settings: OrchestratorSettings, journal: Journal, tls: net.Tls | None) -> None:
        self._settings = settings
        self._tls = tls
        config = CoreConfig(
            orchestrator_id=journal.orchestrator_id,
            heartbeat_ns=int(settings.heartbeat_s * SECOND_NS),
            keep_ended_ns=settings.keep_ended_ns,
            payload_bytes_max=settings.queued_mib << 20,
            first_epoch=_first_epoch(journal.orchestrator_id) if settings.upstream else 1,
        )
        core = Core(config, random.SystemRandom())
        _replay(core, journal)
        self.driver = Driver(core, journal, SystemClock(), self._deliver)
        above = Above(settings.state_directory) if settings.upstream else None
        self.sessions = Sessions(
            core.state,
            owner=secrets.token_bytes(16),
            orchestrator_id=journal.orchestrator_id,
            storage_address=settings.storage or (above.storage_address if above is not None else ""),
        )
        self._upstream = self._make_upstream(journal, above) if above is not None else None
        self._health = health.aio.HealthServicer()
        self._server = self._make_server(journal)

    def _deliver(self, effect: effects.Effect) -> None:
        if not self.sessions.deliver(effect) and self._upstream is not None:
            self._upstream.deliver(effect)

    def _make_upstream(self, journal: Journal, above: Above) -> Upstream:
        # A tenth of what is loaded, and most orchestrators have none above.
        from services.orchestrator.upstream import Upstream

        settings = self._settings
        return Upstream(
            self.driver,
            self.sessions,
            address=settings.upstream,
            task_types=settings.task_types,
            slots=settings.upstream_slots,
            orchestrator_id=journal.orchestrator_id,
            storage_address=settings.storage,
            above=above,
            tls=self._tls,
        )

    def _make_server(self, journal: Journal) -> grpc.aio.Server:
        settings, driver = self._settings, self.driver
        loopback = is_loopback(settings.host)
        warnings = () if loopback or self._tls is not None else ("insecure",)
        if warnings:
            log.warning("insecure: anybody who reaches %s can run tasks here", settings.host)
        server = net.make_server([ErrorInterceptor()])
        logbook = Logbook(driver.core.state.by_id)
        job_pb2_grpc.add_JobServiceServicer_to_server(JobServicer(driver), server)
        task_pb2_grpc.add_TaskServiceServicer_to_server(TaskServicer(driver, logbook), server)
        work_queue_pb2_grpc.add_WorkQueueServiceServicer_to_server(WorkQueueServicer(driver, self.sessions), server)
        report_queue_pb2_grpc.add_ReportQueueServiceServicer_to_server(
            ReportQueueServicer(driver, self.sessions, logbook), server
        )
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(WorkerServicer(driver), server)
        backup_pb2_grpc.add_BackupServiceServicer_to_server(BackupServicer(driver), server)
        system_pb2_grpc.add_SystemServiceServicer_to_server(
            SystemServicer(
                driver,
                self.sessions,
                orchestrator_id=journal.orchestrator_id,
                warnings=warnings,
            ),
            server,
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if loopback:
            reflection.enable_server_reflection((*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        return server

    async def run(self, stop: asyncio.Event) -> int:
        """Serve until `stop`, the end of the up-stream link, or a failure of the journal."""
        settings, driver = self._settings, self.driver
        port = net.bind(self._server, settings.host, settings.port, self._tls, insecure=settings.insecure)
        failpoint("epoch.before_record")
        driver.post(events.Recover(wall_ns=driver.clock.wall_ns()))
        if self._upstream is None:
            self._give_up_parents()
        await self._server.start()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        background = [asyncio.create_task(tick_forever(driver)), asyncio.create_task(program.watchdog())]
        upstream = asyncio.create_task(self._upstream.run()) if self._upstream is not None else None
        program.tune_gc()
        program.ready(f"orchestrator ready on {join_address(settings.host, port)}")
        log.info("serving from %s, epoch %d", settings.state_directory, driver.core.state.epoch)
        waiting: list[asyncio.Future[None]] = [asyncio.create_task(_wait(stop)), driver.failed]
        if upstream is not None:
            waiting.append(upstream)
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            program.notify("STOPPING=1")
            for task in (*background, *waiting[:1], *([upstream] if upstream is not None else ())):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, AntFarmError):
                    await task
            await self._stop_serving()
        if upstream is not None and not upstream.cancelled() and (error := upstream.exception()) is not None:
            raise error
        if driver.failed.done() and not driver.failed.cancelled() and (error := driver.failed.exception()) is not None:
            log.error(
                "%s",
                explain_failure(error),
                exc_info=None if isinstance(error, (JournalBroken, JournalFull)) else error,
            )
            raise Internal(explain_failure(error))
        return program.EXIT_OK

    def _give_up_parents(self) -> None:
        """Give up what an earlier process took from an orchestrator above: nobody would ever be told how it ends, nor say that it may go."""
        tokens = [parent.token for parent in self.driver.core.state.parents.values()]
        if tokens:
            log.warning("started without --upstream: %d tasks of the orchestrator above are given up", len(tokens))
            cause = "this orchestrator was started without --upstream"
            self.driver.post(events.ParentsRevoked(tokens=tokens, cause=cause))

    async def _stop_serving(self) -> None:
        self.driver.dismiss()
        self.sessions.close_all(Unavailable("the orchestrator is stopping: attach again"))
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.stop(STOP_GRACE_S)
        await self.driver.close()

    async def _set_health(self, status: int) -> None:
        for name in ("", *_SERVICES):
            await self._health.set(name, status)


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


def _first_epoch(orchestrator_id: str) -> int:
    """Epochs of orchestrators below the same one lie apart: a parent's children have the same ids at each, and outputs are named by their tokens."""
    return 1 + int(orchestrator_id, 16) % FIRST_EPOCHS


def _replay(core: Core, journal: Journal) -> None:
    """Read the journal into the core. Garbage collection would only slow it down: nothing made here is garbage."""
    gc.disable()
    count = 0
    try:
        for seq, record in journal.replay():
            count += 1
            try:
                core.replay(seq, record)
            except (AssertionError, LookupError) as error:
                raise JournalBroken(
                    f"the journal is damaged: record {seq} does not follow from those before it ({error!r}); restore it from a backup"
                ) from None
    finally:
        gc.enable()
    if core.state.history_gap:
        log.warning(
            "history_gap: the journal once went back in time (a restored backup); what was submitted in the gap is not in it"
        )
    if count:
        log.info("journal read: %d jobs, %d records", len(core.state.jobs), count)
