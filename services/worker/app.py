"""Composition of the worker: what is made in which order, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
from collections.abc import Coroutine
from typing import Any, TypeVar

from antfarm import net, program
from antfarm.address import parse_address
from antfarm.link import Link, WorkerIdentity
from antfarm.link.stream import now_ns
from antfarm.model import SECOND_NS
from services.worker.executors.process import ChildSpec, child_environment
from services.worker.leave import Leave
from services.worker.runtime.driver import Driver, Manner
from services.worker.runtime.inputs import InputReader
from services.worker.runtime.place import Place, claim, default_state
from services.worker.runtime.spool import FileOutbox
from services.worker.settings import WorkerSettings

log = logging.getLogger("antfarm.worker")

T = TypeVar("T")

VERDICTS_TIMEOUT_S = 5.0
"""How long a drained worker waits for verdicts on its last reports, also while it dials; the outbox keeps what is left for the next start.

An orchestrator that has just been restarted repeats what is held by a worker that leaves before it is back.
"""


async def run_worker(settings: WorkerSettings) -> int:
    """Work until a signal or the orchestrator asks for a drain. The exit code.

    InvalidArgument in one line for settings and apps that cannot be used; what the orchestrator refuses for good is raised too.
    """
    tls = net.Tls.from_paths(settings.tls_cert, settings.tls_key, settings.tls_ca)
    addresses = [parse_address(address) for address in settings.addresses]
    place = claim(settings.state or default_state(dict(os.environ)), settings.worker_id)
    place.sweep()
    open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    program.allow_open_files()  # five of them for each child
    stop = program.stop_on_signals()
    defect = _watch_for_defects()
    leave = Leave(stop, settings.drain_s)
    driver = Driver(_manner(settings), _child_spec(settings, place, open_files), on_drain=leave.ask)
    outbox = FileOutbox(place.outbox)
    try:
        types = await _or_stopped(driver.start(), stop)
        if types is None:
            return program.EXIT_OK
        program.notify("READY=1\nSTATUS=dialling")  # the service is up, even when its orchestrator is not yet
        link = Link(
            addresses=addresses,
            identity=_identity(settings, place.worker_id, tuple(types), driver.first_window),
            handler=driver,
            tls=tls,
            outbox=outbox,
            queue=outbox.queue,
            on_other_queue=driver.on_other_queue,
        )
        driver.use(link, InputReader(place.inputs, lambda: link.channel))
        await _serve(place.worker_id, driver, link, leave, defect, settings)
    finally:
        await driver.close()
        outbox.close()
    return program.EXIT_OK


def _watch_for_defects() -> asyncio.Future[None]:
    """A future that fails with the first exception of a callback: the program's state cannot be trusted after it.

    The process then ends without a word to anybody; its outbox, its lease and the next process speak for it.
    """
    loop = asyncio.get_running_loop()
    defect: asyncio.Future[None] = loop.create_future()

    def on_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if (
            error is None or isinstance(error, OSError) or defect.done()
        ):  # gRPC's poller complains of OSErrors now and then
            loop.default_exception_handler(context)
        else:
            defect.set_exception(error)

    loop.set_exception_handler(on_exception)
    return defect


async def _serve(
    worker_id: str,
    driver: Driver,
    link: Link,
    leave: Leave,
    defect: asyncio.Future[None],
    settings: WorkerSettings,
) -> None:
    """Pull and run until it is to leave, then drain. Raises what ended the link for good, and defects."""
    running = asyncio.create_task(link.run())
    drain = asyncio.create_task(_drain_when_told(leave, worker_id, driver, link))
    helpers = [asyncio.create_task(_announce(settings, worker_id, link)), asyncio.create_task(program.watchdog())]
    try:
        await asyncio.wait([running, drain, defect], return_when=asyncio.FIRST_COMPLETED)
        for ended in (defect, running, drain):
            if ended.done():
                await ended
    finally:
        for task in (running, drain, *helpers):
            task.cancel()
        await asyncio.gather(running, drain, *helpers, return_exceptions=True)


async def _drain_when_told(leave: Leave, worker_id: str, driver: Driver, link: Link) -> None:
    """Drain and say goodbye. A drain that is asked for again goes on with its new limit; one that the orchestrator ends before is followed by work."""
    while True:
        until_ns = await leave.wanted()
        limit_s = max(until_ns - now_ns(), 0) / SECOND_NS
        if leave.for_good:
            program.notify("STOPPING=1")
        log.info("draining: running tasks get %g s", round(limit_s, 1))
        draining = asyncio.create_task(_drain(limit_s, worker_id, driver, link))
        changing = asyncio.create_task(leave.changed(until_ns))
        try:
            await asyncio.wait([draining, changing], return_when=asyncio.FIRST_COMPLETED)
            if draining.done():
                return await draining
        finally:
            for task in (draining, changing):
                task.cancel()
            await asyncio.gather(draining, changing, return_exceptions=True)
        if leave.until_ns is None:
            log.info("the drain is over: working again")
            driver.resume()


async def _drain(limit_s: float, worker_id: str, driver: Driver, link: Link) -> None:
    await driver.drain(limit_s)
    if await link.settled(VERDICTS_TIMEOUT_S):
        await link.goodbye("drained")
    else:  # no goodbye, which would say that nothing is held any more
        log.warning("%d reports have no verdict yet; the next start of %s sends them", link.unacked_count, worker_id)


async def _announce(settings: WorkerSettings, worker_id: str, link: Link) -> None:
    """The ready line, once attached."""
    await link.first_attached()
    program.tune_gc()
    program.ready(f"worker {worker_id} ready on {link.address} ({settings.slot_count} slots)")


async def _or_stopped(coroutine: Coroutine[Any, Any, T], stop: asyncio.Event) -> T | None:
    """The coroutine's result, or None when a signal comes first."""
    task, stopping = asyncio.ensure_future(coroutine), asyncio.create_task(stop.wait())
    await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if task.done():
        return task.result()
    task.cancel()
    return None


def _manner(settings: WorkerSettings) -> Manner:
    return Manner(
        slots=settings.slot_count,
        capacity=settings.resources,
        grace_ns=int(settings.cancel_grace_s * SECOND_NS),
        storage_override=parse_address(settings.storage) if settings.storage else "",
    )


def _child_spec(settings: WorkerSettings, place: Place, open_files: int) -> ChildSpec:
    tls = (settings.tls_cert, settings.tls_key, settings.tls_ca)
    return ChildSpec(
        apps=settings.app,
        installed_apps=settings.installed_apps,
        scratch=place.scratch,
        allow_pickle=settings.allow_pickle,
        tls=tls if any(tls) else (),
        open_files=open_files,
        env=child_environment(os.environ, settings.env),
    )


def _identity(settings: WorkerSettings, worker_id: str, types: tuple[str, ...], window: int) -> WorkerIdentity:
    return WorkerIdentity(
        worker_id=worker_id,
        slots=settings.slot_count,
        window=window,
        task_types=types,
        labels=settings.labels,
        resources=settings.resources,
        host=settings.node or socket.gethostname(),
    )
