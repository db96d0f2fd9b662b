"""Blobs in a dictionary: for tests, and the shortest statement of what a backend does."""

from __future__ import annotations

import hashlib
import time
from bisect import bisect_right, insort

from antfarm.errors import BlobNotFound, OutOfRange
from antfarm.model import BlobRef
from services.storage.backends.base import CHUNK_BYTES_MAX, Aged, Written, check_announced, conflict, damaged


class MemoryBackend:
    """See `Backend`. Nothing outlives the process."""

    server_id = "memory"

    def __init__(self) -> None:
        self._blobs: dict[str, tuple[BlobRef, bytes]] = {}
        self._written: dict[str, float] = {}
        self._keys: list[str] = []  # the keys of _blobs, sorted

    async def open_write(self, key: str, *, size_bytes: int | None = None) -> _Writer:
        """See `Backend`."""
        return _Writer(self, key)

    def add(self, blob: BlobRef, content: bytes) -> Written:
        """Make a blob visible; Conflict."""
        standing = self._blobs.get(blob.key)
        if standing is None:
            self._blobs[blob.key] = blob, content
            self._written[blob.key] = time.time()
            insort(self._keys, blob.key)
            return Written(blob=blob, existed=False)
        _verify(*standing)
        if standing[0] != blob:
            raise conflict(blob.key)
        return Written(blob=blob, existed=True)

    async def open_read(self, key: str, *, offset: int = 0, length: int = 0) -> _Reader:
        """See `Backend`."""
        blob, content = self._found(key)
        if offset > blob.size_bytes:
            raise OutOfRange(f"blob {key} has {blob.size_bytes} bytes; there is nothing at offset {offset}")
        return _Reader(blob, content, offset, min(offset + length, blob.size_bytes) if length else blob.size_bytes)

    def _found(self, key: str) -> tuple[BlobRef, bytes]:
        try:
            return self._blobs[key]
        except KeyError:
            raise BlobNotFound(f"no blob {key}") from None

    async def stat(self, key: str) -> BlobRef:
        """See `Backend`."""
        return self._found(key)[0]

    async def list_page(self, prefix: str, *, after: str, limit: int) -> list[BlobRef]:
        """See `Backend`."""
        start = bisect_right(self._keys, after) if after else 0
        found = [key for key in self._keys[start:] if key.startswith(prefix)]
        return [self._blobs[key][0] for key in found[:limit]]

    async def list_ages(self, prefix: str, *, after: str, limit: int) -> list[Aged]:
        """See `Backend`."""
        now = time.time()
        found = await self.list_page(prefix, after=after, limit=limit)
        return [Aged(key=blob.key, age_s=max(now - self._written[blob.key], 0.0)) for blob in found]

    async def delete(self, key: str) -> bool:
        """See `Backend`."""
        if self._blobs.pop(key, None) is None:
            return False
        del self._written[key]
        self._keys.remove(key)
        return True

    async def verify(self, key: str) -> BlobRef:
        """See `Backend`."""
        blob, content = self._found(key)
        _verify(blob, content)
        return blob

    async def close(self) -> None:
        """See `Backend`."""


def _verify(blob: BlobRef, content: bytes) -> None:
    if hashlib.sha256(content).digest() != blob.sha256:
        raise damaged(blob.key, "its content does not match its digest")


class _Writer:
    """See `BlobWriter`."""

    def __init__(self, backend: MemoryBackend, key: str) -> None:
        self._backend = backend
        self._key = key
        self._chunks: list[bytes] = []

    async def write(self, chunk: bytes) -> None:
        """See `BlobWriter`."""
        self._chunks.append(chunk)

    async def commit(self, *, size_bytes: int | None = None, sha256: bytes = b"") -> Written:
        """See `BlobWriter`."""
        content = b"".join(self._chunks)
        blob = BlobRef(key=self._key, size_bytes=len(content), sha256=hashlib.sha256(content).digest())
        check_announced(blob, size_bytes, sha256)
        return self._backend.add(blob, content)

    async def abort(self) -> None:
        """See `BlobWriter`."""
        self._chunks.clear()


class _Reader:
    """See `BlobReader`."""

    def __init__(self, blob: BlobRef, content: bytes, position: int, end: int) -> None:
        self.blob = blob
        self._content = content
        self._position = position
        self._end = end

    async def read(self) -> bytes:
        """See `BlobReader`."""
        _verify(self.blob, self._content)
        start = self._position
        self._position = min(start + CHUNK_BYTES_MAX, self._end)
        return self._content[start : self._position]

    async def close(self) -> None:
        """See `BlobReader`."""
