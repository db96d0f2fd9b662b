"""A TCP proxy between two programs that does to their connections what networks do: delay, silence in one direction or both, half-open ends,
cuts, narrow bandwidth. It knows bytes only.

Silence keeps both connections open and reads nothing, as a cable that is pulled: what was sent waits and arrives later. `half_open` kills the
server's side alone, as a router that has forgotten the connection: the client hears nothing of it.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType

CHUNK_BYTES = 16 * 1024


@dataclass(eq=False, slots=True)
class _Pair:
    """One connection through the proxy: `near` is the client's side, `far` the server's."""

    near: asyncio.StreamWriter
    far: asyncio.StreamWriter
    pumps: list[asyncio.Task[None]] = field(default_factory=list)
    abandoned: bool = False
    """Half-open: the near side stays open and silent when the far side has ended."""


class FaultProxy:
    """Listens on a port of loopback and forwards to `target`. Use it as an async context manager.

    delay_s: how much later each piece arrives. bytes_per_s: at most so many in each direction; 0: no limit.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._host, self._port = host, int(port)
        self.address = ""
        self.delay_s = 0.0
        self.bytes_per_s = 0
        self.connections = 0
        """How many were ever made."""
        self._pairs: set[_Pair] = set()
        self._open = {True: asyncio.Event(), False: asyncio.Event()}  # True: from the client to the server
        for event in self._open.values():
            event.set()
        self._accepts = True
        self._serving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> FaultProxy:
        self._server = await asyncio.start_server(self._begin, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._serving)
        await self._server.wait_closed()

    # ---- faults -----------------------------------------------------------------------------------------------------

    def silence(self, *, to_server: bool = True, to_client: bool = True) -> None:
        """From now on nothing arrives in these directions, on connections that stand and on new ones."""
        if to_server:
            self._open[True].clear()
        if to_client:
            self._open[False].clear()

    def refuse(self) -> None:
        """End connections and new ones at once: the peer's port seems closed."""
        self._accepts = False
        self.cut()

    def half_open(self) -> None:
        """The server's side of every connection ends; the client's stays open, and silent for ever. New connections are served."""
        for pair in self._pairs:
            pair.abandoned = True
            pair.far.transport.abort()

    def cut(self) -> None:
        """End every connection that stands, both sides at once. What was on its way is gone."""
        for pair in self._pairs:
            pair.near.transport.abort()
            pair.far.transport.abort()
            for pump in pair.pumps:
                pump.cancel()

    def heal(self) -> None:
        """No more silence and no refusal. Connections that were left half open stay so until their client gives up."""
        self._accepts = True
        for event in self._open.values():
            event.set()

    # ---- forwarding -------------------------------------------------------------------------------------------------

    def _begin(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, near))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        if not self._accepts:
            await _abort(near)
            return
        try:
            far_reader, far = await asyncio.open_connection(self._host, self._port)
        except OSError:
            await _abort(near)
            return
        self.connections += 1
        pair = _Pair(near, far)
        pair.pumps = [
            asyncio.create_task(self._pump(pair, reader, far, to_server=True)),
            asyncio.create_task(self._pump(pair, far_reader, near, to_server=False)),
        ]
        self._pairs.add(pair)
        try:
            await asyncio.wait(pair.pumps)
        finally:
            self._pairs.discard(pair)
            await _abort(near)
            await _abort(far)

    async def _pump(
        self, pair: _Pair, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to_server: bool
    ) -> None:
        with suppress(OSError):
            while piece := await reader.read(CHUNK_BYTES):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if self.bytes_per_s:
                    await asyncio.sleep(len(piece) / self.bytes_per_s)
                await self._open[to_server].wait()
                if pair.abandoned:
                    continue  # swallowed
                writer.write(piece)
                await writer.drain()
        if not pair.abandoned:
            writer.transport.abort()


async def _abort(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with suppress(OSError):
        await writer.wait_closed()
