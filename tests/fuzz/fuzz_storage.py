"""Target `storage`: bytes of every message that Storage takes, at its real servicers over blobs in memory."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from typing import Any

from fuzz_bytes import mutate, twist
from fuzz_world import Broken
from google.protobuf.message import DecodeError, Message

from antfarm import wire
from antfarm.errors import AntFarmError
from antfarm.v1 import blob_pb2, system_pb2
from services.storage.backends.memory import MemoryBackend
from services.storage.servicer import BlobServicer, SystemServicer

_KEYS = ("a", "tasks/j/0/1-1/out", "b/c", "b/d", "missing")
_CONTENT = (b"", b"x", b"content" * 20)


class _Peer:
    async def write(self, frame: Message) -> None:
        frame.SerializeToString()

    async def send_initial_metadata(self, metadata: Any) -> None:
        pass


class _Storage:
    """The servers, and what a well-behaved client would send there."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.backend = MemoryBackend()
        self.service = BlobServicer(self.backend, streams_max=4)
        self.system = SystemServicer(server_id="s", warnings=tuple)
        self.last = b""

    def _pick(self, choices: tuple[Any, ...]) -> Any:
        return choices[int(self.dice.random() * len(choices))]

    def _wrong(self, message: Message) -> Any:
        """The message, or what came of its bytes on the way. DecodeError when it is none any more."""
        choice = self.dice.random()
        if choice > 0.7:
            twist(message, self.dice)
        data = message.SerializeToString()
        if choice < 0.4:
            self.last, data = data, mutate(data, self.dice, self.last)
        return type(message).FromString(data)

    async def one(self) -> bool:
        """One call. False when it was refused."""
        before = self._all()
        call = self._pick((self._write, self._write, self._write_several, self._call, self._call))
        try:
            await call()
        except DecodeError:
            return False
        except AntFarmError as error:
            wire.error_to_status(error)
            if self._all() != before and call != self._write_several:
                raise Broken(f"a refused call changed what is stored: {error!r}") from None
            return False
        for key, content in before.items():
            if self.backend._blobs.get(key, (None, content))[1] != content:
                raise Broken(f"I14: blob {key} changed")
        return True

    def _all(self) -> dict[str, bytes]:
        return {key: content for key, (_, content) in self.backend._blobs.items()}

    async def _write(self) -> None:
        content = self._pick(_CONTENT)
        header = blob_pb2.WriteBlobHeader(key=self._pick(_KEYS))
        finish = blob_pb2.WriteBlobFinish()
        announce = header if self.dice.random() < 0.5 else finish
        announce.size_bytes, announce.sha256 = len(content), hashlib.sha256(content).digest()
        frames = [
            blob_pb2.WriteBlobRequest(header=header),
            blob_pb2.WriteBlobRequest(chunk=content),
            blob_pb2.WriteBlobRequest(finish=finish),
        ]
        if self.dice.random() < 0.2:
            frames.insert(self.dice.randrange(4), frames[self.dice.randrange(3)])
        if self.dice.random() < 0.2:
            del frames[self.dice.randrange(len(frames))]
        place = self.dice.randrange(len(frames))
        sent = [self._wrong(frame) if at == place else frame for at, frame in enumerate(frames)]

        async def requests() -> AsyncIterator[Any]:
            for frame in sent:
                yield frame

        response: Any = await self.service.WriteBlob(requests(), _Peer())  # type: ignore[arg-type]
        response.SerializeToString()
        written = self.backend._blobs[response.blob.key]
        if hashlib.sha256(written[1]).digest() != response.blob.sha256 or len(written[1]) != response.blob.size_bytes:
            raise Broken(f"blob {response.blob.key} is not what was announced")

    async def _write_several(self) -> None:
        """When it is refused for one of them, others may have been written."""
        blobs = []
        for _ in range(self.dice.randrange(4)):
            content = self._pick(_CONTENT)
            sha256 = hashlib.sha256(content).digest() if self.dice.random() < 0.5 else b""
            blobs.append(blob_pb2.SmallBlob(key=self._pick(_KEYS), sha256=sha256, content=content))
        request = self._wrong(blob_pb2.WriteBlobsRequest(blobs=blobs))
        response: Any = await self.service.WriteBlobs(request, _Peer())  # type: ignore[arg-type]
        for small, written in zip(request.blobs, response.written, strict=True):
            if hashlib.sha256(small.content).digest() != written.blob.sha256:
                raise Broken(f"blob {written.blob.key} is not what was sent")

    async def _call(self) -> None:
        key = self._pick(_KEYS)
        message, method = self._pick(
            (
                (blob_pb2.ReadBlobRequest(key=key, offset=self.dice.randrange(3)), self.service.ReadBlob),
                (blob_pb2.ReadBlobsRequest(keys=[key, self._pick(_KEYS)]), self.service.ReadBlobs),
                (blob_pb2.StatBlobRequest(key=key), self.service.StatBlob),
                (blob_pb2.ListBlobsRequest(prefix="b", page_size=1), self.service.ListBlobs),
                (blob_pb2.DeleteBlobRequest(key=key), self.service.DeleteBlob),
                (blob_pb2.VerifyBlobRequest(key=key), self.service.VerifyBlob),
                (system_pb2.GetServerInfoRequest(), self.system.GetServerInfo),
            )
        )
        response = await method(self._wrong(message), _Peer())
        if response is not None:
            response.SerializeToString()


def run(seed: str, inputs: int, *, check_every: int = 16) -> int:
    """That many calls. Returns how many were refused."""
    return asyncio.run(_run(random.Random(seed), inputs))


async def _run(dice: random.Random, inputs: int) -> int:
    storage = _Storage(dice)
    return sum([not await storage.one() for _ in range(inputs)])
