"""BlobService and SystemService over a backend: translate, check form and limits, never decide what a blob is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc.aio

from antfarm import __version__, model, wire
from antfarm.errors import AntFarmError, BlobNotFound, DigestMismatch, InvalidArgument, Overloaded
from antfarm.model import BLOBS_TOGETHER_MAX, BYTES_TOGETHER_MAX, SMALL_BLOB_BYTES_MAX
from antfarm.v1 import blob_pb2, blob_pb2_grpc, system_pb2, system_pb2_grpc
from services.storage.backends.base import CHUNK_BYTES_MAX, Backend, Written, conflict
from services.storage.keys import check_key, check_prefix

Context = grpc.aio.ServicerContext[Any, Any]

PAGE_BLOBS_DEFAULT = 100
PAGE_BLOBS_MAX = 1000
HEAR_OUT_S = 10.0
"""How long a client may go on sending after its call was decided."""
_SHA256_BYTES = 32


class BlobServicer(blob_pb2_grpc.BlobServiceServicer):
    """Serves blobs. The protocol's comments say what each call promises."""

    def __init__(self, backend: Backend, *, streams_max: int) -> None:
        self._backend = backend
        self._streams_max = streams_max
        self._streams = 0
        self._calls: set[asyncio.Task[Any]] = set()

    async def ended(self) -> None:
        """Wait until no call uses the backend. Calls that a stopped server has cancelled still have to clean up."""
        while self._calls:
            await asyncio.wait(self._calls)

    @contextmanager
    def _call(self) -> Iterator[None]:
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        try:
            yield
        finally:
            self._calls.discard(task)

    @contextmanager
    def _stream(self) -> Iterator[None]:
        """A call that goes through content. Overloaded at the bound, because each holds a few pieces in memory."""
        if self._streams >= self._streams_max:
            raise Overloaded(f"storage is busy with {self._streams} streams; try again", retry_after_s=1.0)
        self._streams += 1
        try:
            with self._call():
                yield
        finally:
            self._streams -= 1

    async def WriteBlob(
        self, request_iterator: AsyncIterator[blob_pb2.WriteBlobRequest], context: Context
    ) -> blob_pb2.WriteBlobResponse:
        """See the protocol."""
        frames = _Frames(request_iterator)
        try:
            with self._stream():
                written = await self._write(frames)
        except AntFarmError:
            await _hear_out(frames, context)
            raise
        await _hear_out(frames, context)
        return blob_pb2.WriteBlobResponse(blob=wire.blob_to_wire(written.blob), existed=written.existed)

    async def _write(self, frames: _Frames) -> Written:
        header = await _read_header(frames)
        announced = _Announced(header)
        written = await self._standing(announced)
        if written is not None:
            return written
        writer = await self._backend.open_write(header.key, size_bytes=announced.size_bytes)
        try:
            async for frame in frames:
                await writer.write(announced.checked_chunk(frame))
            announced.check_end()
            return await writer.commit(size_bytes=announced.size_bytes, sha256=announced.sha256)
        finally:
            await writer.abort()

    async def WriteBlobs(self, request: blob_pb2.WriteBlobsRequest, context: Context) -> blob_pb2.WriteBlobsResponse:
        """See the protocol. All before the last go side by side, so that their syncs wait for the disk together."""
        blobs = request.blobs
        _check_count(len(blobs))
        with self._stream():
            # Whatever happens to one of them, this call ends after all of them: none may use the backend when it is closed.
            done = await asyncio.gather(*map(self._write_small, blobs[:-1]), return_exceptions=True)
            written = [_result(one) for one in done]
            written += [await self._write_small(last) for last in blobs[-1:]]
        return blob_pb2.WriteBlobsResponse(
            written=[blob_pb2.WriteBlobResponse(blob=wire.blob_to_wire(w.blob), existed=w.existed) for w in written]
        )

    async def _write_small(self, small: blob_pb2.SmallBlob) -> Written:
        key, sha256, content = check_key(small.key), _checked_digest(small.sha256), small.content
        if len(content) > SMALL_BLOB_BYTES_MAX:
            raise InvalidArgument(f"blob {key}: {len(content)} bytes in one piece are above {SMALL_BLOB_BYTES_MAX}")
        writer = await self._backend.open_write(key)
        try:
            await writer.write(content)
            return await writer.commit(sha256=sha256)
        finally:
            await writer.abort()

    async def _standing(self, announced: _Announced) -> Written | None:
        """The answer without the content having to come, where the key is taken and the header says enough."""
        if announced.size_bytes is None or not announced.sha256:
            return None
        try:
            blob = await self._backend.stat(announced.key)
            if (blob.size_bytes, blob.sha256) != (announced.size_bytes, announced.sha256):
                raise conflict(announced.key)
            return Written(blob=await self._backend.verify(announced.key), existed=True)
        except BlobNotFound:
            return None

    async def ReadBlob(self, request: blob_pb2.ReadBlobRequest, context: Context) -> None:  # type: ignore[override]
        """See the protocol. Writes to the context, so that a cancelled call reaches the `finally` below at once."""
        check_key(request.key)
        with self._stream():
            reader = await self._backend.open_read(request.key, offset=request.offset, length=request.length)
            try:
                message = blob_pb2.ReadBlobResponse(blob=wire.blob_to_wire(reader.blob))
                while chunk := await reader.read():
                    message.chunk = chunk
                    await context.write(message)
                    message = blob_pb2.ReadBlobResponse()
                if message.HasField("blob"):  # no content: the blob is told all the same
                    await context.write(message)
            finally:
                await reader.close()

    async def ReadBlobs(self, request: blob_pb2.ReadBlobsRequest, context: Context) -> blob_pb2.ReadBlobsResponse:
        """See the protocol."""
        _check_count(len(request.keys))
        answer = blob_pb2.ReadBlobsResponse()
        room_bytes = BYTES_TOGETHER_MAX
        with self._stream():
            for key in request.keys:
                reader = await self._backend.open_read(check_key(key))
                try:
                    pieces = []
                    if reader.blob.size_bytes <= room_bytes:
                        room_bytes -= reader.blob.size_bytes
                        while piece := await reader.read():
                            pieces.append(piece)
                    answer.blobs.add(blob=wire.blob_to_wire(reader.blob), chunk=b"".join(pieces))
                finally:
                    await reader.close()
        return answer

    async def StatBlob(self, request: blob_pb2.StatBlobRequest, context: Context) -> blob_pb2.StatBlobResponse:
        """See the protocol."""
        with self._call():
            blob = await self._backend.stat(check_key(request.key))
        return blob_pb2.StatBlobResponse(blob=wire.blob_to_wire(blob))

    async def ListBlobs(self, request: blob_pb2.ListBlobsRequest, context: Context) -> blob_pb2.ListBlobsResponse:
        """See the protocol. The token of a page is the last key of the page before."""
        if request.page_size > PAGE_BLOBS_MAX:
            raise InvalidArgument(f"page_size {request.page_size} is above {PAGE_BLOBS_MAX}")
        prefix = check_prefix(request.prefix)
        after = check_key(request.page_token) if request.page_token else ""
        limit = request.page_size or PAGE_BLOBS_DEFAULT
        with self._call():
            blobs = await self._backend.list_page(prefix, after=after, limit=limit + 1)
        token = blobs[limit - 1].key if len(blobs) > limit else ""
        return blob_pb2.ListBlobsResponse(blobs=[wire.blob_to_wire(b) for b in blobs[:limit]], next_page_token=token)

    async def DeleteBlob(self, request: blob_pb2.DeleteBlobRequest, context: Context) -> blob_pb2.DeleteBlobResponse:
        """See the protocol."""
        with self._call():
            return blob_pb2.DeleteBlobResponse(existed=await self._backend.delete(check_key(request.key)))

    async def VerifyBlob(self, request: blob_pb2.VerifyBlobRequest, context: Context) -> blob_pb2.VerifyBlobResponse:
        """See the protocol."""
        with self._stream():
            blob = await self._backend.verify(check_key(request.key))
        return blob_pb2.VerifyBlobResponse(blob=wire.blob_to_wire(blob))


class _Frames:
    """The frames of a WriteBlob stream, which know whether they have ended."""

    def __init__(self, frames: AsyncIterator[blob_pb2.WriteBlobRequest]) -> None:
        self._frames = frames
        self.ended = False

    def __aiter__(self) -> _Frames:
        return self

    async def __anext__(self) -> blob_pb2.WriteBlobRequest:
        try:
            return await anext(self._frames)
        except StopAsyncIteration:
            self.ended = True
            raise


async def _hear_out(frames: _Frames, context: Context) -> None:
    """Before an answer that comes early: let the client know by the initial metadata, and take what it still sends, for a while.

    A client whose write fails because the call has ended would lose the answer: grpc.aio puts "Internal error from Core" in its place
    (github.com/grpc/grpc/issues/36066).
    """
    if frames.ended:
        return
    await context.send_initial_metadata(())
    try:
        async with asyncio.timeout(HEAR_OUT_S):
            async for _ in frames:
                pass
    except TimeoutError:
        pass


async def _read_header(frames: _Frames) -> blob_pb2.WriteBlobHeader:
    async for frame in frames:
        if not frame.HasField("header"):
            break
        check_key(frame.header.key)
        return frame.header
    raise InvalidArgument("the first frame of WriteBlob must be a header")


class _Announced:
    """What header and finish frame say that the content is; either may leave out what the other says. Judges the frames in their order."""

    def __init__(self, header: blob_pb2.WriteBlobHeader) -> None:
        self.key = header.key
        self.size_bytes = header.size_bytes if header.HasField("size_bytes") else None
        self.sha256 = _checked_digest(header.sha256)
        self._received_bytes = 0
        self._finished = False

    def checked_chunk(self, frame: blob_pb2.WriteBlobRequest) -> bytes:
        """Content of the frame, empty for the finish frame. What cannot become the announced blob is refused before it fills the disk."""
        if self._finished:
            raise InvalidArgument(f"blob {self.key}: a frame follows the finish frame")
        if frame.HasField("finish"):
            self._finish(frame.finish)
            return b""
        if not frame.HasField("chunk"):
            raise InvalidArgument(f"blob {self.key}: after the header come chunks, then a finish frame")
        chunk = frame.chunk  # once: each look at it copies it
        if len(chunk) > CHUNK_BYTES_MAX:
            raise InvalidArgument(f"blob {self.key}: a chunk of {len(chunk)} bytes is above {CHUNK_BYTES_MAX}")
        self._received_bytes += len(chunk)
        if self.size_bytes is not None and self._received_bytes > self.size_bytes:
            raise DigestMismatch(
                f"blob {self.key}: more than the announced {self.size_bytes} bytes came; nothing was kept"
            )
        return chunk

    def _finish(self, finish: blob_pb2.WriteBlobFinish) -> None:
        self._finished = True
        sha256 = _checked_digest(finish.sha256)
        if finish.HasField("size_bytes"):
            if self.size_bytes not in (None, finish.size_bytes):
                raise DigestMismatch(
                    f"blob {self.key}: header and finish frame announce different sizes; nothing was kept"
                )
            self.size_bytes = finish.size_bytes
        if sha256:
            if self.sha256 not in (b"", sha256):
                raise DigestMismatch(
                    f"blob {self.key}: header and finish frame announce different digests; nothing was kept"
                )
            self.sha256 = sha256

    def check_end(self) -> None:
        """The stream has ended; refuse it when nothing says that it was meant to. A client that died ends its stream like one that is done."""
        if not self._finished and self.size_bytes is None:
            raise InvalidArgument(f"blob {self.key}: the stream ended without a finish frame; nothing was kept")


def _result(done: Written | BaseException) -> Written:
    if isinstance(done, BaseException):
        raise done
    return done


def _check_count(blobs: int) -> None:
    if blobs > BLOBS_TOGETHER_MAX:
        raise InvalidArgument(f"{blobs} blobs in one call are above {BLOBS_TOGETHER_MAX}")


def _checked_digest(sha256: bytes) -> bytes:
    if len(sha256) not in (0, _SHA256_BYTES):
        raise InvalidArgument(
            f"sha256 has {len(sha256)} bytes; it is the {_SHA256_BYTES} bytes of the digest, or empty"
        )
    return sha256


class SystemServicer(system_pb2_grpc.SystemServiceServicer):
    """Says who answers here."""

    def __init__(self, *, server_id: str, warnings: Callable[[], tuple[str, ...]]) -> None:
        self._server_id = server_id
        self._warnings = warnings
        self._started = time.monotonic()

    async def GetServerInfo(
        self, request: system_pb2.GetServerInfoRequest, context: Context
    ) -> system_pb2.GetServerInfoResponse:
        """See the protocol."""
        return system_pb2.GetServerInfoResponse(
            program="storage",
            software=__version__,
            protocol_major=model.PROTOCOL_MAJOR,
            protocol_minor=model.PROTOCOL_MINOR,
            features=["ranges", "verify", "finish"],
            server_id=self._server_id,
            uptime=wire.seconds_to_wire(time.monotonic() - self._started),
            warnings=self._warnings(),
        )
