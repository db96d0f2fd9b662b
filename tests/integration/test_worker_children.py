"""Children without an orchestrator: what feeding one costs, and what a process owes its parent."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fake_orchestrator import until

from antfarm.link.estimate import Estimate
from services.worker.child.protocol import CURRENT, OUT_DONE, OUT_READY
from services.worker.core.attempt import Attempt, Group
from services.worker.core.lane import Lane
from services.worker.executors import process
from services.worker.executors.crew import Crew
from services.worker.executors.feeder import Feeder
from services.worker.executors.process import ChildProcess, ChildSpec, Warden, child_environment

TASKS = Path(__file__).with_name("worker_tasks.py")


class Nursery:
    """Children, and what they said."""

    def __init__(self, scratch: Path) -> None:
        self.warden = Warden()
        self.spec = ChildSpec(
            apps=(str(TASKS),), installed_apps=False, scratch=scratch, env=child_environment(os.environ)
        )
        self.records: list[list[Any]] = []
        self.waiting_s = 1.0
        self.exits: dict[int, int] = {}
        self.children: list[ChildProcess] = []

    def _on_records(self, number: int, records: list[list[Any]]) -> float:
        self.records += records
        return self.waiting_s

    def _listen(self) -> None:
        for child in self.children:
            child.listen()

    async def child(self, mode: str = "plain") -> ChildProcess:
        child = ChildProcess(
            number=len(self.children),
            mode=mode,
            spec=self.spec,
            warden=self.warden,
            on_records=self._on_records,
            on_pause=lambda pause_s: asyncio.get_running_loop().call_later(pause_s, self._listen),
            on_noise=lambda number, data: None,
            on_exit=self.exits.__setitem__,
        )
        self.children.append(child)
        await until(lambda: [r for r in self.records if r[0] == OUT_READY])
        self.records.clear()
        return child

    async def close(self) -> None:
        for child in self.children:
            if child.number not in self.exits:
                child.kill()
        await until(lambda: len(self.exits) == len(self.children))
        self.warden.close()


@pytest.fixture
async def nursery(tmp_path: Path) -> AsyncIterator[Nursery]:
    made = Nursery(tmp_path)
    yield made
    await made.close()


def attempts(type_: str, count: int, first_seq: int = 1) -> list[Attempt]:
    group = Group(job_id="job", epoch=1, type=type_, is_async=False, estimate=Estimate(), cost={"cpu": 1.0})
    made = []
    for number in range(count):
        attempt = Attempt(group, number, 1, b"[]", 0)
        attempt.seq = first_seq + number
        made.append(attempt)
    return made


async def each_result_arrives_at_once(nursery: Nursery, child: ChildProcess) -> None:
    feeder = Feeder()
    for seq in (1, 2, 3):
        child.feed(feeder.pack(attempts("noop", 1, first_seq=seq)))
        await until(lambda seq=seq: [record[1] for record in nursery.records] == list(range(1, seq + 1)))


@pytest.mark.slow
async def test_a_child_runs_all_that_it_is_fed_in_order(nursery: Nursery) -> None:
    count = 60_000
    child = await nursery.child()
    feeder = Feeder()
    todo = attempts("noop", count)
    for start in range(0, count, 256):
        child.feed(feeder.pack(todo[start : start + 256]))
        await asyncio.sleep(0)
    await until(lambda: len(nursery.records) >= count)
    assert {record[0] for record in nursery.records} == {OUT_DONE}
    assert [record[1] for record in nursery.records] == list(range(1, count + 1))


async def test_results_written_before_a_crash_arrive_and_the_page_names_the_culprit(nursery: Nursery) -> None:
    child = await nursery.child()
    feeder = Feeder()
    tasks = attempts("noop", 1000)
    group = Group(job_id="bad", epoch=1, type="crash", is_async=False, estimate=Estimate(), cost={"cpu": 1.0})
    culprit = Attempt(group, 0, 1, b'["kill"]', 0)
    culprit.seq = 1001
    child.feed(feeder.pack([*tasks, culprit]))
    await until(lambda: child.number in nursery.exits)
    assert nursery.exits[child.number] == -9
    assert [record[1] for record in nursery.records] == list(range(1, 1001))
    assert child.started_last == 1001


async def test_a_child_with_much_to_do_is_not_listened_to_for_a_while_unless_somebody_wants_to_know(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "PAUSE_MAX_S", 3600.0)
    nursery.waiting_s = 0.0
    child = await nursery.child()
    nursery.waiting_s = 7200.0
    feeder = Feeder()
    child.feed(feeder.pack(attempts("noop", 1)))
    await until(lambda: nursery.records)
    child.feed(feeder.pack(attempts("noop", 2, first_seq=2)))
    await until(lambda: child.page[CURRENT] == 3)  # so the result of 2 lies in the pipe
    assert [record[1] for record in nursery.records] == [1]
    child.listen()
    assert [record[1] for record in nursery.records][:2] == [1, 2]


async def test_the_first_pause_that_is_over_ends_those_of_all_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that one turn of the agent and one message serve them all, however many there are."""
    monkeypatch.setattr(process, "PAUSE_MAX_S", 3600.0)
    spec = ChildSpec(apps=(str(TASKS),), installed_apps=False, scratch=tmp_path, env=child_environment(os.environ))
    waiting_s = {1: 0.0, 2: 0.0}
    said: dict[int, list[int]] = {1: [], 2: []}
    exits: dict[int, int] = {}

    def on_records(number: int, records: list[list[Any]]) -> float:
        said[number] += [record[1] for record in records if record[0] == OUT_DONE]
        return waiting_s[number]

    crew = Crew(spec, on_records=on_records, on_noise=lambda number, data: None, on_exit=exits.__setitem__)
    lanes = [Lane(number, is_loop=False) for number in (1, 2)]
    try:
        for lane in lanes:
            assert crew.start(is_loop=False, now_ns=0) == lane.number
            crew.feed(lane, attempts("noop", 1))
        await until(lambda: said == {1: [1], 2: [1]})
        waiting_s.update({1: 7200.0, 2: 0.2})
        crew.feed(lanes[0], attempts("noop", 1, first_seq=2))
        await until(lambda: said[1] == [1, 2])  # from now on it is not listened to
        crew.feed(lanes[0], attempts("noop", 1, first_seq=3))
        crew.feed(lanes[1], attempts("noop", 1, first_seq=2))
        await until(lambda: said[1] == [1, 2, 3])
    finally:
        crew.kill_all()
        await until(lambda: len(exits) == 2)
        crew.close()


async def test_what_fills_a_good_part_of_the_pipe_is_followed_by_no_pause(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "PAUSE_MAX_S", 3600.0)
    nursery.waiting_s = 0.0
    child = await nursery.child()
    nursery.waiting_s = 7200.0
    monkeypatch.setattr(child, "_pause_bytes_max", 0)
    await each_result_arrives_at_once(nursery, child)


async def test_nothing_waits_no_pause(nursery: Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PAUSE_MAX_S", 3600.0)
    nursery.waiting_s = 0.0
    child = await nursery.child()
    await each_result_arrives_at_once(nursery, child)


async def test_an_idle_child_that_is_closed_ends_with_code_0(nursery: Nursery) -> None:
    child = await nursery.child()
    child.close()
    await until(lambda: nursery.exits.get(child.number) == 0)


async def test_a_templates_place_is_used_again_and_tasks_still_find_their_own(nursery: Nursery) -> None:
    child = await nursery.child()
    feeder = Feeder()
    wanted = []
    for number in range(200):
        group = Group(
            job_id=f"job{number}", epoch=1, type="who", is_async=False, estimate=Estimate(), cost={"cpu": 1.0}
        )
        attempt = Attempt(group, number, 1, b"[]", 0)
        attempt.seq = number + 1
        child.feed(feeder.pack([attempt]))
        wanted.append(f'["job{number}",{number},1,1]'.encode())
    await until(lambda: len(nursery.records) == 200)
    assert [record[3] for record in nursery.records] == wanted


def sleeper() -> subprocess.Popen[bytes]:
    """A process group that does nothing."""
    return subprocess.Popen(["sleep", "600"], start_new_session=True)


async def test_when_the_warden_dies_another_one_is_told_of_all_that_live(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It kills them at the agent's end, which is here that of its input."""
    monkeypatch.setattr(process, "WARDEN_PAUSE_S", 0.0)
    groups = [sleeper() for _ in range(3)]
    warden = Warden()
    try:
        for group in groups[:2]:
            warden.watch(group.pid)
        warden.release(groups[1].pid)
        first = warden._process
        assert first is not None
        first.kill()
        await until(lambda: warden._process not in (None, first))
        assert caplog.messages == ["the warden of this worker's processes has ended; another one is started"]
        warden.watch(groups[2].pid)
        warden.close()
        assert [groups[0].wait(10), groups[2].wait(10)] == [-9, -9]
        assert groups[1].poll() is None
    finally:
        warden.close()
        for group in groups:
            group.kill()
            group.wait()


async def test_a_warden_that_cannot_be_started_again_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(process, "WARDEN_PAUSE_S", 0.0)
    refusals = [OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)), OSError(errno.EMFILE, os.strerror(errno.EMFILE))]
    start, pidfd_open = subprocess.Popen, os.pidfd_open
    warden = Warden()
    try:
        first = warden._process
        assert first is not None

        def refused_once(*args: Any, **more: Any) -> Any:
            if len(refusals) == 2:
                raise refusals.pop(0)
            return start(*args, **more)

        def not_opened_once(pid: int) -> int:
            if len(refusals) == 1:
                raise refusals.pop(0)
            return pidfd_open(pid)

        monkeypatch.setattr(process.subprocess, "Popen", refused_once)
        monkeypatch.setattr(process.os, "pidfd_open", not_opened_once)
        first.kill()
        await until(lambda: warden._process not in (None, first))
        assert caplog.messages[1:] == [
            f"no warden could be started: {os.strerror(number)}; trying again"
            for number in (errno.EAGAIN, errno.EMFILE)
        ]
    finally:
        warden.close()
