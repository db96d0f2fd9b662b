"""The link against a scripted orchestrator over real streams."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_orchestrator import FakeOrchestrator, Token, until
from grpc.aio._call import StreamStreamCall  # the class behind the public name, which is abstract

from antfarm import net, wire
from antfarm.errors import Cycle, IncarnationLost, ProtocolUnsupported, WorkerIdInUse
from antfarm.link import Link, Outbox, OutcomeParts, WorkerIdentity
from antfarm.link import client as client_module
from antfarm.link.session import Dice
from antfarm.model import SECOND_NS
from antfarm.v1 import report_queue_pb2 as rq
from antfarm.v1 import work_queue_pb2


class Recorder:
    """A handler that keeps all it is told."""

    def __init__(self) -> None:
        self.welcomes: list[work_queue_pb2.Welcome] = []
        self.tokens: list[Token] = []
        self.groups = 0
        self.revoked: list[tuple[Token, str]] = []
        self.drains: list[float] = []

    def on_welcome(self, welcome: work_queue_pb2.Welcome) -> None:
        self.welcomes.append(welcome)

    def on_tasks(self, groups: list[work_queue_pb2.TaskGroup]) -> None:
        self.groups += len(groups)
        self.tokens.extend(
            (g.job_id, index, g.epoch, attempt) for g in groups for index, attempt in wire.assigned_pairs(g)
        )

    def on_revoke(self, tokens: list[Token], cause: str) -> None:
        self.revoked.extend((token, cause) for token in tokens)

    def on_drain(self, limit_s: float) -> None:
        self.drains.append(limit_s)


class Kept(Outbox):
    """An outbox whose content a test can look at and hand on."""

    def __init__(self, messages: list[bytes] | None = None) -> None:
        self.messages = messages or []
        self.writes = 0
        self.queues: list[str] = []

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.messages))

    def load(self) -> list[bytes]:
        return list(self.messages)

    def belong(self, queue: str) -> None:
        self.queues.append(queue)

    def append(self, message: bytes) -> None:
        self.writes += 1
        self.messages.append(message)

    def replace(self, messages: object) -> None:
        self.messages = list(messages)  # type: ignore[call-overload]


@asynccontextmanager
async def linked(
    orchestrator: FakeOrchestrator,
    *,
    window: int = 8,
    outbox: Outbox | None = None,
    dice: Dice | None = None,
    on_other_queue: Callable[[str], None] = lambda orchestrator_id: None,
) -> AsyncIterator[tuple[Link, Recorder]]:
    handler = Recorder()
    identity = WorkerIdentity(worker_id="w", slots=2, window=window, task_types=("t",), labels={"zone": "a"})
    link = Link(
        addresses=[orchestrator.address],
        identity=identity,
        handler=handler,
        outbox=outbox,
        dice=dice or random.Random(1),
        on_other_queue=on_other_queue,
    )
    run = asyncio.create_task(link.run())
    try:
        yield link, handler
    finally:
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)


class Pauses:
    """Dice that say how long each pause is, in seconds."""

    def __init__(self, *pauses_s: float) -> None:
        self.pauses_s = list(pauses_s)

    def uniform(self, a: float, b: float, /) -> float:
        return self.pauses_s.pop(0) * SECOND_NS


def succeeded(token: Token, result: bytes = b"1") -> tuple[str, int, OutcomeParts]:
    return token[0], token[2], OutcomeParts(index=token[1], attempt=token[3], ending=rq.ENDING_SUCCEEDED, result=result)


async def test_hello_says_who_it_is_and_beats_hold_what_it_holds() -> None:
    async with FakeOrchestrator() as farm, linked(farm, window=5) as (link, handler):
        connection = await farm.attached()
        assert (connection.hello.worker_id, connection.hello.slots, connection.hello.window) == ("w", 2, 5)
        assert dict(connection.hello.labels) == {"zone": "a"}
        assert len(connection.hello.incarnation) == 16
        tokens = farm.give("t", [b"[]"] * 3)
        await until(lambda: handler.tokens == tokens)
        beat = await until(lambda: [b for b in connection.heartbeats if b.tasks_frames_received])
        assert [(h.job_id, h.epoch, list(h.indices), list(h.attempts)) for h in beat[0].held] == [
            ("job", 1, [0, 1, 2], [1, 1, 1])
        ]
        assert [b.number for b in connection.heartbeats] == list(range(1, len(connection.heartbeats) + 1))
        assert link.held_count == 3


async def test_a_report_is_forgotten_at_its_final_verdict_only() -> None:
    async with FakeOrchestrator() as farm, linked(farm) as (link, handler):
        await farm.attached()
        codes = [rq.VERDICT_CODE_RETRY, 99, rq.VERDICT_CODE_ACCEPTED]
        farm.verdict = lambda token, outcome: codes.pop(0)
        [token] = farm.give("t", [b"[]"])
        await until(lambda: handler.tokens)
        link.report(*succeeded(token))
        await until(lambda: len(farm.outcomes.get(token, ())) == 2, what="sent again after RETRY")
        assert link.unacked_count == 1
        assert link.held_count == 1
        farm.hang_up()
        await farm.attached(2)
        assert await link.settled(10)
        assert len(farm.outcomes[token]) == 3
        assert link.held_count == 0


async def test_who_begins_to_listen_where_nobody_did_is_dialled_before_the_pause_is_over() -> None:
    pauses = Pauses(0.0, 600.0)
    async with FakeOrchestrator() as farm, linked(farm, dice=pauses) as (link, _):
        await farm.attached()
        await farm.stop()
        await until(lambda: not pauses.pauses_s, what="the dial after the first pause was refused")
        assert not link.attached
        await farm.start()
        await farm.attached(2)


async def test_who_died_and_listens_again_is_dialled_before_the_pause_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when its connection was not refused but broke, or the pause after that would be waited out blindly."""
    listens, seen = net.listens, asyncio.Queue[bool]()

    async def look(address: str) -> bool:
        there = await listens(address)
        seen.put_nowait(there)
        return there

    monkeypatch.setattr(net, "listens", look)
    async with FakeOrchestrator() as farm, linked(farm, dice=Pauses(600.0, 600.0)) as (_, _):
        await farm.attached()
        await farm.stop()
        assert not await seen.get()
        await farm.start()
        await farm.attached(2)


async def test_who_hangs_up_and_listens_is_looked_at_once_and_then_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []
    looked = asyncio.Event()

    async def look(address: str) -> bool:
        looks.append(address)
        looked.set()
        return True

    monkeypatch.setattr(net, "listens", look)
    async with FakeOrchestrator() as farm, linked(farm, dice=Pauses(0.5, 600.0)) as (_, _):
        await farm.attached()
        farm.hang_up()
        await looked.wait()
        await farm.attached(2)
    assert len(looks) == 1


async def test_reports_wait_for_an_orchestrator_that_is_away_and_held_work_is_said_again() -> None:
    async with FakeOrchestrator() as farm, linked(farm) as (link, handler):
        await farm.attached()
        tokens = farm.give("t", [b"[]"] * 4)
        await until(lambda: len(handler.tokens) == 4)
        await farm.stop()
        await until(lambda: not link.attached)
        for token in tokens[:2]:
            link.report(*succeeded(token))
        farm.epoch = 2
        await farm.start()
        connection = await farm.attached(2)
        assert connection.hello.max_epoch_seen == 1
        assert sorted(i for h in connection.hello.held for i in h.indices) == [0, 1, 2, 3]
        assert await link.settled(10)
        assert sorted(farm.outcomes) == tokens[:2]
        assert link.held_count == 2


async def test_an_orchestrator_of_a_lower_epoch_is_not_obeyed() -> None:
    async with FakeOrchestrator() as farm, linked(farm) as (link, handler):
        farm.epoch = 7
        await farm.attached()
        await until(lambda: link.attached)
        farm.give("t", [b"[]"], epoch=6)
        farm.give("t", [b"[]"], job_id="other")
        await until(lambda: handler.tokens)
        assert handler.tokens == [("other", 0, 7, 1)]
        farm.epoch = 6
        farm.hang_up()
        await farm.attached(4)
        assert len(handler.welcomes) == 1
        farm.epoch = 7
        await until(lambda: len(handler.welcomes) == 2)


@pytest.mark.slow
async def test_the_first_welcome_says_whose_queue_it_is_and_one_that_says_nothing_changes_nothing() -> None:
    kept = Kept()
    async with FakeOrchestrator() as farm, linked(farm, outbox=kept) as (link, _):
        connection = await farm.attached()
        await link.first_attached()
        assert (connection.hello.orchestrator_id, link.queue) == ("", "fake")
        farm.orchestrator_id = ""  # an older one
        farm.hang_up()
        again = await farm.attached(2)
        await until(lambda: again.heartbeats)
        assert (again.hello.orchestrator_id, link.queue) == ("fake", "fake")
        assert kept.queues == ["fake", "fake"], "told before anything of that queue is kept"


async def test_another_orchestrator_is_obeyed_when_the_owner_says_so_and_hears_of_nothing_before() -> None:
    """The one before answers once more meanwhile: its high epoch does not keep the link from the other one."""
    others: list[str] = []
    kept = Kept()
    async with FakeOrchestrator() as farm, linked(farm, outbox=kept, on_other_queue=others.append) as (link, handler):
        farm.epoch = 9
        await farm.attached()
        farm.verdict = lambda token, outcome: None
        tokens = farm.give("t", [b"[]"] * 2)
        await until(lambda: handler.tokens == tokens)
        link.report(*succeeded(tokens[0]))
        await farm.outcome(tokens[0])
        farm.epoch, farm.orchestrator_id = 1, "other"
        farm.hang_up()
        await until(lambda: others)
        assert (link.attached, len(handler.welcomes), link.held_count) == (False, 1, 2)
        assert link.forget_all() == tokens
        assert kept.messages == []
        farm.epoch, farm.orchestrator_id = 9, "fake"
        await until(lambda: len(handler.welcomes) == 2)
        farm.epoch, farm.orchestrator_id = 1, "other"
        link.queue = others[0]
        farm.hang_up()
        await until(lambda: len(handler.welcomes) == 3)
        hello = farm.now.hello
        assert (hello.orchestrator_id, hello.max_epoch_seen, list(hello.held), list(hello.unacked)) == (
            "other",
            0,
            [],
            [],
        )
        assert kept.queues == ["fake", "fake", "other"]
        assert len(farm.outcomes[tokens[0]]) == 1


async def test_a_group_without_assignments_is_no_work() -> None:
    async with FakeOrchestrator() as farm, linked(farm) as (_, handler):
        await farm.attached()
        farm.send(tasks=work_queue_pb2.Tasks(groups=[work_queue_pb2.TaskGroup(job_id="empty", epoch=1)]))
        [token] = farm.give("t", [b"[]"])
        await until(lambda: handler.tokens == [token])
        assert handler.groups == 1


async def test_a_welcome_that_took_long_leaves_what_is_left_of_the_own_lease_and_a_beat_follows_at_once() -> None:
    """0.75 of 2 s from the Hello: 0.5 s after the Welcome nothing else would have kept it, and a beat from 0.9 s after it comes too late."""
    async with FakeOrchestrator(heartbeat_s=0.9, lease_s=2.0) as farm:
        farm.welcome_after_s, farm.ack_beats = 1.0, False
        async with linked(farm) as (link, _):
            connection = await farm.attached()
            await until(lambda: link.attached)
            welcome = time.monotonic()
            assert not link.self_lease_over
            await until(lambda: connection.heartbeats)
            assert time.monotonic() - welcome < 0.7
            await until(lambda: link.self_lease_over)
            assert time.monotonic() - welcome < 1.2


async def test_what_is_not_wanted_any_more_is_forgotten_with_its_report() -> None:
    async with FakeOrchestrator() as farm, linked(farm) as (link, handler):
        await farm.attached()
        farm.verdict = lambda token, outcome: None
        tokens = farm.give("t", [b"[]"] * 3)
        await until(lambda: len(handler.tokens) == 3)
        link.report(*succeeded(tokens[0]))
        await farm.outcome(tokens[0])
        farm.revoke_at_welcome = [tokens[0], tokens[1], ("foreign", 0, 1, 1)]
        farm.hang_up()
        await farm.attached(2)
        await until(lambda: handler.revoked)
        assert [token for token, _ in handler.revoked] == tokens[:2]
        assert (link.held_count, link.unacked_count) == (1, 0)
        farm.revoke_at_beat = [tokens[2]]
        await until(lambda: link.held_count == 0)
        link.report(*succeeded(tokens[1]))
        link.report(*succeeded(tokens[2]))
        assert link.unacked_count == 0


async def test_revoke_and_drain_reach_the_handler_and_revoked_attempts_are_still_reported() -> None:
    async with FakeOrchestrator() as farm, linked(farm) as (link, handler):
        await farm.attached()
        tokens = farm.give("t", [b"[]"] * 2)
        await until(lambda: len(handler.tokens) == 2)
        farm.revoke([tokens[1], ("foreign", 1, 1, 1)], "by a user")
        farm.drain(4.5)
        await until(lambda: handler.drains)
        assert handler.revoked == [(tokens[1], "by a user")]
        assert handler.drains == [4.5]
        link.report("job", 1, OutcomeParts(index=1, attempt=1, ending=rq.ENDING_REVOKED))
        assert (await farm.outcome(tokens[1])).ending == rq.ENDING_REVOKED


async def test_an_assignment_that_arrives_twice_is_given_once() -> None:
    async with FakeOrchestrator() as farm, linked(farm) as (_, handler):
        await farm.attached()
        farm.give("t", [b"a", b"b"])
        farm.give("t", [b"a", b"b", b"c"])
        farm.give("t", [b"end"], first=9)
        await until(lambda: len(handler.tokens) >= 4)
        assert [token[1] for token in handler.tokens] == [0, 1, 2, 9]


async def test_pulling_stops_at_a_thousand_unacked_reports_and_goes_on_at_half() -> None:
    async with FakeOrchestrator() as farm, linked(farm, window=1200) as (link, handler):
        connection = await farm.attached()
        farm.verdict = lambda token, outcome: None
        tokens = farm.give("t", [b"[]"] * 1100)
        await until(lambda: len(handler.tokens) == 1100)
        for token in tokens[:1000]:
            link.report(*succeeded(token))
        await until(lambda: connection.credits[-1:] == [0])
        farm.verdict = lambda token, outcome: rq.VERDICT_CODE_ACCEPTED
        farm.hang_up()
        second = await farm.attached(2)
        assert second.hello.window == 0
        await until(lambda: second.credits[-1:] == [1200])
        assert await link.settled(10)


async def test_reports_of_one_turn_are_one_write_to_the_outbox_and_survive_the_process() -> None:
    kept = Kept()
    async with FakeOrchestrator() as farm:
        farm.verdict = lambda token, outcome: None
        async with linked(farm, outbox=kept) as (link, handler):
            await farm.attached()
            tokens = farm.give("t", [b"[]"] * 5)
            await until(lambda: len(handler.tokens) == 5)
            for token in tokens:
                link.report(*succeeded(token))
            await farm.outcome(tokens[-1])
            assert kept.writes == 1
        farm.verdict = lambda token, outcome: rq.VERDICT_CODE_DUPLICATE
        async with linked(farm, outbox=kept) as (link, _):
            connection = await farm.attached(2)
            assert connection.hello.incarnation != farm.connections[0].hello.incarnation
            assert [list(h.indices) for h in connection.hello.held] == [[0, 1, 2, 3, 4]]
            assert connection.hello.max_epoch_seen == 1
            assert await link.settled(10)
            await until(lambda: kept.messages == [], what="the outbox is emptied")
        assert {len(farm.outcomes[token]) for token in tokens} == {2}


async def test_lost_incarnation_comes_back_as_a_new_one_with_all_it_holds() -> None:
    async with FakeOrchestrator() as farm, linked(farm) as (link, handler):
        first = await farm.attached()
        farm.give("t", [b"[]"])
        await until(lambda: handler.tokens)
        farm.refuse_with = IncarnationLost("declared lost")
        farm.hang_up()
        await until(lambda: not link.attached)
        await asyncio.sleep(0)
        await until(lambda: link._session.incarnation != first.hello.incarnation)
        farm.refuse_with = None
        second = await farm.attached(2)
        assert second.hello.incarnation != first.hello.incarnation
        assert [list(h.indices) for h in second.hello.held] == [[0]]


@pytest.mark.parametrize("error", [Cycle("a -> b -> a"), ProtocolUnsupported("major 2"), WorkerIdInUse("w is alive")])
async def test_what_no_dial_can_cure_ends_the_link_with_its_reason(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "ID_IN_USE_PATIENCE_S", 0.3)
    async with FakeOrchestrator() as farm:
        farm.refuse_with = error  # type: ignore[assignment]
        identity = WorkerIdentity(worker_id="w", slots=1, window=1, task_types=())
        link = Link(addresses=[farm.address], identity=identity, handler=Recorder())
        with pytest.raises(type(error), match=str(error)):
            await asyncio.wait_for(link.run(), 20)


async def test_a_call_that_ended_before_its_hello_is_weather(monkeypatch: pytest.MonkeyPatch) -> None:
    writing, writes = StreamStreamCall.write, 0

    async def breaks_once(call: StreamStreamCall, frame: Any) -> None:
        nonlocal writes
        writes += 1
        if writes == 1:
            raise asyncio.InvalidStateError("RPC already finished.")
        await writing(call, frame)

    monkeypatch.setattr(StreamStreamCall, "write", breaks_once)
    async with FakeOrchestrator() as farm, linked(farm) as (link, _):
        await asyncio.wait_for(link.first_attached(), 5)
        assert link.attached


async def test_goodbye_is_said_and_ends_the_link() -> None:
    async with FakeOrchestrator() as farm:
        identity = WorkerIdentity(worker_id="w", slots=1, window=1, task_types=())
        link = Link(addresses=[farm.address], identity=identity, handler=Recorder())
        run = asyncio.create_task(link.run())
        connection = await farm.attached()
        await link.goodbye("drained")
        await asyncio.wait_for(run, 5)
        assert connection.goodbye == "drained"


async def test_a_worker_may_start_before_its_orchestrator_and_finds_the_one_address_that_serves() -> None:
    async with FakeOrchestrator() as farm:
        port = farm.port
        await farm.stop()
        identity = WorkerIdentity(worker_id="w", slots=1, window=1, task_types=())
        link = Link(addresses=["127.0.0.1:1", f"127.0.0.1:{port}"], identity=identity, handler=Recorder())
        run = asyncio.create_task(link.run())
        await asyncio.sleep(0.3)
        assert not run.done()
        await farm.start()
        await farm.attached()
        await link.goodbye("")
        await run


async def test_a_silent_orchestrator_is_hung_up_on_after_the_lease_and_the_own_lease_ends_before(
    tmp_path: Path,
) -> None:
    async with FakeOrchestrator(heartbeat_s=0.1, lease_s=0.8) as farm, linked(farm) as (link, _):
        await farm.attached()
        await asyncio.sleep(0.5)
        assert not link.self_lease_over
        farm.ack_beats = False
        await until(lambda: link.self_lease_over)
        assert link.attached
        await farm.attached(2)


async def test_words_of_running_attempts_are_joined_while_they_wait_and_go_before_the_outcome() -> None:
    async with FakeOrchestrator() as farm, linked(farm) as (link, handler):
        await farm.attached()
        [token] = farm.give("t", [b"[]"])
        await until(lambda: handler.tokens)
        link.running(rq.Running(job_id="job", epoch=1, index=0, attempt=1, log="one\n"))
        link.running(rq.Running(job_id="job", epoch=1, index=0, attempt=1, log="two\n", progress=0.5))
        link.running(rq.Running(job_id="foreign", epoch=1, index=0, attempt=1, log="never"))
        link.report(*succeeded(token))
        await farm.outcome(token)
        assert [(w.job_id, w.log, w.progress) for w in farm.words] == [("job", "one\ntwo\n", 0.5)]
