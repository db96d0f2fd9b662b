"""`antfarm backup` and `antfarm restore`: a copy of what the orchestrator knows, and a new start from one."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import sys
from typing import Any

import grpc.aio

from antfarm import wire
from antfarm.cli.session import open_farm, output
from antfarm.errors import DataLoss, InvalidArgument
from antfarm.files import sync
from antfarm.program import EXIT_OK
from antfarm.v1 import backup_pb2

_MAGIC = b"SQLite format 3\0"
"""What every backup begins with."""


def add(commands: Any, flags: argparse.ArgumentParser) -> None:
    """Declare the subcommands."""
    about = "copy the journal of the running orchestrator into a file; it serves on meanwhile"
    making: argparse.ArgumentParser = commands.add_parser("backup", parents=[flags], help=about, description=about)
    making.add_argument("file", metavar="FILE", help="where to; must not exist yet")
    making.set_defaults(run=back_up)
    about = "make a backup the journal of an orchestrator that is not running"
    restoring: argparse.ArgumentParser = commands.add_parser("restore", help=about, description=about)
    restoring.add_argument("file", metavar="FILE", help="the backup")
    restoring.add_argument(
        "--state", metavar="DIR", required=True, help="state directory of the orchestrator, without a journal"
    )
    restoring.set_defaults(run=restore)


async def back_up(options: argparse.Namespace) -> int:
    """antfarm backup."""
    announced = b""
    with _Arrival(options.file) as arrival:
        async with open_farm(options) as farm:
            try:
                async for message in farm.connection.backups.CreateBackup(backup_pb2.CreateBackupRequest()):
                    arrival.take(message.chunk)
                    announced = message.sha256
            except grpc.aio.AioRpcError as error:
                raise wire.error_from_rpc(error) from None
        arrival.complete(announced)
    output(options).row({"file": arrival.path, "size_bytes": arrival.size_bytes, "sha256": arrival.digest.hexdigest()})
    return EXIT_OK


class _Arrival:
    """A file on its way in. It has its name when all of it is there, verified and synced, and never takes that of another."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self._part = self.path + ".part"
        self.size_bytes = 0
        self.digest = hashlib.sha256()

    def __enter__(self) -> _Arrival:
        if os.path.exists(self.path):
            raise InvalidArgument(f"{self.path} exists: give another name")
        self._file = open(self._part, "wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        os.unlink(self._part)

    def take(self, chunk: bytes) -> None:
        """The next bytes."""
        self.digest.update(chunk)
        self.size_bytes += self._file.write(chunk)

    def complete(self, sha256: bytes) -> None:
        """Give it its name. DataLoss when it is not what was sent."""
        if sha256 != self.digest.digest():
            raise DataLoss("what arrived of the backup does not match its digest; try again")
        self._file.flush()
        os.fsync(self._file.fileno())
        os.link(self._part, self.path)
        sync(os.path.dirname(self.path))


async def restore(options: argparse.Namespace) -> int:
    """antfarm restore: the orchestrator program does it, which knows what must be in a journal."""
    _check_kind(options.file)
    words = ("-m", "services.orchestrator", "--restore", options.file, "--state", options.state)
    process = await asyncio.create_subprocess_exec(sys.executable, *words)
    return await process.wait()


def _check_kind(path: str) -> None:
    """Refuse by its first bytes what is no database; more of a journal only the orchestrator knows."""
    try:
        with open(path, "rb") as file:
            head = file.read(len(_MAGIC))
    except OSError as error:
        raise InvalidArgument(f"{path}: {error.strerror}; give the file of a backup") from None
    if head != _MAGIC:
        raise InvalidArgument(f"{path} is not a backup of an orchestrator; `antfarm backup FILE` makes one")
