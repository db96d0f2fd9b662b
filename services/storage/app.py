"""Puts the storage program together: backend, services, server; and the order in which they start and stop."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from antfarm import net, program  # isort: skip - before gRPC is loaded, which reads what antfarm.net sets

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from antfarm.address import is_loopback, join_address
from antfarm.content import keep_freed_buffers
from antfarm.interceptor import ErrorInterceptor
from antfarm.v1 import blob_pb2, blob_pb2_grpc, system_pb2, system_pb2_grpc
from services.storage.backends.filesystem import FilesystemBackend
from services.storage.servicer import BlobServicer, SystemServicer
from services.storage.settings import StorageSettings, file_directory

if TYPE_CHECKING:
    from services.storage.sweeper import Sweeper

log = logging.getLogger("antfarm.storage")

_SERVICES = (
    blob_pb2.DESCRIPTOR.services_by_name["BlobService"].full_name,
    system_pb2.DESCRIPTOR.services_by_name["SystemService"].full_name,
)


async def serve(settings: StorageSettings) -> int:
    """Serve until a signal; the program's exit code. UserError in one line when it cannot start."""
    tls = net.Tls.from_paths(settings.tls_cert, settings.tls_key, settings.tls_ca)
    net.check_bind(settings.host, tls, insecure=settings.insecure)
    directory, is_default = file_directory(settings.backend)
    stop = program.stop_on_signals()
    keep_freed_buffers()
    program.allow_open_files()
    backend = FilesystemBackend.open(directory, make_parents=is_default)
    try:
        blobs = BlobServicer(backend, streams_max=settings.streams_max)
        sweeper = _make_sweeper(settings, backend, directory, tls)
        server, health_servicer = _make_server(settings, blobs, backend.server_id, tls, sweeper)
        port = net.bind(server, settings.host, settings.port, tls, insecure=settings.insecure)
        await server.start()
        await _set_health(health_servicer, health_pb2.HealthCheckResponse.SERVING)
        log.info("serving %s", directory)
        program.ready(f"storage ready on {join_address(settings.host, port)}")
        background = [asyncio.create_task(program.watchdog())]
        if sweeper is not None:
            background.append(asyncio.create_task(sweeper.run()))
        try:
            await stop.wait()
        finally:
            for task in background:
                task.cancel()
            await asyncio.wait(background)
        program.notify("STOPPING=1")
        log.info("stopping: open streams get %g s", settings.drain_s)
        await _set_health(health_servicer, health_pb2.HealthCheckResponse.NOT_SERVING)
        await server.stop(settings.drain_s)
        await blobs.ended()
    finally:
        await backend.close()
    return program.EXIT_OK


def _make_sweeper(
    settings: StorageSettings, backend: FilesystemBackend, directory: Path, tls: net.Tls | None
) -> Sweeper | None:
    if not settings.orchestrators:
        return None
    from services.storage.record import Record  # most Storages never sweep, and need not load how
    from services.storage.sweeper import Sweeper

    record = Record(settings.orchestrators, tls)
    return Sweeper(backend, record, directory / "record.json", settings.ages, dry_run=settings.sweep_dry_run)


def _make_server(
    settings: StorageSettings,
    blobs: BlobServicer,
    server_id: str,
    tls: net.Tls | None,
    sweeper: Sweeper | None,
) -> tuple[grpc.aio.Server, health.aio.HealthServicer]:
    loopback = is_loopback(settings.host)
    warnings = () if loopback or tls is not None else ("insecure",)
    if warnings:
        log.warning("insecure: anybody who reaches %s can read and write blobs", settings.host)
    server = net.make_server([ErrorInterceptor()])
    blob_pb2_grpc.add_BlobServiceServicer_to_server(blobs, server)

    def all_warnings() -> tuple[str, ...]:
        return (*warnings, "sweep_waits") if sweeper is not None and sweeper.trouble else warnings

    system_pb2_grpc.add_SystemServiceServicer_to_server(
        SystemServicer(server_id=server_id, warnings=all_warnings), server
    )
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    if loopback:
        reflection.enable_server_reflection((*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    return server, health_servicer


async def _set_health(servicer: health.aio.HealthServicer, status: int) -> None:
    for name in ("", *_SERVICES):
        await servicer.set(name, status)
