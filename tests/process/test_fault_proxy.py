"""The fault proxy does to a connection what it says, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from fault_proxy import FaultProxy


@pytest.fixture
async def proxy() -> AsyncIterator[FaultProxy]:
    """In front of a server that answers each line with the same line in capitals."""
    served: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        served.add(task)
        try:
            while line := await reader.readline():
                writer.write(line.upper())
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with FaultProxy(f"127.0.0.1:{port}") as made:
        yield made
    server.close()
    await asyncio.gather(*served)


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, line: str) -> str:
        self.writer.write(line.encode() + b"\n")
        return (await self.reader.readline()).decode().strip()

    async def hang_up(self) -> None:
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()


async def dial(proxy: FaultProxy) -> Client:
    host, _, port = proxy.address.rpartition(":")
    return Client(*await asyncio.open_connection(host, int(port)))


async def test_it_forwards_both_ways_and_counts(proxy: FaultProxy) -> None:
    client = await dial(proxy)
    assert [await client.ask("one"), await client.ask("two")] == ["ONE", "TWO"]
    assert proxy.connections == 1
    await client.hang_up()


@pytest.mark.parametrize("direction", ["to_server", "to_client"])
async def test_silence_holds_back_what_arrives_when_it_is_over(proxy: FaultProxy, direction: str) -> None:
    client = await dial(proxy)
    assert await client.ask("one") == "ONE"
    proxy.silence(**{direction: True, ({"to_server", "to_client"} - {direction}).pop(): False})
    asking = asyncio.create_task(client.ask("two"))
    for _ in range(50):
        await asyncio.sleep(0)
    assert not asking.done()
    proxy.heal()
    assert await asking == "TWO"
    await client.hang_up()


async def test_a_cut_ends_what_stands_and_lets_a_new_connection_through(proxy: FaultProxy) -> None:
    client = await dial(proxy)
    assert await client.ask("one") == "ONE"
    proxy.cut()
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await client.reader.readexactly(1)
    await client.hang_up()
    again = await dial(proxy)
    assert await again.ask("two") == "TWO"
    await again.hang_up()


async def test_refusal_lasts_until_it_heals(proxy: FaultProxy) -> None:
    proxy.refuse()
    client = await dial(proxy)
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await client.reader.readexactly(1)
    await client.hang_up()
    proxy.heal()
    again = await dial(proxy)
    assert await again.ask("two") == "TWO"
    await again.hang_up()


async def test_half_open_leaves_the_client_without_a_word(proxy: FaultProxy) -> None:
    client = await dial(proxy)
    assert await client.ask("one") == "ONE"
    proxy.half_open()
    asking = asyncio.create_task(client.ask("two"))
    again = await dial(proxy)
    assert await again.ask("three") == "THREE"
    assert not asking.done()
    await again.hang_up()
    await client.hang_up()
    assert await asking == ""


async def test_a_narrow_line_takes_its_time(proxy: FaultProxy) -> None:
    client = await dial(proxy)
    proxy.bytes_per_s, proxy.delay_s = 100_000, 0.001
    assert await client.ask("x" * 2_000) == "X" * 2_000
    await client.hang_up()
