"""Servers, proxies and raw listeners that the tests of the wire talk to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

Serve = Callable[..., Awaitable[str]]
"""Type of the fixture `serve`."""

PING = 6
GOAWAY = 7
ACK = 1
_PREFACE_BYTES = 24


class Proxy:
    """A TCP proxy that counts connections and reads along: pings, how much the client sends in how long frames, and what the server says at the end."""

    def __init__(self, target: str, *, delay_s: float = 0.0) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._delay_s = delay_s
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0
        self.pings_of_client = 0
        self.pings_of_server = 0
        self.goaways: list[bytes] = []
        self.bytes_of_client = 0
        self.longest_of_client = 0
        self.held = False
        self.frozen = asyncio.Event()
        self.address = ""

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def freeze(self) -> None:
        """From now on nothing is passed on, as when the other node lost its power."""
        self.frozen.set()

    def hold_server(self) -> None:
        """From now on nothing that the server says is passed on, as on a long way where its answers are late."""
        self.held = True

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.ensure_future(self._connect(reader, writer))
        task.add_done_callback(lambda _: writer.close())  # one that is cancelled before it begins closes nothing itself
        self._tasks.add(task)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(self._delay_s)
        there_reader, there_writer = await asyncio.open_connection(*self._target)
        try:
            await asyncio.gather(
                self._pump(reader, there_writer, self._saw_client, from_client=True),
                self._pump(there_reader, writer, self._saw_server, from_client=False),
            )
        finally:
            writer.close()
            there_writer.close()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        saw: Callable[[int, int, bytes], None],
        *,
        from_client: bool,
    ) -> None:
        waiting, skip = b"", _PREFACE_BYTES if from_client else 0
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(65536):
                if self.frozen.is_set() or (self.held and not from_client):
                    continue
                self.bytes_of_client += len(chunk) if from_client else 0
                writer.write(chunk)
                await writer.drain()
                waiting += chunk
                if skip:
                    if len(waiting) < skip:
                        continue
                    waiting, skip = waiting[skip:], 0
                waiting = _frames(waiting, saw)
        with contextlib.suppress(OSError):
            writer.write_eof()

    def _saw_client(self, kind: int, flags: int, body: bytes) -> None:
        self.longest_of_client = max(self.longest_of_client, len(body))
        if kind == PING and not flags & ACK:
            self.pings_of_client += 1

    def _saw_server(self, kind: int, flags: int, body: bytes) -> None:
        if kind == PING and not flags & ACK:
            self.pings_of_server += 1
        if kind == GOAWAY:
            self.goaways.append(body[8:])


def _frames(data: bytes, saw: Callable[[int, int, bytes], None]) -> bytes:
    """Show each whole HTTP/2 frame (RFC 9113, section 4.1); return the rest."""
    while len(data) >= 9:
        end = 9 + int.from_bytes(data[:3], "big")
        if len(data) < end:
            break
        saw(data[3], data[4], data[9:end])
        data = data[end:]
    return data


async def until(true: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait until it is true. TimeoutError otherwise."""
    async with asyncio.timeout(timeout_s):
        while not true():  # noqa: ASYNC110 - what is waited for happens on the network
            await asyncio.sleep(0.005)
