"""`antfarm blob`: what lies in Storage."""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from antfarm import net
from antfarm.address import parse_address
from antfarm.cli import stdin
from antfarm.cli.session import open_farm, output
from antfarm.errors import BlobNotFound, InvalidArgument
from antfarm.model import BlobRef
from antfarm.program import EXIT_OK
from antfarm.storage import AsyncStorage

_PIECE_BYTES = 1 << 20


def add(commands: Any, flags: argparse.ArgumentParser) -> None:
    """Declare the subcommands."""
    group = commands.add_parser("blob", help="what lies in Storage").add_subparsers(
        dest="verb", required=True, metavar="VERB"
    )

    def verb(name: str, run: Any, about: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = group.add_parser(name, parents=[flags], help=about, description=about)
        parser.add_argument("--storage", metavar="HOST:PORT", default="", help="Storage; default: the farm's")
        parser.set_defaults(run=run)
        return parser

    putting = verb("put", put, "store a file under a key")
    putting.add_argument("key", metavar="KEY")
    putting.add_argument("file", metavar="FILE", help="the file; -: standard input")
    getting = verb("get", get, "read a blob; nothing is written unless all of it is right")
    getting.add_argument("key", metavar="KEY")
    getting.add_argument("file", metavar="FILE", nargs="?", default="-", help="where to; default: standard output")
    listing = verb("list", list_blobs, "blobs by key")
    listing.add_argument("prefix", metavar="PREFIX", nargs="?", default="", help="only keys that start with it")
    stating = verb("stat", stat, "size and digest")
    stating.add_argument("key", metavar="KEY")
    removing = verb("rm", remove, "remove blobs")
    removing.add_argument("keys", metavar="KEY", nargs="+")


@asynccontextmanager
async def _storage(options: argparse.Namespace) -> AsyncIterator[AsyncStorage]:
    if options.storage:
        tls = net.Tls.from_paths(options.tls_cert, options.tls_key, options.tls_ca)
        async with AsyncStorage(parse_address(options.storage), tls) as storage:
            yield storage
        return
    async with open_farm(options) as farm:
        yield farm.connection.storage()


def _row(blob: BlobRef) -> dict[str, Any]:
    return {"key": blob.key, "size_bytes": blob.size_bytes, "sha256": blob.sha256.hex()}


async def put(options: argparse.Namespace) -> int:
    """antfarm blob put."""
    source: Any = stdin.pieces(_PIECE_BYTES) if options.file == "-" else Path(options.file)
    if isinstance(source, Path) and not source.is_file():
        raise InvalidArgument(f"{source}: no such file")
    async with _storage(options) as storage:
        output(options).rows([_row(await storage.put(options.key, source))])
    return EXIT_OK


def _check_target(name: str) -> None:
    if name != "-" and Path(name).is_dir():
        raise InvalidArgument(f"{name!r} is a directory: name the file that is to be written")


async def get(options: argparse.Namespace) -> int:
    """antfarm blob get."""
    _check_target(options.file)
    async with _storage(options) as storage:
        if options.file != "-":
            await storage.download(options.key, Path(options.file))
        else:
            async for piece in storage.stream(options.key):
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
    return EXIT_OK


async def list_blobs(options: argparse.Namespace) -> int:
    """antfarm blob list."""
    async with _storage(options) as storage:
        output(options).rows([_row(blob) async for blob in storage.list(options.prefix)], empty="no such blobs")
    return EXIT_OK


async def stat(options: argparse.Namespace) -> int:
    """antfarm blob stat."""
    async with _storage(options) as storage:
        output(options).row(_row(await storage.stat(options.key)))
    return EXIT_OK


async def remove(options: argparse.Namespace) -> int:
    """antfarm blob rm."""
    async with _storage(options) as storage:
        missing = [key for key in options.keys if not await storage.delete(key)]
    if missing:
        raise BlobNotFound(f"no such blob: {', '.join(missing)}")
    return EXIT_OK
