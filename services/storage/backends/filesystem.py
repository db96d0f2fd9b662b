"""Blobs in files of one local directory: durable before they are visible, verified whenever they are read.

Content streams into a file in `tmp/` (`filestream`). A commit appends checksums and record (`blobfile`), syncs the file, and gives it its
key by a hard link, which never replaces another (`tree`). A file whose sync failed is dropped, never synced again.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from antfarm.errors import BlobNotFound, DataLoss, OutOfRange
from antfarm.model import BlobRef
from services.storage.backends.base import CHUNK_BYTES_MAX, Aged
from services.storage.backends.blobfile import TAIL_BYTES_MAX, Footer, read_footer
from services.storage.backends.disk import Disk, acquired, reading
from services.storage.backends.filestream import CheckedFile, FileReader, FileWriter
from services.storage.backends.statedir import StateDir, open_state_dir
from services.storage.backends.tree import Tree

T = TypeVar("T")

_CHECKED_BYTES_MIN = 256 * 1024
"""Whether the disk has room for less is found out by writing it."""


class FilesystemBackend:
    """The backend `file:DIR`; see `Backend`. Make it by `open`."""

    def __init__(self, directory: StateDir) -> None:
        self._directory = directory
        self._tree = Tree(directory.blobs_fd)
        self._disk = Disk()

    @classmethod
    def open(cls, path: Path, *, make_parents: bool = False) -> FilesystemBackend:
        """Open or make the directory and lock it. Blocking. InvalidArgument in one line when it cannot serve."""
        return cls(open_state_dir(path, make_parents=make_parents))

    @property
    def server_id(self) -> str:
        """Stable id of the storage that lies in the directory."""
        return self._directory.server_id

    async def open_write(self, key: str, *, size_bytes: int | None = None) -> FileWriter:
        """See `Backend`."""
        tmp_fd = self._directory.tmp_fd
        if size_bytes is not None and size_bytes > _CHECKED_BYTES_MIN:
            await self._disk.run(_check_space, tmp_fd, size_bytes)
        name = secrets.token_hex(16)
        return FileWriter(key=key, name=name, tmp_fd=tmp_fd, tree=self._tree, disk=self._disk, verify=self.verify)

    async def open_read(self, key: str, *, offset: int = 0, length: int = 0) -> FileReader:
        """See `Backend`."""
        return await acquired(self._open_read(key, offset, length), FileReader.close)

    async def _open_read(self, key: str, offset: int, length: int) -> FileReader:
        file, end, first = await self._disk.run(self._open_checked, key, offset, length)
        return FileReader(file=file, offset=offset, end=end, first=first, disk=self._disk)

    def _open_checked(self, key: str, offset: int, length: int) -> tuple[CheckedFile, int, bytes]:
        """The file, where the range ends, and the first blocks, as many as one piece may have: most blobs are no longer."""
        fd, footer = self._open_blob(key)
        size_bytes = footer.blob.size_bytes
        if offset > size_bytes:
            os.close(fd)
            raise OutOfRange(f"blob {key} has {size_bytes} bytes; there is nothing at offset {offset}")
        end = min(offset + length, size_bytes) if length else size_bytes
        index = offset // footer.block_bytes
        file = CheckedFile(fd, footer, index, whole=offset == 0 and end == size_bytes)
        try:
            indices = range(index, -(-end // footer.block_bytes))[: max(CHUNK_BYTES_MAX // footer.block_bytes, 1)]
            blocks = [file.read(footer.bytes_of_block(index)) for index in indices if offset < end]
            return file, end, blocks[0] if len(blocks) == 1 else b"".join(blocks)
        except BaseException:
            file.close()
            raise

    def _open_blob(self, key: str) -> tuple[int, Footer]:
        fd = self._tree.open(key)
        try:
            with reading(key):
                file_bytes = os.fstat(fd).st_size
                tail = os.pread(fd, TAIL_BYTES_MAX, max(file_bytes - TAIL_BYTES_MAX, 0))
            return fd, read_footer(key, tail, file_bytes)
        except BaseException:
            os.close(fd)
            raise

    async def stat(self, key: str) -> BlobRef:
        """See `Backend`."""
        return await self._disk.run(self._stat, key)

    def _stat(self, key: str) -> BlobRef:
        fd, footer = self._open_blob(key)
        os.close(fd)
        return footer.blob

    async def list_page(self, prefix: str, *, after: str, limit: int) -> list[BlobRef]:
        """See `Backend`. Cost: that of `Tree.keys`, and one small read for each blob of the page."""
        return await self._disk.run(self._list_page, prefix, after, limit)

    def _list_page(self, prefix: str, after: str, limit: int) -> list[BlobRef]:
        return self._present(prefix, after, limit, self._stat)

    def _present(self, prefix: str, after: str, limit: int, look: Callable[[str], T | None]) -> list[T]:
        """What `look` finds at up to `limit` keys; those at which it finds nothing (any more) do not count."""
        found: list[T] = []
        while len(found) < limit:
            keys = self._tree.keys(prefix, after, limit - len(found))
            if not keys:
                break
            after = keys[-1]
            for key in keys:
                try:
                    seen = look(key)
                except BlobNotFound:
                    continue  # deleted since
                if seen is not None:
                    found.append(seen)
        return found

    async def list_ages(self, prefix: str, *, after: str, limit: int) -> list[Aged]:
        """See `Backend`."""
        return await self._disk.run(self._list_ages, prefix, after, limit)

    def _list_ages(self, prefix: str, after: str, limit: int) -> list[Aged]:
        now = time.time()

        def age(key: str) -> Aged | None:
            try:
                fd = self._tree.open(key)
            except DataLoss:
                return None  # no file of ours: not for us to delete
            try:
                return Aged(key=key, age_s=max(now - os.fstat(fd).st_mtime, 0.0))
            finally:
                os.close(fd)

        return self._present(prefix, after, limit, age)

    async def delete(self, key: str) -> bool:
        """See `Backend`."""
        return await self._disk.run(self._tree.remove, key)

    async def verify(self, key: str) -> BlobRef:
        """See `Backend`."""
        reader = await self.open_read(key)
        try:
            while await reader.read():
                pass
            return reader.blob
        finally:
            await reader.close()

    async def close(self) -> None:
        """See `Backend`."""
        self._disk.close()
        self._directory.close()


def _check_space(fd: int, size_bytes: int) -> None:
    space = os.fstatvfs(fd)
    if size_bytes > space.f_bavail * space.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
