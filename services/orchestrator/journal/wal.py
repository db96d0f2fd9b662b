"""Looks at a write-ahead log that a crash left behind, before SQLite reads it.

SQLite takes a log up to the first frame whose checksum is wrong and forgets the rest. After a crash that is right, for a torn tail was never
acknowledged. After bit-rot it would silently drop what was. The two can be told apart: a transaction begins only when the one before it has been
synced, so whatever follows a commit proves that it had been acknowledged. Only damage to the last commit, or to the checksum of the one before, looks like
a torn tail; so does, in one frame of 64, damage to the commit before the last, because that frame's header may be torn in the middle.

Format: https://www.sqlite.org/fileformat2.html#the_write_ahead_log
"""

from __future__ import annotations

import struct
from pathlib import Path

_HEADER = struct.Struct(">8I")
"""Magic, version, page size, checkpoint, two salts, two checksums."""
_FRAME = struct.Struct(">6I")
"""Page, pages after commit (0: not a commit), two salts, two checksums."""
_MAGIC = 0x377F0682
"""Its last bit says that checksums read words big end first."""
_MASK = 0xFFFFFFFF
_SECTOR_BYTES = 512
"""What a disk writes whole or not at all; larger sectors end at multiples of it."""

Sums = tuple[int, int]


class WalDamaged(Exception):
    """The log lost something that had been acknowledged. The message names the place."""


def check(path: Path) -> None:
    """WalDamaged when SQLite would drop acknowledged transactions of this log; silence when it is whole, torn at its end, or not there."""
    log = path.read_bytes() if path.exists() else b""
    if len(log) < _HEADER.size or not any(log[: _HEADER.size]):
        return  # the header is synced before the first frame: there is none
    magic, _, page_bytes, _, *rest = _HEADER.unpack_from(log)
    salts, sums = tuple(rest[:2]), (rest[2], rest[3])
    big = bool(magic & 1)
    if magic & ~1 != _MAGIC or _sum(log[: _HEADER.size - 8], (0, 0), big) != sums:
        raise WalDamaged(f"the header of {path.name} is damaged")
    step = _FRAME.size + page_bytes
    torn_at, before, committed = 0, sums, True
    for start in range(_HEADER.size, len(log) - step + 1, step):
        page, commit, *rest = _FRAME.unpack_from(log, start)
        ours = tuple(rest[:2]) == salts and page > 0
        stored = (rest[2], rest[3])
        # Past the tear only what follows a commit can prove anything, and only that is worth the sum.
        whole = ours and (not torn_at or committed) and stored == _frame_sum(log, start, step, before, big)
        if torn_at and whole:
            raise WalDamaged(f"{path.name} is damaged at byte {torn_at}, before transactions that are whole")
        if not whole and not torn_at:
            torn_at = start
        # Of a torn frame whose header lies across two sectors, page and commit may be an older log's: they prove nothing.
        committed = commit > 0 and (whole or start % _SECTOR_BYTES != _SECTOR_BYTES - 8)
        before = stored


def _frame_sum(log: bytes, start: int, step: int, before: Sums, big: bool) -> Sums:
    return _sum(log[start : start + 8] + log[start + _FRAME.size : start + step], before, big)


def _sum(content: bytes, before: Sums, big: bool) -> Sums:
    first, second = before
    words = iter(struct.unpack(f"{'>' if big else '<'}{len(content) // 4}I", content))
    for left, right in zip(words, words, strict=True):
        first = (first + left + second) & _MASK
        second = (second + right + first) & _MASK
    return first, second
