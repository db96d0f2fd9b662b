"""The client of Storage: blobs in and out in constant memory, verified end to end.

`AsyncStorage` is the real one, `Storage` the same for blocking code. Each opens a connection of its own on first use, so that bulk data
never sits in front of heartbeats. What is written is announced by size and SHA-256, and what is read is compared with them, on this side too.

Calls are repeated when Storage cannot be reached or is busy, a few times with growing random pauses: a committed blob never changes, so reads go on
where they stopped, and writing the same content again succeeds. Only a write from an iterator is never repeated, since it cannot be read twice.
It knows nothing of tasks; `antfarm.payload` and `antfarm.context` build on it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import grpc.aio

from antfarm import net, wire
from antfarm.address import parse_address
from antfarm.blocking import loop_thread
from antfarm.content import Content, Digest, FileSink, Source, content_of, items_in_thread, keep_freed_buffers
from antfarm.errors import (
    AntFarmError,
    DataLoss,
    InvalidArgument,
    InvalidKey,
    OutOfRange,
    Overloaded,
    ProtocolUnsupported,
    Unavailable,
)
from antfarm.model import BLOBS_TOGETHER_MAX, BYTES_TOGETHER_MAX, PROTOCOL_MAJOR, SMALL_BLOB_BYTES_MAX, BlobRef
from antfarm.text import is_text
from antfarm.v1 import blob_pb2, blob_pb2_grpc

UNARY_TIMEOUT_S = 60.0
"""Deadline of calls that carry no content; verifying a large blob has none."""
_PAUSES_MAX_S = (0.1, 0.3, 1.0, 2.0, 4.0)
"""Longest pause before each repetition; the pause is drawn evenly below it. Covers a restart of Storage."""
_PAGE_BLOBS = 1000
_RANGE_BYTES_END = 2**63
"""Offset and length lie below it, and so does their sum below what a message can carry."""

T = TypeVar("T")


class AsyncStorage:
    """Storage at an address. Belongs to the event loop in which it is first used; end it by `aclose` or `async with`.

    Errors: BlobNotFound, Conflict, InvalidKey, DataLoss, DiskFull, OutOfRange as the calls say; InvalidArgument for a range that is none; Unavailable when Storage cannot be reached
    in about five seconds of trying.
    """

    def __init__(self, address: str, tls: net.Tls | None = None) -> None:
        """Args: address: "host:port". tls: certificates for a farm with mutual TLS."""
        self.address = parse_address(address)
        self._tls = tls
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> AsyncStorage:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection; a later call opens a new one."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    def _stub(self) -> blob_pb2_grpc.BlobServiceStub:
        if self._channel is None:
            keep_freed_buffers()
            self._channel = net.open_channel(self.address, self._tls)
        return blob_pb2_grpc.BlobServiceStub(self._channel)

    # ---- writing ----------------------------------------------------------------------------------------------------

    async def put(self, key: str, data: Source) -> BlobRef:
        """Store content under a key; durable when it returns. The same content again is fine, other content raises Conflict.

        Args:
            data: bytes, a file, or an iterator of pieces of any size. Files and iterators are read piece by piece.
        """
        _check_key(key)
        content = await content_of(data)
        if content.repeatable:
            return await _repeated(lambda: self._write(key, content))
        return await self._write(key, content)

    async def _write(self, key: str, content: Content) -> BlobRef:
        """One attempt. However it ends, nothing half-written is left: Storage keeps only what a finish frame closed."""
        call = self._stub().WriteBlob()
        decided = asyncio.ensure_future(call.initial_metadata())  # done early when Storage wants no more of the content
        try:
            try:
                header = blob_pb2.WriteBlobHeader(key=key, size_bytes=content.size_bytes, sha256=content.sha256)
                await call.write(blob_pb2.WriteBlobRequest(header=header))
                async with aclosing(content.pieces()) as pieces:
                    async for piece in pieces:
                        if decided.done():
                            break
                        await call.write(blob_pb2.WriteBlobRequest(chunk=piece))
                    else:
                        if not content.sha256:  # else the header has said it all
                            await call.write(blob_pb2.WriteBlobRequest(finish=await _finish(content.digest)))
                await call.done_writing()
            except net.CALL_ENDED:
                pass  # the call ended between two writes: it holds the answer
            return wire.blob_from_wire((await call).blob)
        except grpc.aio.AioRpcError as error:
            raise self._error(error) from None
        finally:
            decided.cancel()
            call.cancel()  # without effect on a call that has ended

    async def put_all(self, blobs: Mapping[str, bytes]) -> list[BlobRef]:
        """Store several blobs, in fewer calls where they are small; durable when it returns. Each as by `put`.

        The last one is written only when all before it are durable, so that it may stand for them. After an error, Conflict for one of them say, some may
        have been written, and the last was not, unless the error is its own.
        """
        for key in blobs:
            _check_key(key)
        return [ref for group in _grouped(blobs) for ref in await self._put_group(group)]

    async def _put_group(self, group: list[tuple[str, bytes]]) -> list[BlobRef]:
        if len(group) == 1:
            return [await self.put(*group[0])]
        request = await asyncio.to_thread(_write_blobs_request, group)
        answer = await self._unary(lambda: self._stub().WriteBlobs(request))
        return [wire.blob_from_wire(written.blob) for written in answer.written]

    # ---- reading ----------------------------------------------------------------------------------------------------

    async def stream(self, source: str | BlobRef, *, offset: int = 0, length: int = 0) -> AsyncIterator[bytes]:
        """The content, or `length` bytes of it from `offset` (0: to the end), piece by piece.

        Ranges are verified before they arrive. A whole read is verified when it ends: use nothing of it when DataLoss is raised. With a BlobRef
        the content must also be what the reference says.
        """
        async with aclosing(_Read(self, source, offset, length).pieces()) as pieces:
            async for piece in pieces:
                yield piece

    async def read_once(self, key: str, offset: int, length: int) -> AsyncGenerator[blob_pb2.ReadBlobResponse, None]:
        """One attempt of a read, message by message."""
        call = self._stub().ReadBlob(blob_pb2.ReadBlobRequest(key=key, offset=offset, length=length))
        try:
            while (message := await call.read()) is not grpc.aio.EOF:
                assert isinstance(message, blob_pb2.ReadBlobResponse)
                yield message
        except grpc.aio.AioRpcError as error:
            raise self._error(error) from None
        finally:
            call.cancel()

    async def get(self, source: str | BlobRef, *, offset: int = 0, length: int = 0) -> bytes:
        """The content, or a range of it, verified; see `stream`. Holds all of it in memory."""
        return b"".join([piece async for piece in self.stream(source, offset=offset, length=length)])

    async def get_all(self, keys: Iterable[str]) -> list[bytes]:
        """The content of several blobs, in fewer calls where they are small. Each as by `get`; holds all of it in memory."""
        wanted = list(keys)
        for key in wanted:
            _check_key(key)
        found: list[bytes] = []
        for start in range(0, len(wanted), BLOBS_TOGETHER_MAX):
            found += await self._get_group(wanted[start : start + BLOBS_TOGETHER_MAX])
        return found

    async def _get_group(self, keys: list[str]) -> list[bytes]:
        request = blob_pb2.ReadBlobsRequest(keys=keys)
        answer = await self._unary(lambda: self._stub().ReadBlobs(request))
        contents = await asyncio.to_thread(_verified, answer)
        return [await self.get(content) if isinstance(content, BlobRef) else content for content in contents]

    async def download(self, source: str | BlobRef, path: Path) -> BlobRef:
        """Write the content to a file, which appears, or replaces another, only when it is whole and verified."""
        part = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.part")
        read = _Read(self, source, 0, 0)
        try:
            async with FileSink(part) as file, aclosing(read.pieces()) as pieces:
                async for piece in pieces:
                    await file.write(piece)
            await asyncio.to_thread(os.replace, part, path)
        finally:
            part.unlink(missing_ok=True)
        assert read.blob is not None, "a read that ended well has told what it read"
        return read.blob

    # ---- the rest ---------------------------------------------------------------------------------------------------

    async def stat(self, key: str) -> BlobRef:
        """Size and digest. BlobNotFound; DataLoss when the blob's record is damaged."""
        _check_key(key)
        request = blob_pb2.StatBlobRequest(key=key)
        answer = await self._unary(lambda: self._stub().StatBlob(request, timeout=UNARY_TIMEOUT_S))
        return wire.blob_from_wire(answer.blob)

    async def list(self, prefix: str = "") -> AsyncIterator[BlobRef]:
        """All blobs whose key starts with the prefix, in the order of their keys. Those that come or go meanwhile may be missed."""
        _check_key(prefix)
        token = ""
        while True:
            page = await self._list_page(prefix, token)
            for blob in page.blobs:
                yield wire.blob_from_wire(blob)
            token = page.next_page_token
            if not token:
                return

    async def _list_page(self, prefix: str, token: str) -> blob_pb2.ListBlobsResponse:
        request = blob_pb2.ListBlobsRequest(prefix=prefix, page_size=_PAGE_BLOBS, page_token=token)
        return await self._unary(lambda: self._stub().ListBlobs(request, timeout=UNARY_TIMEOUT_S))

    async def delete(self, key: str) -> bool:
        """Remove a blob; False when there was none. A repeated call may say False for what the first one removed."""
        _check_key(key)
        request = blob_pb2.DeleteBlobRequest(key=key)
        answer = await self._unary(lambda: self._stub().DeleteBlob(request, timeout=UNARY_TIMEOUT_S))
        return answer.existed

    async def verify(self, key: str) -> BlobRef:
        """Have Storage read the blob where it lies and compare it with its digest. BlobNotFound, DataLoss."""
        _check_key(key)
        request = blob_pb2.VerifyBlobRequest(key=key)
        answer = await self._unary(lambda: self._stub().VerifyBlob(request))
        return wire.blob_from_wire(answer.blob)

    async def _unary(self, call: Callable[[], Awaitable[T]]) -> T:
        async def attempt() -> T:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                raise self._error(error) from None

        return await _repeated(attempt)

    def _error(self, error: grpc.aio.AioRpcError) -> AntFarmError:
        """Our error of a failed call. What gRPC itself says of a lost connection becomes one line that names the address.

        So does what it says of a call that is not served. That stands for a look at the other side's version, which would be a call more for each
        connection: another major version of the protocol is another package, whose services have other names.
        """
        found = wire.error_from_rpc(error)
        if isinstance(found, ProtocolUnsupported):
            return ProtocolUnsupported(
                f"{self.address} does not answer as a Storage of protocol {PROTOCOL_MAJOR} ({found}): check the address, and install the same"
                " version there"
            )
        told = any(key == wire.STATUS_DETAILS_KEY for key, _ in error.trailing_metadata() or ())
        if told or not isinstance(found, Unavailable):
            return found
        return Unavailable(f"storage at {self.address} cannot be reached: {found}")


def _check_key(key: object) -> None:
    """Refuse what no message can carry; the rules for keys are Storage's own."""
    if not is_text(key):
        raise InvalidKey(f"key {key!r} is not allowed: it is no text that can be sent")


def _grouped(blobs: Mapping[str, bytes]) -> Iterator[list[tuple[str, bytes]]]:
    """The blobs in their order, as many together as one call may carry."""
    group, room_bytes = list[tuple[str, bytes]](), BYTES_TOGETHER_MAX
    for key, content in blobs.items():
        alone = len(content) > SMALL_BLOB_BYTES_MAX
        if group and (alone or len(group) == BLOBS_TOGETHER_MAX or len(content) > room_bytes):
            yield group
            group, room_bytes = [], BYTES_TOGETHER_MAX
        if alone:
            yield [(key, content)]
        else:
            group.append((key, content))
            room_bytes -= len(content)
    if group:
        yield group


def _write_blobs_request(group: Iterable[tuple[str, bytes]]) -> blob_pb2.WriteBlobsRequest:
    """In a thread: hashes all content."""
    return blob_pb2.WriteBlobsRequest(
        blobs=[
            blob_pb2.SmallBlob(key=key, sha256=hashlib.sha256(content).digest(), content=content)
            for key, content in group
        ]
    )


def _verified(answer: blob_pb2.ReadBlobsResponse) -> list[bytes | BlobRef]:
    """What came, or what is still to be read. In a thread: hashes all content. DataLoss."""
    found: list[bytes | BlobRef] = []
    for message in answer.blobs:
        blob, content = wire.blob_from_wire(message.blob), message.chunk
        if blob.size_bytes and not content:
            found.append(blob)
        elif hashlib.sha256(content).digest() == blob.sha256:
            found.append(content)
        else:
            raise _mismatch(blob.key)
    return found


def _mismatch(key: str) -> DataLoss:
    return DataLoss(f"blob {key}: what arrived does not match its digest; use nothing of it")


def _bytes_in_range(name: str, value: int) -> int:
    """The value as a plain number, which cannot overflow when it is added to."""
    if not isinstance(value, Integral) or value < 0:
        raise InvalidArgument(f"{name}={value!r}: give a whole number of bytes, zero or more")
    if value >= _RANGE_BYTES_END:
        raise OutOfRange(f"{name}={value}: no blob is as long")
    return int(value)


async def _finish(digest: Digest) -> blob_pb2.WriteBlobFinish:
    return blob_pb2.WriteBlobFinish(size_bytes=digest.size_bytes, sha256=await digest.sha256())


async def _repeated(attempt: Callable[[], Awaitable[T]]) -> T:
    """The result of an attempt that may be made several times."""
    repetition = 0
    while True:
        try:
            return await attempt()
        except (Unavailable, Overloaded) as error:
            await _pause(repetition, error)
            repetition += 1


async def _pause(repetition: int, error: Unavailable | Overloaded) -> None:
    """Wait before the next attempt; raises the error when there is none left."""
    if repetition == len(_PAUSES_MAX_S):
        raise error
    await asyncio.sleep(max(error.retry_after_s or 0.0, random.uniform(0, _PAUSES_MAX_S[repetition])))


class _Read:
    """A read that goes on where it was cut, and is verified."""

    def __init__(self, storage: AsyncStorage, source: str | BlobRef, offset: int, length: int) -> None:
        self._storage = storage
        self._key = source.key if isinstance(source, BlobRef) else source
        _check_key(self._key)
        offset, length = _bytes_in_range("offset", offset), _bytes_in_range("length", length)
        self.blob: BlobRef | None = None  # what it must be, then what it is: the same
        if isinstance(source, BlobRef):  # made plain, because a File never equals a BlobRef
            self.blob = BlobRef(key=source.key, size_bytes=source.size_bytes, sha256=source.sha256)
        self._position = offset
        self._end = offset + length if length else None
        self._digest = Digest() if offset == 0 and length == 0 else None

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The content; see `AsyncStorage.stream`."""
        repetition = 0
        while self._position != self._end:
            start = self._position
            try:
                async with aclosing(
                    self._storage.read_once(self._key, start, (self._end or start) - start)
                ) as messages:
                    async for message in messages:
                        if chunk := await self._take(message):
                            yield chunk
                break
            except (Unavailable, Overloaded) as error:
                if self._position > start:
                    repetition = 0
                await _pause(repetition, error)
                repetition += 1
        if self._digest is not None and (self.blob is None or await self._digest.sha256() != self.blob.sha256):
            raise _mismatch(self._key)

    async def _take(self, message: blob_pb2.ReadBlobResponse) -> bytes:
        if message.HasField("blob"):
            found = wire.blob_from_wire(message.blob)
            if self.blob is not None and self.blob != found:
                raise DataLoss(f"blob {self._key} has other content than its reference says")
            self.blob = found
        chunk = message.chunk  # once: each look at it copies it
        self._position += len(chunk)
        if self._digest is not None:
            await self._digest.update(chunk)
        return chunk


class Storage:
    """Storage for blocking code: the calls, arguments and errors of `AsyncStorage`. May be used from several threads."""

    def __init__(self, address: str, tls: net.Tls | None = None) -> None:
        """Args: address: "host:port". tls: certificates for a farm with mutual TLS."""
        self._storage = AsyncStorage(address, tls)
        self.address = self._storage.address

    def __enter__(self) -> Storage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; a later call opens a new one."""
        loop_thread().run(self._storage.aclose())

    def put(self, key: str, data: bytes | bytearray | memoryview | Path | Iterable[bytes]) -> BlobRef:
        """See `AsyncStorage.put`. An iterator, for example a file open for reading, is read in a thread."""
        if isinstance(data, Iterable) and not isinstance(data, bytes | bytearray | memoryview | str):
            return loop_thread().run(self._storage.put(key, items_in_thread(data)))
        return loop_thread().run(self._storage.put(key, data))

    def put_all(self, blobs: Mapping[str, bytes]) -> list[BlobRef]:
        """See `AsyncStorage.put_all`."""
        return loop_thread().run(self._storage.put_all(blobs))

    def get(self, source: str | BlobRef, *, offset: int = 0, length: int = 0) -> bytes:
        """See `AsyncStorage.get`."""
        return loop_thread().run(self._storage.get(source, offset=offset, length=length))

    def get_all(self, keys: Iterable[str]) -> list[bytes]:
        """See `AsyncStorage.get_all`."""
        return loop_thread().run(self._storage.get_all(keys))

    def stream(self, source: str | BlobRef, *, offset: int = 0, length: int = 0) -> Iterator[bytes]:
        """See `AsyncStorage.stream`."""
        return loop_thread().iterate(self._storage.stream(source, offset=offset, length=length))

    def download(self, source: str | BlobRef, path: Path) -> BlobRef:
        """See `AsyncStorage.download`."""
        return loop_thread().run(self._storage.download(source, path))

    def stat(self, key: str) -> BlobRef:
        """See `AsyncStorage.stat`."""
        return loop_thread().run(self._storage.stat(key))

    def list(self, prefix: str = "") -> Iterator[BlobRef]:
        """See `AsyncStorage.list`."""
        return loop_thread().iterate(self._storage.list(prefix))

    def delete(self, key: str) -> bool:
        """See `AsyncStorage.delete`."""
        return loop_thread().run(self._storage.delete(key))

    def verify(self, key: str) -> BlobRef:
        """See `AsyncStorage.verify`."""
        return loop_thread().run(self._storage.verify(key))
