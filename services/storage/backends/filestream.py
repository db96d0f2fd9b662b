"""A blob file on its way in or out. Content is hashed, written, read and checked by threads, one piece ahead of the caller."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Awaitable, Callable

from aiofiles.threadpool.binary import AsyncBufferedIOBase, AsyncBufferedReader

from antfarm.errors import AntFarmError, BlobNotFound
from antfarm.model import BlobRef
from services.storage.backends.base import Written, check_announced, conflict, damaged
from services.storage.backends.blobfile import CHECKSUM_BYTES, Checksums, Footer, block_fits
from services.storage.backends.disk import Disk, Step, completed, reading, translated
from services.storage.backends.tree import Tree

BLOCK_BYTES = 512 * 1024
"""Content under one checksum, and the size of the pieces that are read. Larger costs memory and cache misses, smaller costs calls."""
_GATHER_BYTES = 256 * 1024
"""Smaller chunks are put together before they go to a thread, which costs more than hashing them."""

log = logging.getLogger("antfarm.storage")


class FileWriter:
    """See `BlobWriter`. Owns the file `name` in the directory `tmp_fd` and removes it in every case."""

    def __init__(
        self,
        *,
        key: str,
        file: AsyncBufferedIOBase,
        name: str,
        tmp_fd: int,
        tree: Tree,
        disk: Disk,
        verify: Callable[[str], Awaitable[BlobRef]],
    ) -> None:
        self._key = key
        self._file = file
        self._name = name
        self._tmp_fd = tmp_fd
        self._tree = tree
        self._disk = disk
        self._verify = verify
        self._checksums = Checksums(BLOCK_BYTES)
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        self._absorbing = Step[None]()
        self._committing = Step[Written]()
        self._dropped = False

    async def write(self, chunk: bytes) -> None:
        """See `BlobWriter`."""
        self._gathered.append(chunk)
        self._gathered_bytes += len(chunk)
        if self._gathered_bytes >= _GATHER_BYTES:
            await self._pass_on()

    async def _pass_on(self) -> None:
        piece = self._gathered[0] if len(self._gathered) == 1 else b"".join(self._gathered)
        self._gathered, self._gathered_bytes = [], 0
        if self._absorbing.running:
            await self._absorbing.result()
        self._absorbing.start(self._absorb(piece))

    async def _absorb(self, piece: bytes) -> None:
        with translated():
            await asyncio.gather(self._file.write(piece), self._disk.run(self._checksums.update, piece))

    async def commit(self, *, size_bytes: int | None = None, sha256: bytes = b"") -> Written:
        """See `BlobWriter`. Once begun it runs to its end, even when the caller is cancelled."""
        await self._pass_on()
        await self._absorbing.result()
        blob = BlobRef(key=self._key, size_bytes=self._checksums.size_bytes, sha256=self._checksums.sha256())
        check_announced(blob, size_bytes, sha256)
        self._committing.start(self._commit(blob))
        return await self._committing.result()

    async def _commit(self, blob: BlobRef) -> Written:
        with translated():
            await self._file.write(self._checksums.footer(self._key))
            await self._file.flush()
            await self._disk.run(os.fsync, self._file.fileno())
        while not await self._disk.run(self._tree.add, self._key, self._tmp_fd, self._name):
            try:
                standing = await self._verify(self._key)
            except BlobNotFound:
                continue  # deleted since
            if standing != blob:
                raise conflict(self._key)
            await self._drop()
            return Written(blob=blob, existed=True)
        await self._drop()
        return Written(blob=blob, existed=False)

    async def abort(self) -> None:
        """See `BlobWriter`. Runs to its end even when the caller is cancelled."""
        await completed(self._abort())

    async def _abort(self) -> None:
        await self._absorbing.settle()
        await self._committing.settle()
        await self._drop()

    async def _drop(self) -> None:
        """Remove our own name of the file. A failure only costs its space until the next start."""
        if self._dropped:
            return
        self._dropped = True
        try:
            await self._file.close()
        except OSError:
            pass  # what was still in its buffer could not be written either
        try:
            await self._disk.run(lambda: os.unlink(self._name, dir_fd=self._tmp_fd))
        except AntFarmError as error:
            log.warning("tmp/%s stays until the next start: %s", self._name, error)


class FileReader:
    """See `BlobReader`. Owns the file."""

    def __init__(self, *, footer: Footer, file: AsyncBufferedReader, offset: int, end: int, disk: Disk) -> None:
        self._footer = footer
        self._file = file
        self._position = offset
        self._end = end
        self._disk = disk
        self._sha256 = hashlib.sha256() if offset == 0 and end == footer.blob.size_bytes else None
        self._loading = Step[bytes]()
        self._sought = False

    @property
    def blob(self) -> BlobRef:
        """See `BlobReader`."""
        return self._footer.blob

    async def read(self) -> bytes:
        """See `BlobReader`."""
        if self._position >= self._end:
            if self._sha256 is not None and self._sha256.digest() != self.blob.sha256:
                raise damaged(self.blob.key, "its content does not match its digest")
            return b""
        index, skipped = divmod(self._position, self._footer.block_bytes)
        if not self._loading.running:
            self._loading.start(self._load(index))
        block = await self._loading.result()
        start = index * self._footer.block_bytes
        piece = block[skipped : self._end - start]
        self._position += len(piece)
        if self._position < self._end:
            self._loading.start(self._load(index + 1))
        return piece

    async def _load(self, index: int) -> bytes:
        start = index * self._footer.block_bytes
        with translated(), reading(self.blob.key):
            if not self._sought:
                await self._file.seek(start)
                self._sought = True
            block: bytes = await self._file.read(min(self._footer.block_bytes, self.blob.size_bytes - start))
            await self._disk.run(self._check, index, block)
        return block

    def _check(self, index: int, block: bytes) -> None:
        checksum = os.pread(self._file.fileno(), CHECKSUM_BYTES, self._footer.checksum_offset(index))
        if not block_fits(block, checksum):
            raise damaged(self.blob.key, f"block {index} does not match its checksum")
        if self._sha256 is not None:
            self._sha256.update(block)

    async def close(self) -> None:
        """See `BlobReader`. Runs to its end even when the caller is cancelled."""
        await completed(self._close())

    async def _close(self) -> None:
        await self._loading.settle()
        await self._file.close()
