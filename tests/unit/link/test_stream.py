"""Which error a connection ends with when its readers and writers end in any order."""

from __future__ import annotations

import asyncio

import grpc.aio
import pytest

from antfarm.errors import IncarnationLost, Unavailable
from antfarm.link.stream import serve_until_one_ends


async def fails(error: Exception) -> None:
    raise error


async def test_a_write_into_a_stream_that_is_over_is_weather_when_no_reader_was_told_yet() -> None:
    """As after a long stop of the process: the call has ended meanwhile, and the writer's turn comes first."""
    never = asyncio.Event()
    with pytest.raises(Unavailable, match="its stream has ended"):
        await serve_until_one_ends(never.wait(), fails(asyncio.InvalidStateError("RPC already finished.")))


async def test_what_the_peer_said_comes_before_what_a_write_ran_into() -> None:
    with pytest.raises(IncarnationLost):
        await serve_until_one_ends(
            fails(asyncio.InvalidStateError("RPC already finished.")), fails(IncarnationLost("attach as a new one"))
        )


async def test_so_is_closing_what_has_broken_in_that_moment() -> None:
    never = asyncio.Event()
    with pytest.raises(Unavailable, match="its stream has ended"):
        await serve_until_one_ends(never.wait(), fails(grpc.aio.InternalError('Failed "execute_batch"')))
