"""Content on its way out: pieces, digests, files, iterators."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from antfarm.content import PIECE_BYTES, Content, Digest, FileSink, content_of, items_in_thread
from antfarm.errors import InvalidArgument

DATA = os.urandom(PIECE_BYTES * 3 + 17)


async def pieces_of(content: Content) -> list[bytes]:
    async with aclosing(content.pieces()) as pieces:
        return [piece async for piece in pieces]


async def items(*given: Any) -> AsyncIterator[Any]:
    for item in given:
        yield item


def is_open(path: Path) -> bool:
    return any(os.path.realpath(f"/proc/self/fd/{fd}") == str(path) for fd in os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("data", [b"", b"x", DATA[:PIECE_BYTES], DATA], ids=len)
async def test_bytes_and_files_come_in_even_pieces_and_may_be_repeated(tmp_path: Path, data: bytes) -> None:
    """Both say beforehand what they know, and what they sent afterwards, each time."""
    (tmp_path / "file").write_bytes(data)
    from_bytes, from_file = await content_of(data), await content_of(tmp_path / "file")
    assert (from_bytes.size_bytes, from_bytes.sha256) == (len(data), hashlib.sha256(data).digest())
    assert (from_file.size_bytes, from_file.sha256) == (len(data) or None, b"")
    for content in (from_bytes, from_file):
        assert content.repeatable
        for _ in range(2):
            pieces = await pieces_of(content)
            assert b"".join(pieces) == data
            assert all(len(piece) == PIECE_BYTES for piece in pieces[:-1])
            assert await content.digest.sha256() == hashlib.sha256(data).digest()
            assert content.digest.size_bytes == len(data)


@pytest.mark.parametrize(
    "given",
    [[], [b""], [b"a", b"", b"b"], [DATA], [DATA[i : i + 1000] for i in range(0, len(DATA), 1000)], [DATA, b"x", DATA]],
    ids=["none", "empty", "small", "large", "many", "mixed"],
)
async def test_iterators_come_in_even_pieces(given: list[bytes]) -> None:
    """Small items are put together, large ones cut; the digest is that of all."""
    content = await content_of(items(*given))
    assert (content.repeatable, content.size_bytes, content.sha256) == (False, None, b"")
    pieces = await pieces_of(content)
    assert b"".join(pieces) == b"".join(given)
    assert all(len(piece) == PIECE_BYTES for piece in pieces[:-1])
    assert all(0 < len(piece) <= PIECE_BYTES for piece in pieces)
    assert await content.digest.sha256() == hashlib.sha256(b"".join(given)).digest()
    assert content.digest.size_bytes == sum(map(len, given))


async def test_an_item_of_an_iterator_is_all_its_bytes_whatever_it_counts() -> None:
    """Its length may be one of numbers."""
    numbers = np.arange(PIECE_BYTES + 3.0)
    for given in (memoryview(numbers), numbers, memoryview(numbers[::2])):
        whole = bytes(memoryview(given))
        pieces = await pieces_of(await content_of(items(given)))
        assert b"".join(pieces) == whole
        assert b"".join([piece async for piece in items_in_thread([given])]) == whole  # type: ignore[list-item]


async def test_a_buffer_may_be_filled_again_for_the_next_item() -> None:
    """As by those who read into one."""
    buffer = bytearray(3)

    def refilled() -> Iterator[bytearray]:
        for word in (b"one", b"two"):
            buffer[:] = word
            yield buffer

    async def refilled_asynchronously() -> AsyncIterator[bytearray]:
        for item in refilled():
            yield item

    assert await pieces_of(await content_of(refilled_asynchronously())) == [b"onetwo"]
    assert [piece async for piece in items_in_thread(refilled())] == [b"onetwo"]


@pytest.mark.parametrize("item", ["text", 5, None])
async def test_an_item_that_is_no_bytes_is_refused(item: Any) -> None:
    """One line; a number above all, of which Python would make as many zeros."""
    said = f"^content is an iterator of bytes, not of {type(item).__name__}$"
    with pytest.raises(InvalidArgument, match=said):
        await pieces_of(await content_of(items(item)))
    with pytest.raises(InvalidArgument, match=said):
        [piece async for piece in items_in_thread([item])]


@pytest.mark.parametrize("data", ["/some/path", 5, None, [b"x"]])
async def test_what_is_no_content_is_refused(data: object) -> None:
    """One line that names the forms; a path given as text is the likeliest mistake."""
    with pytest.raises(InvalidArgument, match=r"^content is bytes, a pathlib.Path or an iterator of bytes, not "):
        await content_of(data)  # type: ignore[arg-type]


async def test_a_file_that_is_left_early_is_closed(tmp_path: Path) -> None:
    """Also while a piece is read ahead."""
    (tmp_path / "file").write_bytes(DATA)
    content = await content_of(tmp_path / "file")
    async with aclosing(content.pieces()) as pieces:
        await anext(pieces)
    assert not is_open(tmp_path / "file")


async def test_a_blocking_iterator_is_taken_in_large_steps() -> None:
    """Many small items cost few changes of threads, and empty ones do not end it."""
    given = [b"", *(bytes([n % 256]) * 100 for n in range(20_000)), b""]
    pieces = [piece async for piece in items_in_thread(given)]
    assert b"".join(pieces) == b"".join(given)
    assert len(pieces) == 4


async def test_an_error_of_a_blocking_iterator_arrives() -> None:
    """As itself."""

    def failing() -> Iterator[bytes]:
        yield b"x"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        [piece async for piece in items_in_thread(failing())]


async def test_a_digest_counts_at_once_and_hashes_all() -> None:
    """The size is right before the hashing thread is done."""
    digest = Digest()
    for piece in (b"a", DATA, b"b", DATA):
        await digest.update(piece)
    assert digest.size_bytes == 2 * len(DATA) + 2
    assert await digest.sha256() == hashlib.sha256(b"a" + DATA + b"b" + DATA).digest()


async def test_a_sink_writes_everything_and_never_over_a_file(tmp_path: Path) -> None:
    """Pieces lie in the file in order when the block ends; a file that is there is left alone."""
    async with FileSink(tmp_path / "new") as sink:
        for start in range(0, len(DATA), 100_000):
            await sink.write(DATA[start : start + 100_000])
    assert (tmp_path / "new").read_bytes() == DATA
    with pytest.raises(FileExistsError):
        async with FileSink(tmp_path / "new"):
            raise AssertionError("entered")


async def test_a_sink_that_cannot_write_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is an OSError, at the latest at the end of the block."""
    full = os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb")
    monkeypatch.setattr(Path, "open", lambda *_: full)
    with pytest.raises(OSError, match="No space left on device"):
        async with FileSink(Path("new")) as sink:
            await sink.write(DATA)
