"""BlobService and SystemService over a backend: translate, check form and limits, never decide what a blob is."""

# ruff: noqa: N802 - the methods have the names of their RPCs
from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import grpc.aio

from antfarm import __version__, model, wire
from antfarm.errors import BlobNotFound, DigestMismatch, InvalidArgument, Overloaded
from antfarm.v1 import blob_pb2, blob_pb2_grpc, system_pb2, system_pb2_grpc
from services.storage.backends.base import CHUNK_BYTES_MAX, Backend, Written, conflict
from services.storage.keys import check_key, check_prefix

Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")

PAGE_BLOBS_DEFAULT = 100
PAGE_BLOBS_MAX = 1000
_SHA256_BYTES = 32


class BlobServicer(blob_pb2_grpc.BlobServiceServicer):
    """Serves blobs. The protocol's comments say what each call promises."""

    def __init__(self, backend: Backend, *, streams_max: int) -> None:
        self._backend = backend
        self._streams_max = streams_max
        self._streams = 0

    def _enter_stream(self) -> None:
        """Count a stream of content in; Overloaded at the bound, because each holds a few pieces in memory."""
        if self._streams >= self._streams_max:
            raise Overloaded(f"storage is busy with {self._streams} streams; try again", retry_after_s=1.0)
        self._streams += 1

    async def WriteBlob(
        self, request_iterator: AsyncIterator[blob_pb2.WriteBlobRequest], context: Context
    ) -> blob_pb2.WriteBlobResponse:
        """See the protocol."""
        self._enter_stream()
        try:
            written = await self._write(request_iterator)
        finally:
            self._streams -= 1
        return blob_pb2.WriteBlobResponse(blob=wire.blob_to_wire(written.blob), existed=written.existed)

    async def _write(self, frames: AsyncIterator[blob_pb2.WriteBlobRequest]) -> Written:
        header = await _read_header(frames)
        announced = header.size_bytes if header.HasField("size_bytes") else None
        if announced is not None and header.sha256:
            written = await self._standing(header.key, announced, header.sha256)
            if written is not None:
                return written
        writer = await self._backend.open_write(header.key, size_bytes=announced)
        try:
            received, finish = 0, None
            async for frame in frames:
                if finish is not None:
                    raise InvalidArgument(f"blob {header.key}: a frame follows the finish frame")
                if frame.HasField("finish"):
                    finish = frame.finish
                    continue
                received += _check_chunk(header.key, frame, received, announced)
                await writer.write(frame.chunk)
            if finish is None and announced is None:
                # A client that died ends its stream like one that is done.
                raise InvalidArgument(f"blob {header.key}: the stream ended without a finish frame; nothing was kept")
            if finish is not None:
                _check_digest(finish.sha256)
                announced = _agreed(
                    header.key, "size", announced, finish.size_bytes if finish.HasField("size_bytes") else None
                )
            sha256 = _agreed(header.key, "SHA-256", header.sha256 or None, (finish.sha256 if finish else b"") or None)
            return await writer.commit(size_bytes=announced, sha256=sha256 or b"")
        finally:
            await writer.abort()

    async def _standing(self, key: str, size_bytes: int, sha256: bytes) -> Written | None:
        """The answer when the key is taken, without the content having to come; None when it is free."""
        try:
            blob = await self._backend.stat(key)
            if (blob.size_bytes, blob.sha256) != (size_bytes, sha256):
                raise conflict(key)
            return Written(blob=await self._backend.verify(key), existed=True)
        except BlobNotFound:
            return None

    async def ReadBlob(self, request: blob_pb2.ReadBlobRequest, context: Context) -> None:  # type: ignore[override]
        """See the protocol. Writes to the context, so that a cancelled call reaches the `finally` below at once."""
        check_key(request.key)
        self._enter_stream()
        try:
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
        finally:
            self._streams -= 1

    async def StatBlob(self, request: blob_pb2.StatBlobRequest, context: Context) -> blob_pb2.StatBlobResponse:
        """See the protocol."""
        blob = await self._backend.stat(check_key(request.key))
        return blob_pb2.StatBlobResponse(blob=wire.blob_to_wire(blob))

    async def ListBlobs(self, request: blob_pb2.ListBlobsRequest, context: Context) -> blob_pb2.ListBlobsResponse:
        """See the protocol. The token of a page is the last key of the page before."""
        if request.page_size > PAGE_BLOBS_MAX:
            raise InvalidArgument(f"page_size {request.page_size} is above {PAGE_BLOBS_MAX}")
        prefix = check_prefix(request.prefix)
        after = check_key(request.page_token) if request.page_token else ""
        limit = request.page_size or PAGE_BLOBS_DEFAULT
        blobs = await self._backend.list_page(prefix, after=after, limit=limit + 1)
        token = blobs[limit - 1].key if len(blobs) > limit else ""
        return blob_pb2.ListBlobsResponse(blobs=[wire.blob_to_wire(b) for b in blobs[:limit]], next_page_token=token)

    async def DeleteBlob(self, request: blob_pb2.DeleteBlobRequest, context: Context) -> blob_pb2.DeleteBlobResponse:
        """See the protocol."""
        return blob_pb2.DeleteBlobResponse(existed=await self._backend.delete(check_key(request.key)))

    async def VerifyBlob(self, request: blob_pb2.VerifyBlobRequest, context: Context) -> blob_pb2.VerifyBlobResponse:
        """See the protocol."""
        blob = await self._backend.verify(check_key(request.key))
        return blob_pb2.VerifyBlobResponse(blob=wire.blob_to_wire(blob))


async def _read_header(frames: AsyncIterator[blob_pb2.WriteBlobRequest]) -> blob_pb2.WriteBlobHeader:
    async for frame in frames:
        if not frame.HasField("header"):
            break
        check_key(frame.header.key)
        _check_digest(frame.header.sha256)
        return frame.header
    raise InvalidArgument("the first frame of WriteBlob must be a header")


def _check_chunk(key: str, frame: blob_pb2.WriteBlobRequest, received: int, announced: int | None) -> int:
    """Bytes of the frame's chunk. Refuses what cannot become the announced blob before it fills the disk."""
    if not frame.HasField("chunk"):
        raise InvalidArgument(f"blob {key}: after the header come chunks, then a finish frame")
    size = len(frame.chunk)
    if size > CHUNK_BYTES_MAX:
        raise InvalidArgument(f"blob {key}: a chunk of {size} bytes is above {CHUNK_BYTES_MAX}")
    if announced is not None and received + size > announced:
        raise DigestMismatch(f"blob {key}: more than the announced {announced} bytes came; nothing was kept")
    return size


def _check_digest(sha256: bytes) -> None:
    if sha256 and len(sha256) != _SHA256_BYTES:
        raise InvalidArgument(
            f"sha256 has {len(sha256)} bytes; it is the {_SHA256_BYTES} bytes of the digest, or empty"
        )


def _agreed(key: str, what: str, header: T | None, finish: T | None) -> T | None:
    """What header and finish frame announce; either may leave it out."""
    if header is not None and finish is not None and header != finish:
        raise DigestMismatch(f"blob {key}: header and finish frame announce different {what}; nothing was kept")
    return finish if header is None else header


class SystemServicer(system_pb2_grpc.SystemServiceServicer):
    """Says who answers here."""

    def __init__(self, *, server_id: str, warnings: tuple[str, ...]) -> None:
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
            warnings=self._warnings,
        )
