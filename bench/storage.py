"""`python -m bench.storage`: a large blob into and out of Storage, beside `cp` and a bare grpc.aio stream, in the same run.

The bare stream moves the same number of bytes between two processes of the same loop and options, with nothing done to them: no digest, no checksum, no
disk. Its ratio is therefore the price of everything that Storage promises. Rounds take turns, because the machine's speed changes by the minute.
"""

# ruff: noqa: N802 - methods have the names of their RPCs; a measurement prints
from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import uvloop

from antfarm import net
from antfarm.content import PIECE_BYTES, keep_freed_buffers
from antfarm.storage import AsyncStorage
from antfarm.v1 import blob_pb2, blob_pb2_grpc

MIB = 1024 * 1024


class Bare(blob_pb2_grpc.BlobServiceServicer):
    """Takes and gives bytes."""

    async def WriteBlob(self, request_iterator: Any, context: Any) -> blob_pb2.WriteBlobResponse:
        """Drop what comes."""
        async for _ in request_iterator:
            pass
        return blob_pb2.WriteBlobResponse()

    async def ReadBlob(self, request: blob_pb2.ReadBlobRequest, context: Any) -> None:  # type: ignore[override]
        """Send zeros, `offset` bytes a message."""
        chunk = bytes(request.offset)
        for _ in range(request.length // request.offset):
            await context.write(blob_pb2.ReadBlobResponse(chunk=chunk))


async def serve_bare() -> None:
    """The process that the bare stream talks to; it keeps its memory as Storage does."""
    keep_freed_buffers()
    server = net.make_server()
    blob_pb2_grpc.add_BlobServiceServicer_to_server(Bare(), server)  # type: ignore[abstract]
    port = net.bind(server, "127.0.0.1", 0, None, insecure=False)
    await server.start()
    print(f"bare ready on 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


async def bare_up(stub: blob_pb2_grpc.BlobServiceStub, size: int, chunk_bytes: int) -> None:
    """Send `size` bytes."""
    chunk = os.urandom(chunk_bytes)
    call = stub.WriteBlob()
    for _ in range(size // chunk_bytes):
        await call.write(blob_pb2.WriteBlobRequest(chunk=chunk))
    await call.done_writing()
    await call


async def bare_down(stub: blob_pb2_grpc.BlobServiceStub, size: int, chunk_bytes: int) -> None:
    """Receive `size` bytes."""
    call = stub.ReadBlob(blob_pb2.ReadBlobRequest(key="k", offset=chunk_bytes, length=size))
    received = 0
    while (message := await call.read()) is not grpc.aio.EOF:
        received += len(message.chunk)
    assert received == size


async def drain(storage: AsyncStorage, key: str) -> None:
    """Read a blob and drop it."""
    async for _ in storage.stream(key):
        pass


def copy(source: Path, target: Path) -> None:
    """`cp`, durable."""
    subprocess.run(["cp", source, target], check=True)
    with target.open("rb") as file:
        os.fsync(file.fileno())
    target.unlink()


def start(*command: str) -> tuple[subprocess.Popen[str], str]:
    """A program and its address."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().split()[-1]


def rss_mib(pid: int, field: str) -> int:
    """Memory of a process."""
    return int(Path(f"/proc/{pid}/status").read_text().partition(field + ":")[2].split()[0]) // 1024


async def measure(directory: Path, size: int, rounds: int, chunk_bytes: int) -> None:
    """Print a table of MiB/s, medians over the rounds."""
    keep_freed_buffers()
    source = directory / "source"
    with source.open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
        file.flush()
        os.fsync(file.fileno())
    bare, bare_address = start("-m", "bench.storage", "--bare")
    program, address = start("-m", "services.storage", "--port", "0", "--backend", f"file:{directory / 'storage'}")
    channel = net.open_channel(bare_address)
    stub = blob_pb2_grpc.BlobServiceStub(channel)
    results: dict[str, list[float]] = {}

    async def timed(name: str, work: Callable[[], Awaitable[object]]) -> None:
        started = time.perf_counter()
        await work()
        results.setdefault(name, []).append(size / MIB / (time.perf_counter() - started))

    storage = AsyncStorage(address)

    async def one_round(key: str) -> None:
        await timed("bare stream up", lambda: bare_up(stub, size, chunk_bytes))
        await timed("cp and fsync", lambda: asyncio.to_thread(copy, source, directory / "copy"))
        await timed("put", lambda: storage.put(key, source))
        await timed("bare stream down", lambda: bare_down(stub, size, chunk_bytes))
        await timed("stream out", lambda: drain(storage, key))
        await timed("download", lambda: storage.download(key, directory / "copy"))
        await timed("verify in place", lambda: storage.verify(key))
        await storage.delete(key)

    try:
        await storage.put("warm", b"x")
        before = rss_mib(program.pid, "VmRSS")
        for number in range(rounds):
            await one_round(f"blob-{number}")
        print(f"server memory: {before} MiB before, {rss_mib(program.pid, 'VmHWM')} MiB at the highest\n")
    finally:
        await storage.aclose()
        await channel.close()
        for process in (bare, program):
            process.terminate()
            process.communicate()
    print("| | MiB/s | of the bare stream | of cp |\n|---|---|---|---|")
    medians = {name: statistics.median(values) for name, values in results.items()}
    for name, value in medians.items():
        against = medians["bare stream up" if name in ("put", "bare stream up") else "bare stream down"]
        print(f"| {name} | {value:.0f} | {value / against:.0%} | {value / medians['cp and fsync']:.0%} |")


def main() -> None:
    """Read the flags and measure."""
    parser = argparse.ArgumentParser(prog="python -m bench.storage", description="Measure Storage on this machine.")
    parser.add_argument("--size-mib", type=int, default=1024, help="size of the blob (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (%(default)s)")
    parser.add_argument("--dir", type=Path, default=None, help="where to work; the disk that is measured")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        uvloop.run(serve_bare())
        return
    directory = Path(tempfile.mkdtemp(dir=options.dir))
    try:
        uvloop.run(measure(directory, options.size_mib * MIB, options.rounds, PIECE_BYTES))
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
