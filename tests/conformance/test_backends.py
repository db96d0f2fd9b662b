"""What every backend of Storage does; the file that a new backend joins by one line in `BACKENDS`."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from antfarm.errors import BlobNotFound, Conflict, DataLoss, DigestMismatch, OutOfRange
from antfarm.model import BlobRef
from services.storage.backends.base import CHUNK_BYTES_MAX, Backend, Written
from services.storage.backends.filesystem import FilesystemBackend
from services.storage.backends.memory import MemoryBackend


def damage_memory(backend: MemoryBackend, path: Path, key: str) -> None:
    blob, content = backend._blobs[key]
    backend._blobs[key] = blob, content[:-1] + bytes([content[-1] ^ 1])


def damage_file(backend: FilesystemBackend, path: Path, key: str) -> None:
    with (path / "storage/blobs" / f"{key}@").open("r+b") as file:
        file.seek(len(LARGE) - 1)
        last = file.read(1)[0]
        file.seek(len(LARGE) - 1)
        file.write(bytes([last ^ 1]))


BACKENDS: dict[str, tuple[Callable[[Path], Backend], Callable[..., None]]] = {
    "memory": (lambda _: MemoryBackend(), damage_memory),
    "filesystem": (lambda path: FilesystemBackend.open(path / "storage"), damage_file),
}
"""How to make each backend, and how to flip the last bit of the content of the blob LARGE behind its back."""
LARGE = bytes(range(256)) * 9000 + b"end"  # 2.3 MB: several blocks, the last one short


@pytest.fixture(params=BACKENDS)
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    made = BACKENDS[request.param][0](tmp_path)
    yield made
    await made.close()


@pytest.fixture
async def damaged(backend: Backend, request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """The backend with the damaged blob "k", whose right content is LARGE."""
    await put(backend, "k", LARGE)
    BACKENDS[request.node.callspec.params["backend"]][1](backend, tmp_path, "k")
    return backend


async def put(backend: Backend, key: str, content: bytes, chunk_bytes: int = CHUNK_BYTES_MAX) -> Written:
    writer = await backend.open_write(key)
    try:
        for start in range(0, len(content), chunk_bytes):
            await writer.write(content[start : start + chunk_bytes])
        return await writer.commit()
    finally:
        await writer.abort()


async def get(backend: Backend, key: str, offset: int = 0, length: int = 0) -> bytes:
    reader = await backend.open_read(key, offset=offset, length=length)
    pieces = []
    try:
        while piece := await reader.read():
            assert len(piece) <= CHUNK_BYTES_MAX
            pieces.append(piece)
    finally:
        await reader.close()
    return b"".join(pieces)


async def keys(backend: Backend, prefix: str = "", after: str = "", limit: int = 1000) -> list[str]:
    return [blob.key for blob in await backend.list_page(prefix, after=after, limit=limit)]


def ref(key: str, content: bytes) -> BlobRef:
    return BlobRef(key=key, size_bytes=len(content), sha256=hashlib.sha256(content).digest())


@pytest.mark.parametrize("content", [b"", b"x", LARGE, bytes(512 * 1024), bytes(1024 * 1024)], ids=len)
async def test_a_blob_comes_back_as_it_was_written(backend: Backend, content: bytes) -> None:
    """Content of every size around the block's comes back, and its record tells size and digest."""
    assert await put(backend, "a/b", content) == Written(blob=ref("a/b", content), existed=False)
    assert await get(backend, "a/b") == content
    assert await backend.stat("a/b") == await backend.verify("a/b") == ref("a/b", content)


@pytest.mark.parametrize("chunk_bytes", [1, 1000, 300_000])
async def test_the_size_of_chunks_makes_no_difference(backend: Backend, chunk_bytes: int) -> None:
    """Chunks of any size add up to the same blob."""
    content = LARGE[: 700_000 if chunk_bytes > 1 else 3000]
    assert (await put(backend, "k", content, chunk_bytes)).blob == ref("k", content)
    assert await get(backend, "k") == content


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, 1),
        (0, len(LARGE)),
        (5, 0),
        (524_287, 2),
        (524_288, 524_288),
        (1_000_000, 1_000_000),
        (len(LARGE) - 1, 9),
        (len(LARGE), 0),
        (7, 10**12),
    ],
)
async def test_a_range_is_what_a_slice_is(backend: Backend, offset: int, length: int) -> None:
    """Length 0 means to the end, and what lies beyond the end is left out."""
    await put(backend, "k", LARGE)
    assert await get(backend, "k", offset, length) == LARGE[offset : offset + length if length else None]


async def test_an_offset_beyond_the_end_is_out_of_range(backend: Backend) -> None:
    """An offset after the last byte is refused."""
    await put(backend, "k", b"abc")
    with pytest.raises(OutOfRange, match="blob k has 3 bytes"):
        await backend.open_read("k", offset=4)


async def test_what_is_not_there_is_not_found(backend: Backend) -> None:
    """Every way to ask for a blob that does not exist says so; a key that only leads to others is none."""
    await put(backend, "a/b/c", b"1")
    for key in ("x", "a", "a/b", "a/b/c/d"):
        for ask in (backend.stat, backend.verify, backend.open_read):
            with pytest.raises(BlobNotFound, match=f"no blob {key}"):
                await ask(key)
        assert await backend.delete(key) is False


async def test_the_same_content_again_existed(backend: Backend) -> None:
    """Writing a blob twice is no error, which makes writes safe to repeat."""
    await put(backend, "k", LARGE)
    assert await put(backend, "k", LARGE) == Written(blob=ref("k", LARGE), existed=True)


async def test_other_content_is_a_conflict_and_changes_nothing(backend: Backend) -> None:
    """A committed blob never changes."""
    await put(backend, "k", b"first")
    with pytest.raises(Conflict, match="blob k exists with other content"):
        await put(backend, "k", b"other")
    assert await get(backend, "k") == b"first"


async def test_nobody_sees_a_blob_before_its_commit(backend: Backend) -> None:
    """A blob that is on its way in is not found, not listed, not deleted."""
    writer = await backend.open_write("k")
    await writer.write(LARGE[:CHUNK_BYTES_MAX])
    with pytest.raises(BlobNotFound):
        await backend.stat("k")
    assert await keys(backend) == []
    assert await backend.delete("k") is False
    await writer.commit()
    assert await keys(backend) == ["k"]


async def test_an_aborted_write_leaves_nothing(backend: Backend) -> None:
    """After an abort the key is free, and abort may be called again or after a commit."""
    writer = await backend.open_write("k")
    await writer.write(LARGE[:CHUNK_BYTES_MAX])
    await writer.abort()
    await writer.abort()
    assert await keys(backend) == []
    await put(backend, "k", b"other")
    assert await get(backend, "k") == b"other"


@pytest.mark.parametrize(
    ("size_bytes", "sha256"),
    [(4, b""), (2, b""), (None, bytes(32)), (3, bytes(32))],
    ids=["long", "short", "digest", "both"],
)
async def test_content_that_is_not_what_was_announced_is_refused(
    backend: Backend, size_bytes: int | None, sha256: bytes
) -> None:
    """A commit under another size or digest than what came keeps nothing."""
    writer = await backend.open_write("k")
    await writer.write(b"abc")
    with pytest.raises(DigestMismatch, match="nothing was kept"):
        await writer.commit(size_bytes=size_bytes, sha256=sha256)
    await writer.abort()
    assert await keys(backend) == []


async def test_of_many_writers_of_one_key_exactly_one_wins(backend: Backend) -> None:
    """Writers with the winner's content get `existed`, the others Conflict; the blob is the winner's."""

    async def attempt(content: bytes) -> str:
        try:
            return "existed" if (await put(backend, "d/k", content)).existed else "won"
        except Conflict:
            return "conflict"

    contents = [b"a" * 200_000, b"b" * 200_000] * 6
    outcomes = await asyncio.gather(*(attempt(content) for content in contents))
    assert outcomes.count("won") == 1
    winner = contents[outcomes.index("won")]
    for content, outcome in zip(contents, outcomes, strict=True):
        assert outcome in (("won", "existed") if content == winner else ("conflict",))
    assert await get(backend, "d/k") == winner


async def test_delete_frees_the_key(backend: Backend) -> None:
    """A deleted blob is gone, deleting it again is False, and its key takes other content."""
    await put(backend, "a/k", b"first")
    assert await backend.delete("a/k") is True
    assert await backend.delete("a/k") is False
    assert await keys(backend) == []
    await put(backend, "a/k", b"other")
    assert await get(backend, "a/k") == b"other"


async def test_a_reader_that_is_open_goes_on_after_a_delete(backend: Backend) -> None:
    """Deleting does not take bytes from under a reader."""
    await put(backend, "k", LARGE)
    reader = await backend.open_read("k")
    content = await reader.read()
    await backend.delete("k")
    while piece := await reader.read():
        content += piece
    await reader.close()
    assert content == LARGE


ORDERED = [
    "A",
    "a",
    "a-b",
    "a.b",
    "a/-",
    "a/b",
    "a/b-",
    "a/b/c",
    "a/b0",
    "a0",
    "aa/a",
    "b" * 200,
    "b" * 201,
    "b" * 250 + "/x",
    "b" * 511,
    "c/" + "d" * 300 + "/e",
    "c/" + "d" * 300 + "e",
]


async def test_listing_is_in_the_order_of_keys(backend: Backend) -> None:
    """Keys come as sorted text, however they share directories: `a` before `a-b` before `a/b` before `a0`."""
    for key in reversed(ORDERED):
        await put(backend, key, b"x")
    assert sorted(ORDERED) == ORDERED
    assert await keys(backend) == ORDERED


@pytest.mark.parametrize(
    "prefix", ["", "a", "a/", "a/b", "a/b/", "a0", "aa/", "b", "b" * 205, "c/d", "c/" + "d" * 300, "zz"]
)
@pytest.mark.parametrize("limit", [1, 2, 3, 50])
async def test_pages_add_up_to_all_keys_with_the_prefix(backend: Backend, prefix: str, limit: int) -> None:
    """A prefix need not be a whole segment; pages of any size miss nothing and repeat nothing."""
    for key in ORDERED:
        await put(backend, key, b"x")
    found: list[str] = []
    while page := await keys(backend, prefix, found[-1] if found else "", limit):
        assert len(page) <= limit
        found += page
    assert found == [key for key in ORDERED if key.startswith(prefix)]


async def test_listing_follows_what_comes_and_goes(backend: Backend) -> None:
    """What is written or deleted after a listing is in, or out of, the next; also where a directory was emptied."""
    await put(backend, "a/b/one", b"1")
    assert await keys(backend) == ["a/b/one"]
    await put(backend, "a/b/two", b"2")
    await put(backend, "a/c/" + "x" * 300, b"3")
    assert await keys(backend) == ["a/b/one", "a/b/two", "a/c/" + "x" * 300]
    for key in ("a/b/one", "a/b/two", "a/c/" + "x" * 300):
        assert await backend.delete(key)
    assert await keys(backend) == []
    await put(backend, "a/b/three", b"3")
    assert await keys(backend) == ["a/b/three"]


async def test_listing_from_a_key_that_is_gone(backend: Backend) -> None:
    """A page goes on behind the last key even when that key and its directory were deleted in between."""
    for key in ("a", "b/c/d", "b/e", "f"):
        await put(backend, key, b"x")
    await backend.delete("b/c/d")
    assert await keys(backend, after="b/c/d") == ["b/e", "f"]
    assert await keys(backend, after="b/c/d", prefix="b/") == ["b/e"]


async def test_damaged_bytes_are_never_read(damaged: Backend) -> None:
    """A read gives right bytes, then DataLoss; never a wrong byte."""
    reader = await damaged.open_read("k")
    pieces: list[bytes] = []

    async def read_on() -> None:
        while piece := await reader.read():
            pieces.append(piece)

    with pytest.raises(DataLoss, match="blob k is damaged"):
        await read_on()
    await reader.close()
    content = b"".join(pieces)
    assert LARGE.startswith(content)
    assert len(content) < len(LARGE)


async def test_damage_is_found_by_verify_and_by_a_range_over_it(damaged: Backend) -> None:
    """Verify reads everything; a range needs only its own blocks."""
    with pytest.raises(DataLoss, match="blob k is damaged"):
        await damaged.verify("k")
    with pytest.raises(DataLoss, match="blob k is damaged"):
        await get(damaged, "k", len(LARGE) - 2, 1)


async def test_a_damaged_blob_does_not_pass_for_existing(damaged: Backend) -> None:
    """`existed` promises that the content is there, so a repeated write over a damaged blob is DataLoss, and right after a delete."""
    with pytest.raises(DataLoss, match="blob k is damaged"):
        await put(damaged, "k", LARGE)
    assert await damaged.delete("k") is True
    assert (await put(damaged, "k", LARGE)).existed is False
    assert await get(damaged, "k") == LARGE
