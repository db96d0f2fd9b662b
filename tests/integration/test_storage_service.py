"""BlobService and its clients over real gRPC on loopback, on the file backend."""

from __future__ import annotations

import asyncio
import errno
import gc
import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from grpc.aio._call import StreamUnaryCall  # the class behind the public name, which is abstract

from antfarm import __version__, net, storage, wire
from antfarm.errors import (
    BlobNotFound,
    Conflict,
    DataLoss,
    DiskFull,
    InvalidArgument,
    InvalidKey,
    OutOfRange,
    Overloaded,
    ProtocolUnsupported,
    Unavailable,
)
from antfarm.interceptor import ErrorInterceptor
from antfarm.model import PROTOCOL_MAJOR, PROTOCOL_MINOR, BlobRef
from antfarm.storage import AsyncStorage, Storage
from antfarm.v1 import blob_pb2, blob_pb2_grpc, system_pb2, system_pb2_grpc
from services.storage.backends.base import Written
from services.storage.backends.filestream import FileWriter
from services.storage.backends.filesystem import FilesystemBackend
from services.storage.servicer import BlobServicer, SystemServicer

CONTENT = os.urandom(2_500_000)


def ref(key: str, content: bytes) -> BlobRef:
    return BlobRef(key=key, size_bytes=len(content), sha256=hashlib.sha256(content).digest())


async def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(path: Path, *, streams_max: int = 100, port: int = 0) -> AsyncIterator[str]:
    backend = FilesystemBackend.open(path)
    server = net.make_server([ErrorInterceptor()])
    blobs = BlobServicer(backend, streams_max=streams_max)
    blob_pb2_grpc.add_BlobServiceServicer_to_server(blobs, server)
    system_pb2_grpc.add_SystemServiceServicer_to_server(
        SystemServicer(server_id=backend.server_id, warnings=lambda: ("insecure",)), server
    )
    port = net.bind(server, "127.0.0.1", port, None, insecure=False)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)
        await blobs.ended()
        await backend.close()
        del server
        gc.collect()  # grpc.aio ends its server in the finaliser, which must find this loop running


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    async with serving(tmp_path / "s") as address:
        yield address


@pytest.fixture
async def client(address: str) -> AsyncIterator[AsyncStorage]:
    async with AsyncStorage(address) as client:
        yield client


@pytest.fixture
async def stub(address: str) -> AsyncIterator[blob_pb2_grpc.BlobServiceStub]:
    channel = net.open_channel(address)
    yield blob_pb2_grpc.BlobServiceStub(channel)
    await channel.close()


def no_temporaries(tmp_path: Path) -> Callable[[], bool]:
    return lambda: os.listdir(tmp_path / "s/tmp") == []


# ---- the asynchronous client ------------------------------------------------------------------------------------------


async def pieces_of(content: bytes, piece_bytes: int) -> AsyncIterator[bytes]:
    for start in range(0, len(content), piece_bytes):
        yield content[start : start + piece_bytes]


@pytest.mark.parametrize("content", [b"", b"x", CONTENT], ids=len)
async def test_bytes_files_and_iterators_go_in(client: AsyncStorage, tmp_path: Path, content: bytes) -> None:
    """All three sources make the same blob, and each may be repeated."""
    source = tmp_path / "source"
    source.write_bytes(content)
    for _ in range(2):
        assert await client.put("k", content) == ref("k", content)
        assert await client.put("k", source) == ref("k", content)
        assert await client.put("k", pieces_of(content, 70_000)) == ref("k", content)
    assert await client.put("big-pieces", pieces_of(content, 5_000_000)) == ref("big-pieces", content)
    assert await client.put("small-pieces", pieces_of(content[:2000], 1)) == ref("small-pieces", content[:2000])


@pytest.mark.parametrize("content", [b"", b"x", CONTENT], ids=len)
async def test_blobs_come_out(client: AsyncStorage, tmp_path: Path, content: bytes) -> None:
    """As bytes, as a stream of pieces and as a file, by key and by reference."""
    blob = await client.put("k", content)
    for source in ("k", blob):
        assert await client.get(source) == content
        assert b"".join([piece async for piece in client.stream(source)]) == content
        assert await client.download(source, tmp_path / "copy") == blob
        assert (tmp_path / "copy").read_bytes() == content
    assert sorted(os.listdir(tmp_path)) == ["copy", "s"]
    assert await client.stat("k") == await client.verify("k") == blob


async def test_several_blobs_go_in_together(client: AsyncStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones in few calls, large ones in calls of their own; empty, and again, and told in their order."""
    calls: list[int] = []
    build = storage._write_blobs_request
    monkeypatch.setattr(storage, "_write_blobs_request", lambda group: calls.append(len(group)) or build(group))
    blobs = {f"d/{number}": b"%d" % number for number in range(70)}
    blobs |= {"d/large": CONTENT, "d/fits": CONTENT[: 1024 * 1024], "d/too": CONTENT[: 1024 * 1024 - 9], "d/none": b""}
    for _ in range(2):
        assert await client.put_all(blobs) == [ref(key, content) for key, content in blobs.items()]
    assert calls == [64, 6, 3] * 2
    assert {blob.key: await client.get(blob) async for blob in client.list()} == blobs
    assert await client.put_all({}) == []


async def test_several_blobs_come_out_together(client: AsyncStorage) -> None:
    """Whatever their sizes and number, in the order asked for, one of them twice; a missing one is told, as are keys that are none."""
    blobs = {f"d/{number}": b"%d" % number for number in range(70)}
    blobs |= {"large": CONTENT, "none": b"", "fits": CONTENT[: 1024 * 1024], "fits-too": CONTENT[1024 * 1024 :]}
    await client.put_all(blobs)
    keys = [*reversed(blobs), "d/5", "large"]
    assert await client.get_all(iter(keys)) == [blobs[key] for key in keys]
    assert await client.get_all([]) == []
    with pytest.raises(BlobNotFound, match="no blob missing"):
        await client.get_all(["d/1", "missing"])
    for key in ("../d", "\udc80"):
        with pytest.raises(InvalidKey):
            await client.get_all(["d/1", key])


async def test_the_last_of_several_stands_for_the_others(client: AsyncStorage, tmp_path: Path) -> None:
    """It is written only when all before it are durable. What went wrong is told, and what went well stays."""
    await client.put("d/taken", b"other")
    with pytest.raises(Conflict, match=r"^blob d/taken exists with other content"):
        await client.put_all({"d/a": b"a", "d/taken": b"t", "d/b": b"b", "d/last": b"l"})
    with pytest.raises(InvalidKey):
        await client.put_all({"d/c": b"c", "../d": b"d", "d/last": b"l"})
    assert [blob.key async for blob in client.list()] == ["d/a", "d/b", "d/c", "d/taken"]
    with pytest.raises(Conflict):
        await client.put_all({"d/a": b"a", "d/e": b"e", "d/taken": b"t"})
    assert [blob.key async for blob in client.list("d/e")] == ["d/e"]
    await wait_until(no_temporaries(tmp_path))


async def test_the_last_of_several_comes_after_the_others(
    client: AsyncStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its write begins when all others have ended, however long they take."""
    order: list[str] = []
    commit = FileWriter.commit

    async def slow(self: FileWriter, **announced: Any) -> Written:
        order.append(f"begin {self._key}")
        await asyncio.sleep(0.05 if self._key == "b" else 0.0)
        written = await commit(self, **announced)
        order.append(f"end {self._key}")
        return written

    monkeypatch.setattr(FileWriter, "commit", slow)
    await client.put_all({"a": b"1", "b": b"2", "c": b"3", "last": b"4"})
    assert order[:3] == ["begin a", "begin b", "begin c"]
    assert order[-3:] == ["end b", "begin last", "end last"]


async def test_several_blobs_given_up_halfway_leave_no_half_blob_and_not_the_last(
    client: AsyncStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server drops what it was writing when the caller is cancelled; what was durable stays, and all of it can be put again."""
    blobs = {"a": b"1", "b": b"2", "last": b"3"}
    a_ended, b_begun = asyncio.Event(), asyncio.Event()
    commit = FileWriter.commit

    async def held(self: FileWriter, **announced: Any) -> Written:
        if self._key == "b":
            await a_ended.wait()
            b_begun.set()
            await asyncio.Event().wait()
        written = await commit(self, **announced)
        a_ended.set()
        return written

    with monkeypatch.context() as patched:
        patched.setattr(FileWriter, "commit", held)
        putting = asyncio.create_task(client.put_all(blobs))
        await b_begun.wait()
        putting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await putting
        await wait_until(no_temporaries(tmp_path))
    assert [blob.key async for blob in client.list()] == ["a"]
    assert await client.put_all(blobs) == [ref(key, content) for key, content in blobs.items()]


async def test_a_disk_that_fills_up_among_several_blobs_is_told_and_keeps_the_last_away(
    client: AsyncStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for one of three: that one stays, the last is not written, and all go in when there is room again."""
    blobs = {"a": b"1", "b": b"2", "c": b"3", "last": b"4"}
    room, link = iter([True]), os.link

    def crowded(*args: Any, **kwargs: Any) -> None:
        if not next(room, False):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        link(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(os, "link", crowded)
        with pytest.raises(DiskFull, match=r"^storage is full \(No space left on device\); nothing was kept"):
            await client.put_all(blobs)
    kept = [blob.key async for blob in client.list()]
    assert len(kept) == 1
    assert kept[0] != "last"
    assert no_temporaries(tmp_path)()
    assert await client.put_all(blobs) == [ref(key, content) for key, content in blobs.items()]


async def test_ranges_come_out(client: AsyncStorage) -> None:
    """Offset and length cut as a slice does, by key and by reference."""
    blob = await client.put("k", CONTENT)
    for offset, length in ((0, 10), (5, 0), (524_280, 16), (1_000_000, 1_000_000), (2_499_999, 50), (2_500_000, 0)):
        expected = CONTENT[offset : offset + length if length else None]
        assert await client.get("k", offset=offset, length=length) == expected
        assert await client.get(blob, offset=offset, length=length) == expected
    assert await client.get("k", offset=np.int64(2_499_999), length=np.uint8(1)) == CONTENT[-1:]
    with pytest.raises(OutOfRange):
        await client.get("k", offset=2_500_001)
    for name in ("offset", "length"):
        for value in (-1, 1.5, "1", None):
            with pytest.raises(InvalidArgument) as caught:
                await client.get("k", **{name: value})
            assert str(caught.value) == f"{name}={value!r}: give a whole number of bytes, zero or more"
        with pytest.raises(OutOfRange, match=f"^{name}={2**63}: no blob is as long$"):
            await client.get("k", **{name: 2**63})
    assert await client.get("k", offset=2_499_999, length=2**63 - 1) == CONTENT[-1:]


async def test_errors_arrive_as_themselves(client: AsyncStorage, tmp_path: Path) -> None:
    """Each mistake has its own exception with one clear line."""
    await client.put("k", b"content")
    for call in (
        client.get("none"),
        client.stat("none"),
        client.verify("none"),
        client.download("none", tmp_path / "x"),
    ):
        with pytest.raises(BlobNotFound, match=r"^no blob none$"):
            await call
    with pytest.raises(Conflict, match=r"^blob k exists with other content, and a blob never changes"):
        await client.put("k", b"other")
    with pytest.raises(Conflict):
        await client.put("k", pieces_of(b"other", 1))
    for key in ("", "/etc/passwd", "a/../b", "a b", "ä"):
        with pytest.raises(InvalidKey, match="is not allowed"):
            await client.put(key, b"content")
        with pytest.raises(InvalidKey, match="is not allowed"):
            await client.get(key)
    with pytest.raises(InvalidKey, match="is the start of no key"):
        await anext(client.list("//"))
    unsendable: list[Any] = ["a\udc80", 5, None]
    for key in unsendable:
        for call in (
            client.put(key, b"content"),
            client.get(key),
            client.stat(key),
            client.verify(key),
            client.download(key, tmp_path / "x"),
            client.delete(key),
            anext(client.list(key)),
        ):
            with pytest.raises(InvalidKey) as caught:
                await call
            assert str(caught.value) == f"key {key!r} is not allowed: it is no text that can be sent"
    assert await client.delete("none") is False
    assert os.listdir(tmp_path) == ["s"]


@pytest.mark.slow
async def test_a_conflict_is_told_before_the_content_is_sent(client: AsyncStorage) -> None:
    """Whether the server decides early or late, the client gets its reason, however much it still had to send."""
    await client.put("k", b"content")
    for _ in range(20):
        with pytest.raises(Conflict):
            await client.put("k", CONTENT * 8)
    assert (await client.put("k2", CONTENT)).size_bytes == len(CONTENT)
    for _ in range(20):
        assert await client.put("k2", CONTENT) == ref("k2", CONTENT)


async def test_listing_walks_over_pages(client: AsyncStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The iterator gives all blobs in order, whatever the size of a page."""
    monkeypatch.setattr(storage, "_PAGE_BLOBS", 3)
    keys = sorted([f"a/{index}" for index in range(10)] + ["b", "aa"])
    for key in keys:
        await client.put(key, key.encode())
    assert [blob async for blob in client.list()] == [ref(key, key.encode()) for key in keys]
    assert [blob.key async for blob in client.list("a/")] == [key for key in keys if key.startswith("a/")]
    assert [blob.key async for blob in client.list("zz")] == []


async def test_a_source_that_fails_leaves_nothing(client: AsyncStorage, tmp_path: Path) -> None:
    """An iterator that raises ends the write; its exception reaches the caller and the key stays free."""

    async def failing() -> AsyncIterator[bytes]:
        yield bytes(1_000_000)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await client.put("k", failing())
    with pytest.raises(FileNotFoundError):
        await client.put("k", tmp_path / "no-such-file")
    await wait_until(no_temporaries(tmp_path))
    assert [blob async for blob in client.list()] == []


async def test_a_cancelled_put_leaves_nothing(client: AsyncStorage, tmp_path: Path) -> None:
    """Cancelling ends the write on both sides."""
    started = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(600_000)
            started.set()
            await asyncio.sleep(0.001)

    task = asyncio.create_task(client.put("k", endless()))
    await started.wait()
    await wait_until(lambda: os.listdir(tmp_path / "s/tmp") != [])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await wait_until(no_temporaries(tmp_path))
    assert [blob async for blob in client.list()] == []


async def test_leaving_a_stream_early_ends_the_call(client: AsyncStorage, tmp_path: Path) -> None:
    """A reader that loses interest does not keep the blob open on the server."""
    await client.put("k", CONTENT * 10)
    path = str(tmp_path / "s/blobs/k@")

    def is_open() -> bool:
        return any(os.path.realpath(f"/proc/self/fd/{fd}") == path for fd in os.listdir("/proc/self/fd"))

    stream = client.stream("k")
    await anext(stream)
    assert is_open()
    await stream.aclose()
    await wait_until(lambda: not is_open())


# ---- damage -----------------------------------------------------------------------------------------------------------


async def test_a_flipped_byte_is_data_loss_and_never_a_wrong_byte(client: AsyncStorage, tmp_path: Path) -> None:
    """Whole reads, ranges over the damage, downloads and verify all say DataLoss; ranges elsewhere still come."""
    blob = await client.put("k", CONTENT)
    with (tmp_path / "s/blobs/k@").open("r+b") as file:
        file.seek(1_200_000)
        file.write(bytes([CONTENT[1_200_000] ^ 1]))
    pieces: list[bytes] = []

    async def read_on() -> None:
        async for piece in client.stream("k"):
            pieces.append(piece)  # noqa: PERF401 - what came before the error is looked at

    with pytest.raises(DataLoss, match="blob k is damaged"):
        await read_on()
    assert CONTENT.startswith(b"".join(pieces))
    for call in (
        client.get(blob),
        client.get("k", offset=1_199_999, length=3),
        client.download("k", tmp_path / "copy"),
        client.verify("k"),
        client.put("k", CONTENT),
    ):
        with pytest.raises(DataLoss, match="blob k is damaged"):
            await call
    assert not (tmp_path / "copy").exists()
    assert await client.get("k", offset=2_200_000) == CONTENT[2_200_000:]


async def test_a_blob_that_is_not_what_its_reference_says_is_data_loss(client: AsyncStorage) -> None:
    """A reference names content, not only a key."""
    await client.put("k", b"content")
    for wrong in (ref("k", b"other"), BlobRef(key="k", size_bytes=8, sha256=ref("k", b"content").sha256)):
        with pytest.raises(DataLoss, match="blob k has other content than its reference says"):
            await client.get(wrong)
        with pytest.raises(DataLoss):
            await client.get(wrong, offset=1, length=1)


async def test_wrong_bytes_from_the_wire_are_data_loss(tmp_path: Path) -> None:
    """The client does not take the server's word: content that does not match the digest raises at the end."""

    class Liar(blob_pb2_grpc.BlobServiceServicer):
        async def ReadBlob(self, request: blob_pb2.ReadBlobRequest, context: object) -> AsyncIterator[object]:
            yield blob_pb2.ReadBlobResponse(blob=wire.blob_to_wire(ref("k", b"right")), chunk=b"wrong")

        async def ReadBlobs(self, request: blob_pb2.ReadBlobsRequest, context: object) -> object:
            return blob_pb2.ReadBlobsResponse(
                blobs=[message async for message in self.ReadBlob(blob_pb2.ReadBlobRequest(), context)]
            )

    server = net.make_server()
    blob_pb2_grpc.add_BlobServiceServicer_to_server(Liar(), server)  # type: ignore[abstract]
    port = net.bind(server, "127.0.0.1", 0, None, insecure=False)
    await server.start()
    async with AsyncStorage(f"127.0.0.1:{port}") as client:
        with pytest.raises(DataLoss, match="what arrived does not match its digest"):
            await client.get("k")
        with pytest.raises(DataLoss, match="what arrived does not match its digest"):
            await client.download("k", tmp_path / "copy")
        with pytest.raises(DataLoss, match="what arrived does not match its digest"):
            await client.get_all(["k"])
    await server.stop(0)
    assert os.listdir(tmp_path) == []


async def test_whoever_is_no_storage_of_this_protocol_is_told_apart_at_once(tmp_path: Path) -> None:
    """As one of another major version is: its services have the names of another package."""
    server = net.make_server([ErrorInterceptor()])
    system = SystemServicer(server_id="x", warnings=tuple)
    system_pb2_grpc.add_SystemServiceServicer_to_server(system, server)
    address = f"127.0.0.1:{net.bind(server, '127.0.0.1', 0, None, insecure=False)}"
    await server.start()
    async with AsyncStorage(address) as client:
        calls = (
            client.put("k", b"1"),
            client.put_all({"k": b"1", "l": b"2"}),
            client.get("k"),
            client.get_all(["k", "l"]),
            client.stat("k"),
            client.delete("k"),
            client.verify("k"),
        )
        for call in calls:
            with pytest.raises(ProtocolUnsupported, match=f"^{address} does not answer as a Storage of protocol 1 "):
                await call
    await server.stop(0)


# ---- the protocol -----------------------------------------------------------------------------------------------------

Frames = list[blob_pb2.WriteBlobRequest]
HEADER = blob_pb2.WriteBlobHeader
FINISH = blob_pb2.WriteBlobFinish


def frames(*parts: blob_pb2.WriteBlobHeader | bytes | blob_pb2.WriteBlobFinish) -> Frames:
    made = []
    for part in parts:
        if isinstance(part, bytes):
            made.append(blob_pb2.WriteBlobRequest(chunk=part))
        elif isinstance(part, blob_pb2.WriteBlobHeader):
            made.append(blob_pb2.WriteBlobRequest(header=part))
        else:
            made.append(blob_pb2.WriteBlobRequest(finish=part))
    return made


def sha(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


@pytest.mark.parametrize(
    "stream",
    [
        frames(HEADER(key="k"), b"ab", b"c", FINISH()),
        frames(HEADER(key="k"), b"abc", FINISH(size_bytes=3, sha256=sha(b"abc"))),
        frames(HEADER(key="k", size_bytes=3), b"abc"),
        frames(HEADER(key="k", size_bytes=3), b"abc", FINISH(sha256=sha(b"abc"))),
        frames(HEADER(key="k", size_bytes=3, sha256=sha(b"abc")), b"", b"abc", FINISH(size_bytes=3)),
    ],
    ids=["finish", "finish-says-all", "header-says-size", "both", "header-says-all"],
)
async def test_streams_that_commit(stub: blob_pb2_grpc.BlobServiceStub, stream: Frames) -> None:
    """A finish frame, or the announced number of bytes, makes a blob."""
    answer = await stub.WriteBlob(iter(stream))
    assert wire.blob_from_wire(answer.blob) == ref("k", b"abc")
    assert answer.existed is False


SMALL = blob_pb2.SmallBlob


@pytest.mark.parametrize(
    ("blobs", "reason"),
    [
        ([SMALL(key=f"k{number}") for number in range(65)], "65 blobs in one call are above 64"),
        ([SMALL(key="k", content=bytes(1024 * 1024 + 1))], "1048577 bytes in one piece are above 1048576"),
        ([SMALL(key="k", content=b"abc", sha256=b"short")], "sha256 has 5 bytes"),
        ([SMALL(key="k", content=b"abc", sha256=sha(b"abd"))], "was announced"),
        ([SMALL(key="k/../k", content=b"abc"), SMALL(key="last")], "is not allowed"),
    ],
    ids=["many", "large", "digest-form", "digest", "key"],
)
async def test_calls_with_several_blobs_that_are_refused(
    stub: blob_pb2_grpc.BlobServiceStub, tmp_path: Path, blobs: list[blob_pb2.SmallBlob], reason: str
) -> None:
    """Their form and digests are judged as those of a stream are."""
    with pytest.raises(grpc.aio.AioRpcError, match=reason) as caught:
        await stub.WriteBlobs(blob_pb2.WriteBlobsRequest(blobs=blobs))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert os.listdir(tmp_path / "s/blobs") == []
    await wait_until(no_temporaries(tmp_path))


async def test_what_does_not_fit_is_left_to_a_read_of_its_own(stub: blob_pb2_grpc.BlobServiceStub) -> None:
    """2 MiB of content together; what comes after a blob that is too large still comes. Nor are more than 64 read."""
    for key, size in (("a", 1024 * 1024), ("b", 1024 * 1024), ("c", 1)):
        await stub.WriteBlob(iter(frames(HEADER(key=key), bytes(size), FINISH())))
    answer = await stub.ReadBlobs(blob_pb2.ReadBlobsRequest(keys=["c", "a", "b", "c"]))
    assert [(message.blob.key, len(message.chunk)) for message in answer.blobs] == [
        ("c", 1),
        ("a", 1024 * 1024),
        ("b", 0),
        ("c", 1),
    ]
    with pytest.raises(grpc.aio.AioRpcError, match="65 blobs in one call are above 64"):
        await stub.ReadBlobs(blob_pb2.ReadBlobsRequest(keys=["c"] * 65))


async def test_several_blobs_need_no_digest(stub: blob_pb2_grpc.BlobServiceStub) -> None:
    """As in a stream it may be left out; what existed is told for each, and of none there is nothing to tell."""
    await stub.WriteBlobs(blob_pb2.WriteBlobsRequest(blobs=[SMALL(key="k", content=b"abc")]))
    request = blob_pb2.WriteBlobsRequest(blobs=[SMALL(key="k", content=b"abc"), SMALL(key="l")])
    answer = await stub.WriteBlobs(request)
    assert [wire.blob_from_wire(written.blob) for written in answer.written] == [ref("k", b"abc"), ref("l", b"")]
    assert [written.existed for written in answer.written] == [True, False]
    assert len((await stub.WriteBlobs(blob_pb2.WriteBlobsRequest())).written) == 0


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (frames(), "the first frame of WriteBlob must be a header"),
        (frames(b"abc"), "the first frame of WriteBlob must be a header"),
        (frames(HEADER(key="k"), b"abc"), "the stream ended without a finish frame"),
        (frames(HEADER(key="k", size_bytes=4), b"abc"), "4 bytes were announced, 3 came"),
        (frames(HEADER(key="k", size_bytes=2), b"abc"), "more than the announced 2 bytes came"),
        (frames(HEADER(key="k"), b"abc", FINISH(size_bytes=4)), "4 bytes were announced, 3 came"),
        (
            frames(HEADER(key="k"), b"abc", FINISH(sha256=sha(b"abd"))),
            "SHA-256 a52d159f.* was announced, ba7816bf.* came",
        ),
        (frames(HEADER(key="k", sha256=sha(b"abd")), b"abc", FINISH()), "was announced"),
        (frames(HEADER(key="k", size_bytes=3), b"abc", FINISH(size_bytes=4)), "announce different sizes"),
        (frames(HEADER(key="k", sha256=sha(b"abc")), b"abc", FINISH(sha256=sha(b"abd"))), "announce different digests"),
        (frames(HEADER(key="k", sha256=b"short"), b"abc"), "sha256 has 5 bytes"),
        (frames(HEADER(key="k"), FINISH(sha256=b"short")), "sha256 has 5 bytes"),
        (frames(HEADER(key="k"), HEADER(key="l"), FINISH()), "after the header come chunks"),
        (frames(HEADER(key="k"), b"abc", FINISH(), b"d"), "a frame follows the finish frame"),
        (frames(HEADER(key="k"), bytes(1024 * 1024 + 1), FINISH()), "a chunk of 1048577 bytes is above 1048576"),
        (frames(HEADER(key="../k"), b"abc", FINISH()), "is not allowed"),
        ([blob_pb2.WriteBlobRequest()], "the first frame of WriteBlob must be a header"),
        ([*frames(HEADER(key="k")), blob_pb2.WriteBlobRequest()], "after the header come chunks"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_streams_that_are_refused_leave_nothing(
    stub: blob_pb2_grpc.BlobServiceStub, tmp_path: Path, stream: Frames, reason: str
) -> None:
    """Whatever does not say plainly that it is whole is INVALID_ARGUMENT in one line, and keeps nothing."""
    with pytest.raises(grpc.aio.AioRpcError, match=reason) as caught:
        await stub.WriteBlob(iter(stream))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert isinstance(wire.error_from_rpc(caught.value), InvalidArgument)
    assert os.listdir(tmp_path / "s/blobs") == []
    await wait_until(no_temporaries(tmp_path))


@pytest.mark.slow
async def test_pages_of_the_protocol(stub: blob_pb2_grpc.BlobServiceStub, client: AsyncStorage) -> None:
    """The last page has no token, 0 asks for the default size, and sizes and tokens are checked."""
    for index in range(101):
        await client.put(f"{index:03}", b"")
    first = await stub.ListBlobs(blob_pb2.ListBlobsRequest())
    assert len(first.blobs) == 100
    last = await stub.ListBlobs(blob_pb2.ListBlobsRequest(page_token=first.next_page_token))
    assert [blob.key for blob in last.blobs] == ["100"]
    assert last.next_page_token == ""
    assert (await stub.ListBlobs(blob_pb2.ListBlobsRequest(page_size=101))).next_page_token == ""
    for request in (blob_pb2.ListBlobsRequest(page_size=1001), blob_pb2.ListBlobsRequest(page_token="../x")):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListBlobs(request)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_first_message_of_a_read_tells_the_blob(
    stub: blob_pb2_grpc.BlobServiceStub, client: AsyncStorage
) -> None:
    """Only the first message carries it, also for an empty blob and an empty range; no message is above its limit."""
    for key, content in (("empty", b""), ("k", CONTENT)):
        await client.put(key, content)
        messages = [message async for message in stub.ReadBlob(blob_pb2.ReadBlobRequest(key=key))]
        assert [message.HasField("blob") for message in messages] == [True] + [False] * (len(messages) - 1)
        assert wire.blob_from_wire(messages[0].blob) == ref(key, content)
        assert b"".join(message.chunk for message in messages) == content
        assert max(len(message.chunk) for message in messages) <= 1024 * 1024
    (only,) = [m async for m in stub.ReadBlob(blob_pb2.ReadBlobRequest(key="k", offset=len(CONTENT)))]
    assert (only.blob.size_bytes, only.chunk) == (len(CONTENT), b"")


async def test_streams_above_the_bound_are_refused(tmp_path: Path) -> None:
    """The bound on streams refuses with the time to try again; a stream that ends makes room."""
    async with serving(tmp_path / "s", streams_max=1) as address:
        channel = net.open_channel(address)
        stub = blob_pb2_grpc.BlobServiceStub(channel)
        held = stub.WriteBlob()
        await held.write(blob_pb2.WriteBlobRequest(header=blob_pb2.WriteBlobHeader(key="held")))
        await held.write(blob_pb2.WriteBlobRequest(chunk=bytes(256 * 1024)))
        await held.write(blob_pb2.WriteBlobRequest(chunk=bytes(256 * 1024)))
        await wait_until(lambda: os.listdir(tmp_path / "s/tmp") != [])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.WriteBlob(iter(frames(HEADER(key="k"), FINISH())))
        error = wire.error_from_rpc(caught.value)
        assert isinstance(error, Overloaded)
        assert error.retry_after_s == 1.0
        with pytest.raises(grpc.aio.AioRpcError):
            await anext(aiter(stub.ReadBlob(blob_pb2.ReadBlobRequest(key="k"))))
        await held.write(blob_pb2.WriteBlobRequest(finish=FINISH()))
        await held.done_writing()
        await held
        await stub.WriteBlob(iter(frames(HEADER(key="k"), FINISH())))
        await channel.close()


async def test_the_server_says_who_it_is(address: str) -> None:
    """Program, versions, a stable id and warnings."""
    channel = net.open_channel(address)
    info = await system_pb2_grpc.SystemServiceStub(channel).GetServerInfo(system_pb2.GetServerInfoRequest())
    await channel.close()
    assert (info.program, info.software, info.protocol_major, info.protocol_minor) == (
        "storage",
        __version__,
        PROTOCOL_MAJOR,
        PROTOCOL_MINOR,
    )
    assert len(info.server_id) == 32
    assert list(info.warnings) == ["insecure"]


# ---- weather ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_PAUSES_MAX_S", (0.01, 0.01))


@pytest.mark.usefixtures("short_pauses")
async def test_an_address_where_nobody_is(tmp_path: Path) -> None:
    """One line that names the address, after a bounded number of attempts."""
    async with AsyncStorage("127.0.0.1:1") as client:
        for call in (
            client.stat("k"),
            client.get("k"),
            client.put("k", CONTENT),
            client.put("k", pieces_of(CONTENT, 9)),
        ):
            with pytest.raises(Unavailable, match=r"^storage at 127\.0\.0\.1:1 cannot be reached: connection refused$"):
                await call


@pytest.mark.slow
async def test_calls_are_repeated_until_storage_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads and writes that can be repeated wait out a restart of Storage."""
    monkeypatch.setattr(storage, "_PAUSES_MAX_S", (0.1,) * 200)
    async with serving(tmp_path / "s") as address:
        client = AsyncStorage(address)
        await client.put("k", CONTENT)
    calls = [asyncio.create_task(c) for c in (client.get("k"), client.stat("k"), client.put("new", CONTENT))]
    await asyncio.sleep(0.1)
    assert not any(call.done() for call in calls)
    async with serving(tmp_path / "s", port=int(address.rpartition(":")[2])):
        assert await calls[0] == CONTENT
        assert await calls[1] == ref("k", CONTENT)
        assert await calls[2] == ref("new", CONTENT)
        await client.aclose()


@pytest.mark.slow
async def test_a_read_goes_on_where_it_was_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart in the middle of a read costs no byte and repeats none, and the whole is still verified."""
    monkeypatch.setattr(storage, "_PAUSES_MAX_S", (0.1,) * 200)
    content = CONTENT * 20  # more than the buffers in between hold
    async with serving(tmp_path / "s") as address:
        client = AsyncStorage(address)
        blob = await client.put("k", content)
        stream = client.stream(blob)
        received = await anext(stream)
    async with serving(tmp_path / "s", port=int(address.rpartition(":")[2])):
        async for piece in stream:
            received += piece
        await client.aclose()
    assert received == content


async def test_a_call_that_breaks_while_its_writing_is_closed_says_by_its_status_why(
    client: AsyncStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC raises an error of its own there when the connection has gone and the call does not know yet."""
    closing = StreamUnaryCall.done_writing

    async def breaks(call: StreamUnaryCall) -> None:
        await closing(call)
        raise grpc.aio.InternalError('Failed "execute_batch"')

    monkeypatch.setattr(StreamUnaryCall, "done_writing", breaks)
    assert await client.put("a/b", b"content") == ref("a/b", b"content")


async def test_a_write_from_an_iterator_is_not_repeated(tmp_path: Path) -> None:
    """What cannot be read twice fails at once when Storage goes away."""
    started, gone = asyncio.Event(), asyncio.Event()
    asked = 0

    async def source() -> AsyncIterator[bytes]:
        nonlocal asked
        asked += 1
        yield bytes(600_000)
        started.set()
        await gone.wait()
        while True:
            yield bytes(600_000)

    async with serving(tmp_path / "s") as address:
        client = AsyncStorage(address)
        task = asyncio.create_task(client.put("k", source()))
        await started.wait()
    gone.set()
    with pytest.raises(Unavailable, match=f"storage at {address} "):
        await task
    await client.aclose()
    assert asked == 1


async def test_a_full_disk_is_one_line_and_not_repeated(
    client: AsyncStorage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """DiskFull reaches the client at once from any step, whatever it still had to send."""
    calls = 0

    def full(*args: object, **kwargs: object) -> None:
        nonlocal calls
        calls += 1
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(DiskFull, match=r"^storage is full \(No space left on device\); nothing was kept"):
        await client.put("k", CONTENT)
    assert calls == 1
    assert os.listdir(tmp_path / "s/blobs") == os.listdir(tmp_path / "s/tmp") == []


# ---- the blocking client ----------------------------------------------------------------------------------------------


@pytest.fixture
def blocking(tmp_path: Path) -> Iterator[Storage]:
    """A blocking client; its server runs in the loop of the blocking faces, as a loop of our own would not turn meanwhile."""
    from antfarm.blocking import loop_thread

    context = serving(tmp_path / "s")
    address = loop_thread().run(context.__aenter__())
    with Storage(address) as client:
        yield client
    loop_thread().run(context.__aexit__(None, None, None))


@pytest.mark.slow
def test_the_blocking_client_does_the_same(blocking: Storage, tmp_path: Path) -> None:
    """Every call of the asynchronous client, without await."""
    source = tmp_path / "source"
    source.write_bytes(CONTENT)
    blob = blocking.put("k", CONTENT)
    assert blob == ref("k", CONTENT) == blocking.put("k", source) == blocking.stat("k") == blocking.verify("k")
    assert blocking.put("k", (CONTENT[i : i + 99_999] for i in range(0, len(CONTENT), 99_999))) == blob
    with source.open("rb") as lines:
        assert blocking.put("lines", lines) == ref("lines", CONTENT)
    assert blocking.get("k") == CONTENT
    assert blocking.get(blob, offset=10, length=5) == CONTENT[10:15]
    assert b"".join(blocking.stream(blob)) == CONTENT
    assert blocking.download(blob, tmp_path / "copy") == blob
    assert blocking.put_all({"k": CONTENT, "lines": CONTENT}) == [ref("k", CONTENT), ref("lines", CONTENT)]
    assert blocking.get_all(["lines", "k"]) == [CONTENT, CONTENT]
    assert (tmp_path / "copy").read_bytes() == CONTENT
    assert [found.key for found in blocking.list()] == ["k", "lines"]
    assert blocking.delete("lines") is True
    assert blocking.delete("lines") is False
    with pytest.raises(BlobNotFound, match="no blob lines"):
        blocking.get("lines")


def test_a_blocking_stream_may_be_left_early(blocking: Storage) -> None:
    """Closing the iterator ends the call."""
    blocking.put("k", CONTENT)
    stream = blocking.stream("k")
    assert CONTENT.startswith(next(stream))
    stream.close()
    assert blocking.get("k", length=3) == CONTENT[:3]
