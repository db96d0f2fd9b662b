"""The seam between the service and the place where blobs lie. Every implementation passes tests/conformance/test_backends.py.

A backend keeps whole blobs under keys and never changes one. It knows nothing of gRPC; keys that reach it are checked. All calls may raise
`Unavailable` when the place behind it has trouble, and each says what else it raises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from antfarm.errors import Conflict, DataLoss, DigestMismatch
from antfarm.model import BlobRef

CHUNK_BYTES_MAX = 1024 * 1024
"""Most bytes in one piece of content, in and out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a commit did. `existed`: the same content was there before, and nothing was written."""

    blob: BlobRef
    existed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Aged:
    """A key, and for how many seconds its blob has been there, by the wall clock; never below 0."""

    key: str
    age_s: float


class BlobWriter(Protocol):
    """A blob on its way in; nobody sees it before `commit` returns. Holds a few chunks in memory, whatever the size.

    The caller ends every writer by `commit` or `abort`; `abort` after `commit` does nothing, so it may stand in a `finally`.
    """

    async def write(self, chunk: bytes) -> None:
        """Take the next bytes. May return before they are written; the error then comes with the next call. DiskFull."""

    async def commit(self, *, size_bytes: int | None = None, sha256: bytes = b"") -> Written:
        """Make the blob visible and durable, both or neither.

        Args:
            size_bytes: what the sender counted; DigestMismatch when it is not what came. None: not checked.
            sha256: the same for the digest. Empty: not checked.

        Other errors: Conflict (other content stands under the key), DataLoss (the content under the key is damaged), DiskFull.
        """

    async def abort(self) -> None:
        """Leave nothing behind."""


class BlobReader(Protocol):
    """A blob, or a range of it, on its way out. The caller closes it."""

    @property
    def blob(self) -> BlobRef:
        """The whole blob's size and digest."""

    async def read(self) -> bytes:
        """The next bytes, at most CHUNK_BYTES_MAX, verified; empty at the end.

        DataLoss when they are not what was written; a whole read also raises it in place of the end when the digest differs.
        """

    async def close(self) -> None:
        """Release what the reader holds."""


class Backend(Protocol):
    """A place for blobs."""

    async def open_write(self, key: str, *, size_bytes: int | None = None) -> BlobWriter:
        """Begin a blob. DiskFull when the announced size can not fit."""

    async def open_read(self, key: str, *, offset: int = 0, length: int = 0) -> BlobReader:
        """Begin to read `length` bytes from `offset`, 0 meaning to the end; what lies beyond the end is left out.

        BlobNotFound; OutOfRange when `offset` is greater than the size; DataLoss when the blob's own record is damaged.
        """

    async def stat(self, key: str) -> BlobRef:
        """Size and digest without reading the content. BlobNotFound, DataLoss."""

    async def list_page(self, prefix: str, *, after: str, limit: int) -> list[BlobRef]:
        """The first `limit` blobs, in the order of their keys, whose key starts with `prefix` and is greater than `after`.

        DataLoss names a blob whose record is damaged: damage is reported, never skipped.
        """

    async def list_ages(self, prefix: str, *, after: str, limit: int) -> list[Aged]:
        """As `list_page`, but the ages, and damaged blobs like others: nothing of them is read."""

    async def delete(self, key: str) -> bool:
        """Remove a blob, damaged or not; False when there is none. Durable when it returns. Readers that are open go on."""

    async def verify(self, key: str) -> BlobRef:
        """Read all of a blob where it lies. BlobNotFound, DataLoss."""

    async def close(self) -> None:
        """Release the place. No other call is running or comes later."""


def check_announced(blob: BlobRef, size_bytes: int | None, sha256: bytes) -> None:
    """DigestMismatch when the content that came is not what its sender announced (None and empty: nothing announced)."""
    if size_bytes is not None and size_bytes != blob.size_bytes:
        raise DigestMismatch(
            f"blob {blob.key}: {size_bytes} bytes were announced, {blob.size_bytes} came; nothing was kept"
        )
    if sha256 and sha256 != blob.sha256:
        raise DigestMismatch(
            f"blob {blob.key}: SHA-256 {sha256.hex()} was announced, {blob.sha256.hex()} came; nothing was kept"
        )


def conflict(key: str) -> Conflict:
    """The error of a key that holds other content."""
    return Conflict(f"blob {key} exists with other content, and a blob never changes; choose another key")


def damaged(key: str, what: str) -> DataLoss:
    """The error of a blob that is not what was written: which, why, and what can be done."""
    return DataLoss(f"blob {key} is damaged: {what}; nothing of it can be used, delete it and write it again")
