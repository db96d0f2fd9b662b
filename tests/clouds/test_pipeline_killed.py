"""Whole runs of which a part is killed: what is done stays done, and the report is that of an undisturbed run."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from clouds_run import (
    FIRST,
    arguments_for,
    assert_nothing_false,
    blobs,
    popen,
    ran,
    run,
    serving,
    wait_until,
)
from conftest import RunningFarm

from antfarm import aio
from antfarm.local import LocalFarm
from antfarm.pipeline import Outcome
from antfarm.storage import Storage
from clouds import farm

pytestmark = pytest.mark.slow

DAYS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class DoomedFarm:
    """A supervised farm whose programs are killed."""

    address: str
    local: LocalFarm
    storage: Storage
    said: list[str]

    def analysed(self) -> set[str]:
        """The days whose results are in Storage."""
        return {blob.key.split("/")[2] for blob in self.storage.list("clouds/") if blob.key.endswith("/result.json")}

    def kill(self, name: str) -> None:
        """SIGKILL. The supervisor starts it again."""
        os.kill(self.local.program(name).pid, signal.SIGKILL)


@pytest.fixture
def doomed(tmp_path: Path) -> Iterator[DoomedFarm]:
    said: list[str] = []
    with LocalFarm(tmp_path / "doomed") as local:
        address = farm.start(local, workers=2)
        with farm.supervised(local, said.append), Storage(local.storage_address) as storage:
            yield DoomedFarm(address=address, local=local, storage=storage, said=said)


async def measurements(address: str) -> list[Outcome]:
    """How each measurement at the orchestrator of the analysis has ended."""
    async with await aio.connect(address) as connected:
        jobs = [status async for status in connected.jobs() if status.spec.template.type == "clouds.measure"]
        return [outcome for status in jobs async for outcome in (await connected.job(status.job_id)).outcomes()]


async def unfinished(address: str) -> list[str]:
    """Jobs of an orchestrator that have not ended."""
    async with await aio.connect(address) as connected:
        return [status.spec.name async for status in connected.jobs() if not status.state.terminal]


def test_a_worker_and_an_orchestrator_are_killed_and_nothing_finished_is_repeated(
    doomed: DoomedFarm, running_farm: RunningFarm, tmp_path: Path
) -> None:
    with serving("--seed", "21") as calm:
        undisturbed = run(
            arguments_for(calm, tmp_path / "calm", FIRST, DAYS, "--connect", running_farm.address, seed=21)
        )
    with serving("--seed", "21", "--latency", "0.5") as server:
        given = arguments_for(server, tmp_path / "out", FIRST, DAYS, "--connect", doomed.address, seed=21)
        with popen([*given, "--group", "2"]) as client:
            wait_until(lambda: len(doomed.analysed()) >= 4)
            before_worker = doomed.analysed()
            doomed.kill("analysis-1")
            wait_until(lambda: len(doomed.analysed()) >= 10)
            assert len(doomed.analysed()) < DAYS, "all was done before the kill; nothing was tested"
            doomed.kill("analysis")
            out, err = client.communicate(timeout=100)
        done = ran(client.returncode, given, out, err)
        stats = server.stats()

    assert (done.code, done.statuses) == (0, {"used": DAYS}), done.err
    again = {f"{name} ended (SIGKILL) and was started again" for name in ("analysis-1", "analysis")}
    wait_until(lambda: again <= set(doomed.said))
    assert {line.split(" ")[0] for line in doomed.said} == {"analysis-1", "analysis"}
    assert (tmp_path / "out" / "series.csv").read_bytes() == (tmp_path / "calm" / "series.csv").read_bytes()
    assert done.out[:2] == undisturbed.out[:2]
    assert len(set(done.series)) == len(done.series) == DAYS
    assert (stats["requests"], stats["needless"]) == (DAYS, 0)

    ended = asyncio.run(measurements(doomed.local.program("analysis").address))
    assert sorted(outcome.value["day"] for outcome in ended) == [day.isoformat() for day in done.series]
    # What the killed worker had stored but not reported yet is looked up again, and found; nothing else of what was done.
    given_again = {outcome.value["day"] for outcome in ended if outcome.attempt > 1}
    assert len(given_again & before_worker) <= 1
    assert sum(outcome.value["cached"] for outcome in ended) <= 1
    assert len(doomed.analysed()) == DAYS
    assert_nothing_false(blobs(doomed.storage))


def test_a_run_whose_client_is_killed_is_gone_on_with(doomed: DoomedFarm, tmp_path: Path) -> None:
    with serving("--seed", "22", "--latency", "0.3") as server:
        given = [*arguments_for(server, tmp_path, FIRST, DAYS, "--connect", doomed.address, seed=22), "--group", "2"]
        with popen(given) as client:
            wait_until(lambda: len(doomed.analysed()) >= 4)
            client.kill()
            client.communicate()
        done = run(given)
        stats = server.stats()
    assert (done.code, done.statuses) == (0, {"used": DAYS}), done.err
    known, begun = done.err[0].partition(" analysed before")[0], done.err[0]
    assert 4 <= int(known.rpartition(" ")[2]) < DAYS, begun
    assert stats["needless"] <= 3, "at most what was under way is fetched twice"
    assert stats["requests"] <= DAYS + 3
    assert asyncio.run(unfinished(doomed.address)) == []
    assert doomed.said == []
    assert_nothing_false(blobs(doomed.storage))


def test_a_farm_that_is_killed_whole_comes_back_and_finishes(doomed: DoomedFarm, tmp_path: Path) -> None:
    with serving("--seed", "23", "--latency", "0.3") as server:
        given = [*arguments_for(server, tmp_path, FIRST, DAYS, "--connect", doomed.address, seed=23), "--group", "2"]
        with popen(given) as client:
            wait_until(lambda: len(doomed.analysed()) >= 4)
            for program in doomed.local.programs.values():
                os.kill(program.pid, signal.SIGKILL)
            out, err = client.communicate(timeout=100)
        done = ran(client.returncode, given, out, err)
        stats = server.stats()
    assert (done.code, done.statuses) == (0, {"used": DAYS}), done.err
    assert stats["needless"] <= 3, "at most what was under way is fetched twice"
    assert {line.split(" ")[0] for line in doomed.said if "started again" in line} == set(doomed.local.programs)
    assert_nothing_false(blobs(doomed.storage))
