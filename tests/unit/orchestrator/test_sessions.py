"""Frames that wait for a worker: in the order in which the core sent them, after the welcome, and not without bound."""

from __future__ import annotations

import pytest

from antfarm.errors import Unavailable
from antfarm.model import SessionId
from antfarm.v1 import work_queue_pb2
from services.orchestrator.runtime.sessions import FRAMES_WAITING_MAX, Session

FRAME = work_queue_pb2.PullTasksResponse(heartbeat_ack=work_queue_pb2.HeartbeatAck(number=1))
WELCOME = work_queue_pb2.PullTasksResponse(welcome=work_queue_pb2.Welcome(epoch=1))


@pytest.mark.parametrize("welcomed", [False, True], ids=["before its welcome", "after it"])
async def test_a_worker_that_does_not_read_is_ended_and_what_waited_is_dropped(welcomed: bool) -> None:
    """Its welcome may wait for the journal while it beats without end."""
    session = Session(SessionId("s"))
    if welcomed:
        session.welcome(WELCOME)
        assert await session.frames() == [WELCOME]
    for _ in range(FRAMES_WAITING_MAX):
        session.send(FRAME)
    assert session.error is None
    session.send(FRAME)
    assert session._early == (None if welcomed else [])
    for _ in range(2):
        with pytest.raises(Unavailable, match="it does not read what it is sent: attach again"):
            await session.frames()


async def test_what_came_before_the_welcome_leaves_after_it() -> None:
    session = Session(SessionId("s"))
    session.send(FRAME)
    session.welcome(WELCOME)
    assert await session.frames() == [WELCOME, FRAME]
