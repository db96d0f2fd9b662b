"""Real children whose tasks do to their process what no task should: what these and their neighbours end as."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))

from fake_orchestrator import until
from worker_process import alive

from antfarm.link.estimate import Estimate
from services.worker.child.protocol import OUT_DONE, OUT_READY
from services.worker.core.attempt import Attempt, Group
from services.worker.core.lane import Lane
from services.worker.executors.crew import Crew
from services.worker.executors.process import ChildSpec, child_environment

pytestmark = pytest.mark.slow

APP = r'''
import asyncio
import os
import signal
import sys
import threading

from antfarm import task


@task(name="spoil")
def spoil(path):
    """Writes what is no record into its pipe to the agent, and stays."""
    os.write(int(sys.argv[4]), b"\xc1")
    open(path, "w").close()
    signal.pause()


@task(name="cut.off")
def cut_off():
    """Leaves a thread that never ends, and closes all descriptors that are not its own."""
    threading.Thread(target=threading.Event().wait).start()
    os.closerange(3, 256)


@task(name="aio.fork")
async def aio_fork(how):
    """Goes on twice, the second time in this way."""
    pid = os.fork()
    if pid:
        return pid
    if how == "exits":
        sys.exit(3)
    if how == "waits":
        await asyncio.Event().wait()


@task(name="aio.end.loop")
async def aio_end_loop(how):
    """Ends the loop that it runs on."""
    async def below():
        sys.exit(3)

    if how == "sys.exit":
        asyncio.create_task(below())
    else:
        asyncio.get_running_loop().stop()
    await asyncio.Event().wait()


@task(name="aio.wait")
async def aio_wait():
    await asyncio.Event().wait()


@task(name="aio.note")
async def aio_note(path):
    """Gives way for a while, then notes that it has run."""
    for _ in range(100):
        await asyncio.sleep(0)
    with open(path, "a") as file:
        file.write("ran ")


@task(name="noop")
def noop():
    pass
'''


class Nursery:
    """One child of a crew, what it said and how it ended."""

    def __init__(self, directory: Path) -> None:
        app = directory / "mischief.py"
        app.write_text(APP)
        env = child_environment(os.environ)
        spec = ChildSpec(apps=(str(app),), installed_apps=False, scratch=directory / "scratch", env=env)
        self.records: list[list[Any]] = []
        self.exits: dict[int, int] = {}
        self.noise = ""
        self.crew = Crew(spec, on_records=self._on_records, on_noise=self._on_noise, on_exit=self.exits.__setitem__)
        self.lane: Lane

    def _on_records(self, number: int, records: list[list[Any]]) -> float:
        self.records += records
        return 0.0

    def _on_noise(self, number: int, data: bytes) -> None:
        self.noise += data.decode()

    async def start(self, *, is_loop: bool = False) -> None:
        number = self.crew.start(is_loop=is_loop, now_ns=0)
        assert number is not None
        self.lane = Lane(number, is_loop=is_loop)
        await until(lambda: self.records or self.exits)
        assert [record[0] for record in self.records] == [OUT_READY], self.noise
        self.records.clear()

    def feed(self, *calls: tuple[str, list[object]]) -> None:
        """Tasks of these types with these arguments, in one write."""
        for type_, arguments in calls:
            group = Group(job_id=type_, epoch=1, type=type_, is_async=False, estimate=Estimate(), cost={})
            self.lane.feed(Attempt(group, 0, 1, json.dumps(arguments).encode(), 0), 0)
        self.crew.feed(self.lane, list(self.lane.fed)[-len(calls) :])

    async def close(self) -> None:
        self.crew.kill_all()
        await until(lambda: not self.crew.size or len(self.exits) == self.crew.size)
        self.crew.close()


@pytest.fixture
async def nursery(tmp_path: Path) -> AsyncIterator[Nursery]:
    made = Nursery(tmp_path)
    yield made
    await made.close()


async def test_records_in_front_of_garbage_count(nursery: Nursery, tmp_path: Path) -> None:
    """Also when both are read at once. A task that may run only once would be begun again otherwise."""
    spoilt = tmp_path / "spoilt"
    await nursery.start()
    nursery.feed(("noop", []), ("spoil", [str(spoilt)]))
    while not spoilt.exists():  # without a turn of the loop, so that both lie in the pipe
        pass
    await until(lambda: nursery.exits)
    assert [record[:2] for record in nursery.records] == [[OUT_DONE, 1]]
    assert nursery.exits == {nursery.lane.number: -9}
    assert nursery.crew.remove(nursery.lane.number) == 2, "which was running"


async def test_a_child_that_cannot_speak_any_more_ends_whatever_threads_its_task_has_left(nursery: Nursery) -> None:
    await nursery.start()
    nursery.feed(("cut.off", []))
    await until(lambda: nursery.exits)
    assert nursery.exits == {nursery.lane.number: 1}
    assert nursery.noise.endswith("OSError: [Errno 9] Bad file descriptor\n")
    assert nursery.records == []


@pytest.mark.parametrize("how", ["returns", "exits", "waits"])
async def test_the_copy_of_a_coroutine_that_forks_takes_nothing_from_its_neighbours(
    nursery: Nursery, tmp_path: Path, how: str
) -> None:
    notes = tmp_path / "notes"
    await nursery.start(is_loop=True)
    nursery.feed(("aio.note", [str(notes)]), ("aio.fork", [how]))
    await until(lambda: len(nursery.records) == 2)
    [pid] = [int(record[3]) for record in nursery.records if record[1] == 2]
    for seq in range(3, 23):  # the copy would take some of them from the pipe
        nursery.feed(("aio.note", [str(notes)]))
        await until(lambda seq=seq: nursery.records[-1][:2] == [OUT_DONE, seq])
    await until(lambda: not alive(pid), what="the end of the copy")
    assert sorted(record[1] for record in nursery.records) == list(range(1, 23))
    assert {record[0] for record in nursery.records} == {OUT_DONE}
    assert notes.read_text() == "ran " * 21


@pytest.mark.parametrize(
    ("how", "line"),
    [("sys.exit", "SystemExit: 3"), ("stop", "RuntimeError: Event loop stopped before Future completed.")],
)
async def test_a_coroutine_that_ends_the_loop_ends_its_process_and_no_neighbour_speaks(
    nursery: Nursery, how: str, line: str
) -> None:
    """So that all of them are suspects, and none is charged with a failure of its own."""
    await nursery.start(is_loop=True)
    nursery.feed(("aio.wait", []), ("aio.wait", []), ("aio.end.loop", [how]))
    await until(lambda: nursery.exits)
    assert nursery.exits == {nursery.lane.number: 1}
    assert nursery.records == []
    assert nursery.noise.endswith(f"{line}\n")
