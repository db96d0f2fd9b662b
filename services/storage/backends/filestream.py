"""A blob file on its way in or out. Content is hashed, written, read and checked by threads, one piece ahead of the caller."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Awaitable, Callable

from aiofiles.threadpool import wrap

from antfarm.errors import BlobNotFound
from antfarm.failpoint import failpoint
from antfarm.model import BlobRef
from services.storage.backends.base import Written, check_announced, conflict, damaged
from services.storage.backends.blobfile import CHECKSUM_BYTES, Checksums, Footer, block_fits
from services.storage.backends.disk import Disk, Step, completed, reading, translated
from services.storage.backends.tree import Tree

BLOCK_BYTES = 512 * 1024
"""Content under one checksum, and the size of the pieces that are read. Larger costs memory and cache misses, smaller costs calls."""
_GATHER_BYTES = 256 * 1024
"""Smaller chunks are put together before they go to a thread, which costs more than hashing them."""
_SYNC_BYTES = 32 * 1024 * 1024
"""What is sent to the disk at a time while more arrives. The kernel by itself would begin when the whole blob is there and be waited for."""

log = logging.getLogger("antfarm.storage")


class DigestedFile(io.FileIO):
    """A new file that takes checksums of what is written to it, in the thread that writes."""

    def __init__(self, name: str, tmp_fd: int) -> None:
        def opener(path: str, flags: int) -> int:
            return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640, dir_fd=tmp_fd)

        super().__init__(name, "xb", opener=opener)
        self.checksums = Checksums(BLOCK_BYTES)

    def write(self, piece: bytes) -> int:  # type: ignore[override]
        """All of the piece."""
        self.checksums.update(piece)
        self._write_all(piece)
        return len(piece)

    def _write_all(self, piece: bytes) -> None:
        view = memoryview(piece)
        while view:
            view = view[super().write(view) :]

    def sync(self) -> None:
        """Make durable what was written up to now. A failure is final, as in `seal`."""
        os.fdatasync(self.fileno())

    def seal(self, key: str) -> None:
        """Add what follows the content, and make the file durable. A failure is final: the file is dropped, not synced again."""
        self._write_all(self.checksums.footer(key))
        failpoint("storage.before_fsync")
        os.fsync(self.fileno())


class CheckedFile(io.FileIO):
    """A blob's file that is read block by block, each checked in the thread that reads."""

    def __init__(self, fd: int, footer: Footer, first_block: int, *, whole: bool) -> None:
        super().__init__(fd, "rb")
        self.footer = footer
        self._index = first_block
        self._sha256 = hashlib.sha256() if whole else None
        self.seek(first_block * footer.block_bytes)

    def read(self, size: int | None = None) -> bytes:
        """The next block, which has `size` bytes. DataLoss."""
        assert size is not None
        key = self.footer.blob.key
        with reading(key):
            block = b""
            while len(block) < size and (more := super().read(size - len(block))):
                block = block + more if block else more
            checksum = os.pread(self.fileno(), CHECKSUM_BYTES, self.footer.checksum_offset(self._index))
        if len(block) != size or not block_fits(block, checksum):
            raise damaged(key, f"block {self._index} does not match its checksum")
        self._index += 1
        if self._sha256 is not None:
            self._sha256.update(block)
        return block

    def check_whole(self) -> None:
        """After the last block of a whole read: DataLoss when the digest differs."""
        if self._sha256 is not None and self._sha256.digest() != self.footer.blob.sha256:
            raise damaged(self.footer.blob.key, "its content does not match its digest")


class FileWriter:
    """See `BlobWriter`. Owns the file `name` in the directory `tmp_fd`, which the first piece makes, and removes it in every case."""

    def __init__(
        self,
        *,
        key: str,
        name: str,
        tmp_fd: int,
        tree: Tree,
        disk: Disk,
        verify: Callable[[str], Awaitable[BlobRef]],
    ) -> None:
        self._key = key
        self._file: DigestedFile | None = None
        self._name = name
        self._tmp_fd = tmp_fd
        self._tree = tree
        self._disk = disk
        self._verify = verify
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        self._writing = Step[None]()
        self._unsynced_bytes = 0
        self._syncing = Step[None]()
        self._committing = Step[Written]()

    async def write(self, chunk: bytes) -> None:
        """See `BlobWriter`. What is gathered goes to a thread when the next chunk comes: content of one chunk is left to `commit`, one visit in all."""
        if self._gathered_bytes >= _GATHER_BYTES:
            await self._written()
            self._unsynced_bytes += self._gathered_bytes
            self._writing.start(self._disk.run(self._write, self._taken()))
            if self._unsynced_bytes >= _SYNC_BYTES and not self._syncing.running:
                self._unsynced_bytes = 0
                self._syncing.start(self._disk.run(self._sync))
        self._gathered.append(chunk)
        self._gathered_bytes += len(chunk)

    async def _written(self) -> None:
        """Wait for the piece before; raise what has gone wrong by now."""
        if self._writing.running:
            await self._writing.result()
        if self._syncing.done:
            await self._syncing.result()

    def _taken(self) -> bytes:
        gathered, self._gathered, self._gathered_bytes = self._gathered, [], 0
        return gathered[0] if len(gathered) == 1 else b"".join(gathered)

    def _write(self, piece: bytes) -> None:
        if self._file is None:
            self._file = DigestedFile(self._name, self._tmp_fd)
        self._file.write(piece)

    def _sync(self) -> None:
        if self._file is not None:  # else the piece that makes it has not come to its thread yet
            self._file.sync()

    async def commit(self, *, size_bytes: int | None = None, sha256: bytes = b"") -> Written:
        """See `BlobWriter`. Once begun it runs to its end, even when the caller is cancelled."""
        await self._written()
        if self._syncing.running:
            await self._syncing.result()
        self._committing.start(self._commit(size_bytes, sha256))
        return await self._committing.result()

    async def _commit(self, size_bytes: int | None, sha256: bytes) -> Written:
        blob, added = await self._disk.run(self._land, self._taken(), size_bytes, sha256)
        while not added:
            try:
                standing = await self._verify(self._key)
            except BlobNotFound:  # deleted since
                added = await self._disk.run(self._add)
                continue
            if standing != blob:
                raise conflict(self._key)
            await self._disk.run(self._drop)
            return Written(blob=blob, existed=True)
        return Written(blob=blob, existed=False)

    def _land(self, rest: bytes, size_bytes: int | None, sha256: bytes) -> tuple[BlobRef, bool]:
        """All in one visit to a thread: write what is left, make the file durable when it is what was announced, and add it."""
        self._write(rest)
        assert self._file is not None
        checksums = self._file.checksums
        blob = BlobRef(key=self._key, size_bytes=checksums.size_bytes, sha256=checksums.sha256())
        check_announced(blob, size_bytes, sha256)
        self._file.seal(self._key)
        return blob, self._add()

    def _add(self) -> bool:
        """Give the file its key, and drop its other name. False when the key is taken."""
        added = self._tree.add(self._key, self._tmp_fd, self._name)
        if added:
            failpoint("storage.before_reply")
            self._drop()
        return added

    async def abort(self) -> None:
        """See `BlobWriter`. Runs to its end even when the caller is cancelled."""
        if self._writing.running or self._syncing.running or self._committing.running or self._file is not None:
            await completed(self._abort())

    async def _abort(self) -> None:
        await self._writing.settle()
        await self._syncing.settle()
        await self._committing.settle()
        await self._disk.run(self._drop)

    def _drop(self) -> None:
        """Remove our own name of the file. A failure only costs its space until the next start."""
        file, self._file = self._file, None
        if file is None:
            return
        try:
            file.close()
            os.unlink(self._name, dir_fd=self._tmp_fd)
        except OSError as error:
            log.warning("tmp/%s stays until the next start: %s", self._name, error)


class FileReader:
    """See `BlobReader`. Owns the file."""

    def __init__(self, *, file: CheckedFile, offset: int, end: int, first: bytes, disk: Disk) -> None:
        self._file = file
        self._first = first
        self._footer = file.footer
        self._position = offset
        self._end = end
        self._async_file = wrap(file, executor=disk.pool)
        self._loading = Step[bytes]()

    @property
    def blob(self) -> BlobRef:
        """See `BlobReader`."""
        return self._footer.blob

    async def read(self) -> bytes:
        """See `BlobReader`."""
        if self._position >= self._end:
            self._file.check_whole()
            return b""
        index, skipped = divmod(self._position, self._footer.block_bytes)
        blocks, self._first = self._first, b""
        if not blocks:
            blocks = await self._loading.result()
        piece = blocks[skipped : self._end - index * self._footer.block_bytes]
        self._position += len(piece)
        if self._position < self._end:
            self._loading.start(self._load(self._position // self._footer.block_bytes))
        return piece

    async def _load(self, index: int) -> bytes:
        with translated():
            block: bytes = await self._async_file.read(self._footer.bytes_of_block(index))
            return block

    async def close(self) -> None:
        """See `BlobReader`. Runs to its end even when the caller is cancelled."""
        if self._loading.running:
            await completed(self._loading.settle())
        self._file.close()  # of a file that is only read: nothing to wait for
