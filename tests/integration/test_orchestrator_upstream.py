"""An orchestrator below another one over real sockets: what its workers hear of what it hears above."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from fake_orchestrator import FakeOrchestrator, until
from scripted import Running, ScriptedWorker, counts

from antfarm import wire
from antfarm.errors import Unavailable
from antfarm.v1 import job_pb2, system_pb2
from services.orchestrator.runtime.above import Above
from services.orchestrator.settings import OrchestratorSettings

pytestmark = pytest.mark.slow

FIRST, SECOND = "10.0.0.1:50052", "10.0.0.2:50052"


@pytest.fixture
async def above() -> AsyncIterator[FakeOrchestrator]:
    """It has a port, and nobody listens there before `start`."""
    async with FakeOrchestrator() as orchestrator:
        await orchestrator.stop()
        orchestrator.storage_address = FIRST
        yield orchestrator


@asynccontextmanager
async def below(directory: Path, above: FakeOrchestrator, storage: str = "") -> AsyncIterator[Running]:
    """An orchestrator below that one."""
    running = Running(
        OrchestratorSettings(
            port=0, state=str(directory), upstream=above.address, as_="t", upstream_slots=1, storage=storage
        )
    )
    await running.start()
    try:
        yield running
    finally:
        await running.stop()


async def heard(above: FakeOrchestrator, number: int) -> None:
    """The orchestrator below has the Welcome of that connection behind it."""
    connection = await above.attached(number)
    await until(lambda: connection.heartbeats)


async def sent_off(worker: ScriptedWorker) -> None:
    """Its session ends, so that it attaches again."""
    end = await worker.ended()
    assert (type(end), str(end)) == (Unavailable, "Storage is not where the Welcome said: attach again")


async def test_workers_that_came_before_storage_was_known_attach_anew_and_keep_what_they_hold(
    above: FakeOrchestrator, tmp_path: Path
) -> None:
    """Not even an at-most-once task is given up, given twice or taken away."""
    async with below(tmp_path, above) as running:
        worker = running.worker(window=2)
        assert (await worker.attach(dial=1)).storage_address == ""
        await running.create("once", 3, at_most_once=True)
        held = await worker.tasks(2)
        await above.start()
        await sent_off(worker)
        assert (await worker.attach(dial=2)).storage_address == FIRST
        await worker.beat()
        assert list(worker.held) == held
        await worker.work(3)
        assert (len(worker.given), worker.revoked) == (3, [])
        assert counts(await running.job("once")) == {"SUCCEEDED": 3}
        await worker.drop()


async def test_a_welcome_that_says_nothing_new_of_storage_ends_no_session(
    above: FakeOrchestrator, tmp_path: Path
) -> None:
    """Neither the same address again nor none at all, from an orchestrator above that does not know yet; another one does."""
    async with below(tmp_path, above) as running:
        await above.start()
        await heard(above, 1)
        worker = running.worker()
        assert (await worker.attach(dial=1)).storage_address == FIRST
        for number, address in enumerate((FIRST, ""), 2):
            above.storage_address = address
            above.hang_up()
            await heard(above, number)
            await worker.beat()
        late = running.worker("late")
        assert (await late.attach()).storage_address == FIRST
        above.storage_address = SECOND
        above.hang_up()
        await sent_off(worker)
        await sent_off(late)
        assert (await worker.attach(dial=2)).storage_address == SECOND
        for one in (worker, late):
            await one.drop()


async def test_the_address_of_storage_that_the_operator_gave_stands(above: FakeOrchestrator, tmp_path: Path) -> None:
    async with below(tmp_path, above, SECOND) as running:
        worker = running.worker()
        assert (await worker.attach(dial=1)).storage_address == SECOND
        await above.start()
        await heard(above, 1)
        await worker.beat()
        assert (await worker.attach(dial=2)).storage_address == SECOND
        await worker.drop()


async def told(running: Running) -> str:
    """Where clients are told that Storage is."""
    info = await running.system.GetServerInfo(system_pb2.GetServerInfoRequest())
    return str(info.storage_address)


async def test_where_storage_is_outlives_a_restart_until_the_orchestrator_above_says_otherwise(
    above: FakeOrchestrator, tmp_path: Path
) -> None:
    """Else the tasks that are given out before it is attached again fail for want of Storage, for good. Clients hear the same."""
    async with below(tmp_path, above) as running:
        assert await told(running) == ""
        await above.start()
        await heard(above, 1)
        assert await told(running) == FIRST
        await until(lambda: Above(tmp_path).storage_address == FIRST)
        await above.stop()
        await running.restart()
        assert await told(running) == FIRST
        worker = running.worker()
        assert (await worker.attach(dial=1)).storage_address == FIRST
        above.storage_address = SECOND
        await above.start()
        await sent_off(worker)
        assert await told(running) == SECOND
        await until(lambda: Above(tmp_path).storage_address == SECOND)
        running.settings = replace(running.settings, storage=FIRST)
        await running.restart()
        await heard(above, 3)
        assert await told(running) == FIRST
        running.settings = replace(running.settings, storage="")
        await above.stop()
        await running.restart()
        assert await told(running) == SECOND


async def test_a_cluster_that_is_moved_under_another_orchestrator_tells_it_nothing_of_the_one_before(
    above: FakeOrchestrator, tmp_path: Path
) -> None:
    """Both have a job of one name, and even the tokens of its tasks are the same."""
    above.orchestrator_id, above.storage_address = "first", ""
    await above.start()
    async with below(tmp_path / "low", above) as running, FakeOrchestrator() as second:
        worker = running.worker()
        await worker.attach()
        (token,) = above.give("t", [b"of the first"], job_id="nightly")
        (held,) = await worker.tasks()
        await worker.drop()
        await above.stop()
        second.orchestrator_id = "second"
        running.settings = replace(running.settings, upstream=second.address)
        await running.restart()
        assert [wire.tokens_from_wire((await second.attached(n)).hello.held) for n in (1, 2)] == [[token], []]
        assert [(await second.attached(n)).hello.orchestrator_id for n in (1, 2)] == ["first", "second"]
        assert (await second.attached(2)).hello.max_epoch_seen == 0
        welcome = await worker.attach()
        assert wire.tokens_from_wire(welcome.revoked) == [held]
        await until(lambda: second.now.heartbeats)
        assert second.give("t", [b"of the second"], job_id="nightly") == [token]
        (fresh,) = await worker.tasks()
        assert worker.held[fresh] == b"of the second"
        assert second.outcomes == {}
        assert await worker.report(fresh, result=b"of the second") == ["ACCEPTED"]
        assert (await second.outcome(token)).result == b"of the second"
        await worker.drop()


async def test_a_cluster_that_is_started_on_its_own_gives_up_what_is_of_the_orchestrator_above(
    above: FakeOrchestrator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody would hear how it ends; its jobs could not be purged, and would be kept for ever."""
    above.storage_address = ""
    await above.start()
    async with below(tmp_path, above) as running:
        worker = running.worker()
        await worker.attach()
        above.give("t", [b"1", b"2"], job_id="nightly")
        (held,) = await worker.tasks()
        await worker.drop()
        running.settings = replace(running.settings, upstream="", as_="")
        await running.restart()
        assert "started without --upstream: 2 tasks of the orchestrator above are given up" in caplog.messages
        assert wire.tokens_from_wire((await worker.attach()).revoked) == [held]
        assert counts(await running.job(held[0])) == {"CANCELLED": 2}
        await running.jobs.PurgeJob(job_pb2.PurgeJobRequest(job_id=held[0]))
        await worker.drop()
        caplog.clear()
        await running.restart()
        assert not [message for message in caplog.messages if "--upstream" in message]


async def test_a_task_that_no_single_worker_of_a_cluster_can_run_does_not_fit_there(
    above: FakeOrchestrator, tmp_path: Path
) -> None:
    """It says how many slots its largest worker has, not all slots together, and keeps what it holds when it says so anew."""
    await above.start()
    async with below(tmp_path, above) as running:
        first = await above.attached(1)
        (token,) = above.give("t", [b"1"])
        small, large = running.worker("small", slots=2), running.worker("large", slots=3)
        await small.attach()
        assert first.hello.resources == {"cpu": 1.0}  # nobody had come
        assert (await above.attached(2)).hello.resources == {"cpu": 2.0}
        await large.attach()
        third = await above.attached(3)
        assert third.hello.resources == {"cpu": 3.0}
        assert wire.tokens_from_wire(third.hello.held) == [token]
        for worker in (small, large):
            await worker.drop()
