"""Looks at a write-ahead log that a crash left behind, before SQLite reads it.

SQLite takes a log up to the first frame whose checksum is wrong and forgets the rest. After a crash that is right, for a torn tail was never
acknowledged. After bit-rot it would silently drop what was. The two can be told apart: a transaction begins only when the one before it has been
synced, so whatever follows a commit proves that it had been acknowledged. Damage to the last commit, or to the checksum of the one before, looks like
a torn tail; so does, in one frame of 64, damage to the commit before the last, because that frame's header may be torn in the middle. There it need
not be told apart where a single bit is wrong: the checksum has room to say which, and with that bit put right the commit is whole, acknowledged or
not. Several wrong bits in the last commit are cut off like a torn tail.

The sums are the slow part in Python, 0.1 ms a page. SQLite itself makes them first, in a connection that can change nothing, and says in its index of
the log how far it would take it: only what follows is looked at here.

A log that has frames beside a main file that is missing or empty is no crash either, and SQLite would delete it: the first page of the main file, and
its name, are synced before the log is made.

Formats: https://www.sqlite.org/fileformat2.html#the_write_ahead_log and https://www.sqlite.org/walformat.html#the_wal_index_file_format
"""

from __future__ import annotations

import logging
import os
import sqlite3
import struct
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

_HEADER = struct.Struct(">8I")
"""Magic, version, page size, checkpoint, two salts, two checksums."""
_FRAME = struct.Struct(">6I")
"""Page, pages after commit (0: not a commit), two salts, two checksums."""
_INDEX = struct.Struct("=I8xB3xI12x8s8x")
"""Of the index's header, in the machine's order: version, 1 when it is made, frames up to the last commit, the log's salts as they stand there."""
_INDEX_VERSION = 3007000
_MAGIC = 0x377F0682
"""Its last bit says that checksums read words big end first."""
_MASK = 0xFFFFFFFF
_SECTOR_BYTES = 512
"""What a disk writes whole or not at all; larger sectors end at multiples of it."""

Sums = tuple[int, int]

logger = logging.getLogger("antfarm.orchestrator")


class WalDamaged(Exception):
    """The log lost something that had been acknowledged. The message names the place."""


def check(path: Path) -> None:
    """WalDamaged when SQLite would drop acknowledged transactions of this log; silence when it is whole, torn at its end, or not there.

    A single wrong bit that would be taken for a torn end is put right.
    """
    log = path.read_bytes() if path.exists() else b""
    if len(log) < _HEADER.size or not any(log[: _HEADER.size]):
        return  # the header is synced before the first frame: there is none
    _check_main(path, log)
    form = _Form(log, path.name)
    torn_at, before = form.scan(log, _frames_taken(path, log))
    if not torn_at:
        return
    bits = form.wrong_bits(log, torn_at, before)
    mended = [(bit, content) for bit in bits if form.committed_after(content := _flipped(log, bit), torn_at, before)]
    if len(mended) > 1:
        raise WalDamaged(
            f"{path.name} is damaged in the {form.step} bytes from {torn_at} on, in one bit of its last transaction"
        )
    for bit, content in mended:
        with path.open("r+b") as file:
            file.seek(bit // 8)
            file.write(content[bit // 8 : bit // 8 + 1])
            file.flush()
            os.fsync(file.fileno())
        logger.warning(
            "%s: one wrong bit in the last commit, at byte %d, was put right; look at the disk", path, bit // 8
        )


def _check_main(path: Path, log: bytes) -> None:
    main = path.with_name(path.name.removesuffix("-wal"))
    if len(log) > _HEADER.size and not (main.exists() and main.stat().st_size):
        state = "empty" if main.exists() else "missing"
        raise WalDamaged(f"{main.name} is {state}, but {path.name} beside it has records")


def _frames_taken(path: Path, log: bytes) -> int:
    """How many frames SQLite would take, up to the last commit; 0 when it does not say."""
    name = path.name.removesuffix("-wal")
    index = path.with_name(f"{name}-shm")
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path.with_name(name)))}?mode=ro", uri=True)) as reader:
            reader.execute("PRAGMA schema_version").fetchone()
            header = index.read_bytes()[: 2 * _INDEX.size]
    except (sqlite3.Error, OSError):
        return 0  # the journal itself will find what is wrong
    finally:
        index.unlink(missing_ok=True)
    once, again = header[: _INDEX.size], header[_INDEX.size :]
    if len(again) < _INDEX.size or once != again:
        return 0
    version, made, frames, salts = _INDEX.unpack(once)
    return int(frames) if (version, made, salts) == (_INDEX_VERSION, 1, log[16:24]) else 0


def _flipped(log: bytes, bit: int) -> bytes:
    content = bytearray(log)
    content[bit // 8] ^= 1 << bit % 8
    return bytes(content)


class _Form:
    """How the frames of one log lie and what makes them whole."""

    def __init__(self, log: bytes, name: str) -> None:
        magic, _, page_bytes, _, *rest = _HEADER.unpack_from(log)
        self._name = name
        self._salts, self._first = tuple(rest[:2]), (rest[2], rest[3])
        self._big = bool(magic & 1)
        self.step = _FRAME.size + page_bytes
        if magic & ~1 != _MAGIC or _sum(log[: _HEADER.size - 8], (0, 0), self._big) != self._first:
            raise WalDamaged(f"the header of {name} is damaged")

    def scan(self, log: bytes, taken: int) -> tuple[int, Sums]:
        """(where the first frame that is not whole begins, the checksum before it); 0 when all are. WalDamaged.

        taken: so many at the beginning are known to be whole, and to end with a commit.
        """
        first = _HEADER.size + taken * self.step
        torn_at, before, committed = 0, self._first, True
        if taken:
            before = _FRAME.unpack_from(log, first - self.step)[4:]
        before_torn = before
        for start in self._frames(log, first):
            _, commit, *rest = _FRAME.unpack_from(log, start)
            # Past the tear only what follows a commit can prove anything, and only that is worth the sum.
            whole = (not torn_at or committed) and self._whole(log, start, before)
            if torn_at and whole:
                raise WalDamaged(f"{self._name} is damaged at byte {torn_at}, before transactions that are whole")
            if not whole and not torn_at:
                torn_at, before_torn = start, before
            # Of a torn frame whose header lies across two sectors, page and commit may be an older log's: they prove nothing.
            committed = commit > 0 and (whole or start % _SECTOR_BYTES != _SECTOR_BYTES - 8)
            before = (rest[2], rest[3])
        return torn_at, before_torn

    def _frames(self, log: bytes, first: int) -> range:
        return range(first, len(log) - self.step + 1, self.step)

    def _whole(self, log: bytes, start: int, before: Sums) -> bool:
        page, _, *rest = _FRAME.unpack_from(log, start)
        return page > 0 and tuple(rest[:2]) == self._salts and (rest[2], rest[3]) == self._sum(log, start, before)

    def _sum(self, log: bytes, start: int, before: Sums) -> Sums:
        return _sum(log[start : start + 8] + log[start + _FRAME.size : start + self.step], before, self._big)

    def committed_after(self, log: bytes, start: int, before: Sums) -> bool:
        """True when whole frames lead from there to the end of a transaction."""
        for at in self._frames(log, start):
            if not self._whole(log, at, before):
                return False
            _, commit, *rest = _FRAME.unpack_from(log, at)
            if commit:
                return True
            before = (rest[2], rest[3])
        return False

    def wrong_bits(self, log: bytes, start: int, before: Sums) -> list[int]:
        """Numbers of the bits of the log of which any single one, put right, makes the frame whole. More than one when the sum cannot tell them apart."""
        _, _, *rest = _FRAME.unpack_from(log, start)
        salts, stored, right = tuple(rest[:2]), (rest[2], rest[3]), self._sum(log, start, before)
        if salts != self._salts:
            return _only_difference(salts, self._salts, start + 8) if stored == right else []
        return [
            *_only_difference(stored, right, start + 16),
            *self._wrong_bits_summed(log, start, stored, right),
        ]

    def _wrong_bits_summed(self, log: bytes, start: int, stored: Sums, right: Sums) -> list[int]:
        """The same among the bits that are summed: each adds its own multiple of two numbers, which grow from the end of the frame to its start.

        The multiples of a word's highest bits recur within a frame: their sums do not tell them apart.
        """
        missing = ((stored[0] - right[0]) & _MASK, (stored[1] - right[1]) & _MASK)
        found = []
        weights = [(0, 1), (1, 1)]  # of the last word and the one before it
        places = [*range(start, start + 8, 4), *range(start + _FRAME.size, start + self.step, 4)]
        for count, place in enumerate(reversed(places)):
            first, second = weights[count % 2]
            word = int.from_bytes(log[place : place + 4], "big" if self._big else "little")
            for bit in range(32):
                change = -(1 << bit) if word >> bit & 1 else 1 << bit
                if (change * first & _MASK, change * second & _MASK) == missing:
                    found.append((place + (3 - bit // 8 if self._big else bit // 8)) * 8 + bit % 8)
            first = (first + second) & _MASK
            weights[count % 2] = first, (first + second) & _MASK
        return found


def _only_difference(found: tuple[int, ...], right: tuple[int, ...], place: int) -> list[int]:
    """The bit in which two pairs of words, big end first, differ; none when it is not one."""
    differing = (found[0] ^ right[0]) << 32 | (found[1] ^ right[1])
    if differing.bit_count() != 1:
        return []
    bit = differing.bit_length() - 1
    return [(place + 7 - bit // 8) * 8 + bit % 8]


def _sum(content: bytes, before: Sums, big: bool) -> Sums:
    first, second = before
    words = iter(struct.unpack(f"{'>' if big else '<'}{len(content) // 4}I", content))
    for left, right in zip(words, words, strict=True):
        first = (first + left + second) & _MASK
        second = (second + right + first) & _MASK
    return first, second
