"""Content of a blob on its way out of this process: cut into messages and hashed, in constant memory.

Knows nothing of Storage or gRPC. Hashing and reading of files happen in threads, one piece ahead of the sender; a change of threads costs as much
as hashing some tens of KiB, so small pieces are put together first.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from functools import cache
from pathlib import Path
from typing import BinaryIO, Protocol

from antfarm.errors import InvalidArgument

PIECE_BYTES = 512 * 1024
"""Content in one message. Measured: smaller pieces cost calls, larger ones cache misses."""
_LARGEST_BUFFER_BYTES = 8 * 1024 * 1024
_THREAD_BYTES_MIN = 64 * 1024
"""From this size hashing goes to a thread, so that it does not hold the loop."""


@cache
def keep_freed_buffers() -> None:
    """Have the C library keep freed buffers of content for the next ones; once in a process.

    Each piece is a few buffers of its size. glibc gives such back to the kernel when they are freed and takes fresh, zeroed pages for the next: 1.5 s
    of kernel time for each GiB, as much as all other work on it. It learns from the largest buffer freed so far what to keep (mallopt(3), "dynamic mmap
    threshold"), up to 16 MiB after this one. Other C libraries do not notice.
    """
    bytes(_LARGEST_BUFFER_BYTES)


class Digest:
    """SHA-256 of content as it flows: a piece is hashed in a thread while the caller sends or fetches the next."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._hash = hashlib.sha256()
        self._running: asyncio.Future[None] | None = None

    def update_here(self, piece: bytes) -> None:
        """Take the next bytes in the calling thread."""
        self.size_bytes += len(piece)
        self._hash.update(piece)

    async def update(self, piece: bytes) -> None:
        """Take the next bytes; returns before a large piece is hashed."""
        await self._settle()
        self.size_bytes += len(piece)
        if len(piece) < _THREAD_BYTES_MIN:
            self._hash.update(piece)
        else:
            self._running = asyncio.get_running_loop().run_in_executor(None, self._hash.update, piece)

    async def sha256(self) -> bytes:
        """Digest of all that came."""
        await self._settle()
        return self._hash.digest()

    async def _settle(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            await running


Source = bytes | bytearray | memoryview | Path | AsyncIterable[bytes]
"""The forms that content may have."""


class Content(Protocol):
    """What is to be written."""

    repeatable: bool
    """True when `pieces` may be called again."""
    size_bytes: int | None
    """Its size, where it is known beforehand."""
    sha256: bytes
    """Its digest, where it is known beforehand; else empty."""
    digest: Digest
    """Size and digest of the pieces that the last call of `pieces` has given so far."""

    def pieces(self) -> AsyncGenerator[bytes, None]:
        """The bytes from the start, in pieces of at most PIECE_BYTES. The caller closes the generator."""


class BytesContent:
    """Bytes in memory. Make it by `of`."""

    repeatable = True

    def __init__(self, data: bytes, digest: Digest, sha256: bytes) -> None:
        self._data = data
        self.digest = digest
        self.size_bytes: int | None = len(data)
        self.sha256 = sha256

    @classmethod
    async def of(cls, data: bytes) -> BytesContent:
        """Content that knows its digest beforehand."""
        digest = Digest()
        await digest.update(data)
        return cls(data, digest, await digest.sha256())

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """See `Content`."""
        for start in range(0, len(self._data), PIECE_BYTES):
            yield self._data[start : start + PIECE_BYTES]


class FileContent:
    """A file. Make it by `of`. It must not change while it is read; the digest is that of what was sent."""

    repeatable = True
    sha256 = b""

    def __init__(self, path: Path, size_bytes: int | None) -> None:
        self._path = path
        self.size_bytes = size_bytes
        self.digest = Digest()

    @classmethod
    async def of(cls, path: Path) -> FileContent:
        """Content of a file; OSError when there is none."""
        size_bytes = (await asyncio.to_thread(path.stat)).st_size
        return cls(path, size_bytes or None)  # pipes and the kernel's own files say 0 and have content

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """See `Content`. One piece is read ahead."""
        self.digest = Digest()
        file = await asyncio.to_thread(self._path.open, "rb")
        ahead = asyncio.create_task(asyncio.to_thread(self._read, file))
        try:
            while piece := await ahead:
                ahead = asyncio.create_task(asyncio.to_thread(self._read, file))
                yield piece
        finally:
            await asyncio.wait((ahead,))
            file.close()

    def _read(self, file: BinaryIO) -> bytes:
        piece = file.read(PIECE_BYTES)
        self.digest.update_here(piece)
        return piece


class IteratorContent:
    """An asynchronous iterator of pieces of any size, which can be gone through once."""

    repeatable = False
    size_bytes: int | None = None
    sha256 = b""

    def __init__(self, items: AsyncIterable[bytes]) -> None:
        self._items = items
        self.digest = Digest()

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """See `Content`. Neither too large nor needlessly small."""
        waiting, waiting_bytes = list[bytes](), 0
        async for given in self._items:
            item = _bytes_of(given)
            waiting.append(item)
            waiting_bytes += len(item)
            if waiting_bytes >= PIECE_BYTES:
                joined = b"".join(waiting)
                whole = waiting_bytes - waiting_bytes % PIECE_BYTES
                for start in range(0, whole, PIECE_BYTES):
                    piece = joined[start : start + PIECE_BYTES]
                    await self.digest.update(piece)
                    yield piece
                waiting, waiting_bytes = [joined[whole:]], waiting_bytes - whole
        if waiting_bytes:
            piece = b"".join(waiting)
            await self.digest.update(piece)
            yield piece


class FileSink:
    """A new file that takes content: a piece is written in a thread while the caller fetches the next. An `async with` block closes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._running: asyncio.Future[int] | None = None

    async def __aenter__(self) -> FileSink:
        self._file = await asyncio.to_thread(self._path.open, "xb")
        return self

    async def write(self, piece: bytes) -> None:
        """Take the next bytes; an OSError may come one call later, or when the block ends."""
        assert self._file is not None, "write inside the async with block"
        await self._settle()
        self._running = asyncio.get_running_loop().run_in_executor(None, self._file.write, piece)

    async def _settle(self) -> None:
        if self._running is not None:
            await asyncio.wait((self._running,))  # not cancelled with us: the thread goes on writing
            running, self._running = self._running, None
            running.result()

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        assert self._file is not None
        try:
            await self._settle()
        finally:
            await asyncio.to_thread(self._file.close)


def _bytes_of(item: bytes | bytearray | memoryview) -> bytes:
    """An item of an iterator as bytes. A copy where it is a buffer, which its maker may fill again, and whose length may count numbers."""
    if type(item) is bytes:
        return item
    try:
        return bytes(memoryview(item))
    except TypeError:
        raise InvalidArgument(f"content is an iterator of bytes, not of {type(item).__name__}") from None


async def content_of(data: Source) -> Content:
    """The content in any of its forms. InvalidArgument for anything else, a path given as text above all."""
    if isinstance(data, bytes | bytearray | memoryview):
        return await BytesContent.of(bytes(data))
    if isinstance(data, Path):
        return await FileContent.of(data)
    if isinstance(data, AsyncIterable):
        return IteratorContent(data)
    raise InvalidArgument(f"content is bytes, a pathlib.Path or an iterator of bytes, not {type(data).__name__}")


async def items_in_thread(items: Iterable[bytes]) -> AsyncIterator[bytes]:
    """The bytes of a blocking iterator, which is gone through in a thread, about a piece at a time."""
    iterator = iter(items)

    def some() -> bytes:
        taken, taken_bytes = list[bytes](), 0
        for given in iterator:
            item = _bytes_of(given)
            taken.append(item)
            taken_bytes += len(item)
            if taken_bytes >= PIECE_BYTES:
                break
        return b"".join(taken)

    while piece := await asyncio.to_thread(some):
        yield piece
