"""The form of one blob in one file: content, then checksums of its blocks, then a record of what the content must be. Pure.

    content            size_bytes
    checksums          CRC-32 of each block of content, 4 bytes little endian each
    record             size, block size, SHA-256 of the content, key
    trailer            length of the record, SHA-256 of the record, magic

One file, so one rename makes content and record visible together, and `head -c SIZE FILE` gives the content back without any program of
ours. The record is found from the end and covered by its own digest; a checksum that is itself damaged makes its block fail, so the
checksums need none. Blocks are checked before they leave, which is what lets a range be verified without reading the rest.
"""

from __future__ import annotations

import hashlib
import struct
from array import array
from dataclasses import dataclass
from zlib import crc32

from antfarm.model import KEY_BYTES_MAX, BlobRef
from services.storage.backends.base import damaged

_MAGIC = b"AFBLOB1\n"
_RECORD = struct.Struct("<QI32sH")
_TRAILER = struct.Struct("<I32s8s")
_CHECKSUM = struct.Struct("<I")
CHECKSUM_BYTES = _CHECKSUM.size

TAIL_BYTES_MAX = _RECORD.size + KEY_BYTES_MAX + _TRAILER.size
"""Reading this much from the end of a file is enough for `read_footer`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footer:
    """What a blob's file says about its content."""

    blob: BlobRef
    block_bytes: int

    @property
    def block_count(self) -> int:
        """Number of blocks; the last may be short."""
        return -(-self.blob.size_bytes // self.block_bytes)

    def bytes_of_block(self, index: int) -> int:
        """How long a block is."""
        return min(self.block_bytes, self.blob.size_bytes - index * self.block_bytes)

    def checksum_offset(self, index: int) -> int:
        """Where in the file the checksum of a block lies."""
        return self.blob.size_bytes + index * CHECKSUM_BYTES


class Checksums:
    """Block checksums and digest of content that comes in chunks of any size. 4 bytes of memory a block."""

    def __init__(self, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self._sha256 = hashlib.sha256()
        self._done = array("I")
        self._current = 0
        self._filled = 0
        self.size_bytes = 0

    def update(self, chunk: bytes) -> None:
        """Take the next bytes. Releases the interpreter for large chunks: call it in a thread."""
        self._sha256.update(chunk)
        self.size_bytes += len(chunk)
        view = memoryview(chunk)
        while view:
            piece = view[: self._block_bytes - self._filled]
            self._current = crc32(piece, self._current)
            self._filled += len(piece)
            view = view[len(piece) :]
            if self._filled == self._block_bytes:
                self._end_block()

    def _end_block(self) -> None:
        self._done.append(self._current)
        self._current = self._filled = 0

    def sha256(self) -> bytes:
        """Digest of all that came so far."""
        return self._sha256.digest()

    def footer(self, key: str) -> bytes:
        """What follows the content in the file. No `update` comes after it."""
        if self._filled:
            self._end_block()
        name = key.encode("ascii")
        record = _RECORD.pack(self.size_bytes, self._block_bytes, self.sha256(), len(name)) + name
        table = struct.pack(f"<{len(self._done)}I", *self._done)
        return table + record + _TRAILER.pack(len(record), hashlib.sha256(record).digest(), _MAGIC)


def read_footer(key: str, tail: bytes, file_bytes: int) -> Footer:
    """The footer in the last bytes of a file. DataLoss when the file is not, whole and unchanged, the blob of this key."""
    try:
        record_bytes, digest, magic = _TRAILER.unpack(tail[-_TRAILER.size :])
        record = tail[-_TRAILER.size - record_bytes : -_TRAILER.size]
        if magic != _MAGIC or len(record) != record_bytes or hashlib.sha256(record).digest() != digest:
            raise damaged(key, "its record does not match its digest")
        size_bytes, block_bytes, sha256, name_bytes = _RECORD.unpack_from(record)
    except struct.error:
        raise damaged(key, "its record is missing") from None
    if record[_RECORD.size :] != key.encode("ascii") or name_bytes != len(key):
        raise damaged(key, "its record names another key")
    footer = Footer(blob=BlobRef(key=key, size_bytes=size_bytes, sha256=sha256), block_bytes=block_bytes)
    if file_bytes != size_bytes + footer.block_count * CHECKSUM_BYTES + record_bytes + _TRAILER.size:
        raise damaged(key, "its file has not the length that its record says")
    return footer


def block_fits(block: bytes, checksum: bytes) -> bool:
    """True when the block is what was written. Releases the interpreter for large blocks."""
    return _CHECKSUM.pack(crc32(block)) == checksum
