"""The orchestrator program and its surroundings: flags, ports, state directories, damaged journals, full disks. One clear line each."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from farm_app import work
from farm_bench import APP, Notes, connect, kill_and_restart, local_farm, until

from antfarm import wire
from antfarm.client.farm import AsyncFarm
from antfarm.local import LocalFarm
from antfarm.model import JobState
from antfarm.v1 import common_pb2, job_pb2, system_pb2

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[LocalFarm]:
    with local_farm(tmp_path) as farm:
        yield farm


def refused(*flags: str, code: int = 2) -> str:
    """Start the program, which must end with that code and one line; the line."""
    done = subprocess.run(
        [sys.executable, "-m", "services.orchestrator", *flags],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=30,
        check=False,
    )
    assert done.returncode == code, done
    assert "ready on" not in done.stdout
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    return line.removeprefix("python -m ").removeprefix("services.orchestrator: ")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--port", "70000"], "--port 70000 is not a port; give 0 to 65535"),
        (["--keep-ended", "soon"], "--keep-ended 'soon' is not a length of time: write e.g. '90s', '10m' or '1h30m'"),
        (["--keep-ended", "0"], "--keep-ended 0: give a time above 0, such as 7d"),
        (["--ballast-mib", "-1"], "--ballast-mib -1: give 0 or more"),
        (["--queued-mib", "3"], "--queued-mib 3: give at least 4, so that every batch fits"),
        (["--heartbeat-s", "0"], "--heartbeat-s 0.0 is outside 0.02 to 3600"),
        (["--upstream", "127.0.0.1:1"], "--upstream HOST:PORT and --as TYPE go together"),
        (["--as", "t"], "--upstream HOST:PORT and --as TYPE go together"),
        (["--upstream", "nowhere", "--as", "t"], "'nowhere'"),
        (["--storage", "host:port"], "'host:port'"),
        (["--upstream", "127.0.0.1:1", "--as", "t", "--upstream-slots", "0"], "--upstream-slots 0"),
        (["--host", "0.0.0.0"], "0.0.0.0"),
        (["--host", "no.such.host.invalid", "--port", "0"], "no.such.host.invalid"),
        (["--state", "postgresql://x"], "--state postgresql://...: this version keeps its journal in a directory"),
        (["--tls-cert", "/none"], "--tls"),
    ],
)
def test_a_wrong_flag_is_told_in_one_line(flags: list[str], line: str, tmp_path: Path) -> None:
    state = [] if "--state" in flags else ["--state", str(tmp_path / "state")]
    assert line in refused(*flags, *state)


def test_a_state_directory_that_cannot_be_used_is_told_in_one_line(tmp_path: Path, farm: LocalFarm) -> None:
    file = tmp_path / "file"
    file.write_text("not a directory")
    for place in (file, file / "below", Path("/proc/none")):
        assert f"--state {place}: " in refused("--port", "0", "--state", str(place))
    farm.start_orchestrator()
    used = farm.state_dir / "orchestrator"
    assert f"--state {used} is used by another orchestrator" in refused("--port", "0", "--state", str(used))
    other = tmp_path / "other"
    other.mkdir()
    (other / "journal.sqlite").write_text("this is no database, however long it may be " * 100)
    assert str(other / "journal.sqlite") in refused("--port", "0", "--state", str(other))


def test_a_port_that_is_in_use_is_told_in_one_line(tmp_path: Path, farm: LocalFarm) -> None:
    address = farm.start_orchestrator()
    state = str(tmp_path / "state")
    assert f"cannot listen on {address}" in refused("--port", address.rpartition(":")[2], "--state", state)


async def submit(client: AsyncFarm, job_id: str, payloads: list[bytes], timeout_s: float = 10.0) -> str:
    """CreateJob once; what came of it: "", or the reason of the refusal."""
    spec = job_pb2.JobSpec(template=common_pb2.TaskTemplate(type="farm_app.work"))
    request = job_pb2.CreateJobRequest(job_id=job_id, spec=spec, payloads=payloads, close=True)
    try:
        await client.connection.jobs.CreateJob(request, timeout=timeout_s)
    except grpc.aio.AioRpcError as error:
        return wire.error_from_rpc(error).reason
    return ""


@pytest.mark.parametrize("damage", ["body", "checksum", "page"])
async def test_a_damaged_journal_is_named_and_not_served(farm: LocalFarm, damage: str) -> None:
    await asyncio.to_thread(farm.start_orchestrator)
    async with await connect(farm.address) as client:
        for number in range(30):
            assert await submit(client, f"j{number}", [b"%06d" % i for i in range(100)]) == ""
    assert await asyncio.to_thread(farm.terminate, "orchestrator") == 0
    journal = farm.state_dir / "orchestrator" / "journal.sqlite"
    place = "is damaged"
    if damage == "page":
        with journal.open("r+b") as file:
            file.seek(2 * 4096 + 2000)
            file.write(os.urandom(4096))
    else:
        with closing(sqlite3.connect(journal, isolation_level=None)) as db:
            if damage == "body":
                (body,) = db.execute("SELECT body FROM record WHERE seq = 20").fetchone()
                flipped = bytes([*body[:-3], body[-3] ^ 1, *body[-2:]])
                db.execute("UPDATE record SET body = ? WHERE seq = 20", (flipped,))
            else:
                db.execute("UPDATE record SET crc = crc + 1 WHERE seq = 20")
        place = "record 20 is damaged"
    before = journal.read_bytes()
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "services.orchestrator", "--port", "0", "--state", str(journal.parent)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=30,
        check=False,
    )
    assert done.returncode in (1, 2), done
    assert "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert str(journal) in line
    assert place in line or damage == "page"
    assert "backup" in line
    assert journal.read_bytes() == before, "it was left as it was found"


async def test_a_signal_ends_it_with_code_0_and_a_second_one_at_once(farm: LocalFarm) -> None:
    await asyncio.to_thread(farm.start_orchestrator)
    async with await connect(farm.address) as client:
        assert await submit(client, "j", [b"[1]"]) == ""
        watching = asyncio.create_task(client.connection.jobs.WatchJob(job_pb2.WatchJobRequest(job_id="j")).read())
        await watching
        process = farm.program("orchestrator").process
        assert process is not None
        process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(process.wait, 10) == 0
        await asyncio.to_thread(farm.restart, "orchestrator")
        answer = await client.connection.call(client.connection.jobs.GetJob, job_pb2.GetJobRequest(job_id="j"))
        assert answer.job.task_count == 1


# ---- a full disk -----------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(place: Path, size_mib: int) -> Iterator[None]:
    """A file system of that size at the place. Skips the test where this process may not mount one."""
    place.mkdir(parents=True)
    options = f"size={size_mib}m,mode=0700"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def cramped(tmp_path: Path) -> Iterator[LocalFarm]:
    """A farm whose orchestrator keeps its journal on a disk of 8 MiB."""
    with small_disk(tmp_path / "farm" / "orchestrator", 8), local_farm(tmp_path) as farm:
        yield farm


async def fill_by_jobs(client: AsyncFarm, payload: bytes) -> tuple[list[str], str]:
    """Submit until a submission is refused. (Ids of the acknowledged jobs, reason of the refusal)."""
    taken: list[str] = []
    while True:
        job_id = f"j{len(taken)}"
        reason = await submit(client, job_id, [payload] * 4, timeout_s=3.0)
        if reason:
            return taken, reason
        taken.append(job_id)
        assert len(taken) < 1_000, "the disk never filled"


async def test_on_a_full_disk_nothing_acknowledged_is_lost_and_all_goes_on_when_there_is_room(
    cramped: LocalFarm, tmp_path: Path
) -> None:
    notes = Notes(tmp_path / "notes")
    disk = cramped.state_dir / "orchestrator"
    payload = b'[3,"%s",0.0]' % notes.path.encode()
    await asyncio.to_thread(cramped.start_orchestrator, options=["--heartbeat-s", "1"])
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(4 << 20))
    async with await connect(cramped.address) as client:
        big = payload[:-1] + b" " * 60_000 + b"]"
        taken, reason = await fill_by_jobs(client, big)
        assert reason in ("DISK_FULL", "DEADLINE_EXCEEDED")
        assert taken
        waiting = asyncio.create_task(client.map(work, [3], path=notes.path, seconds=0.0, job_id="patient"))

        async def told() -> bool:
            info = await client.connection.system.GetServerInfo(system_pb2.GetServerInfoRequest())
            return "disk_low" in info.warnings

        await until(told, "operators are told")
        # A kill while it is full: what was acknowledged is there.
        await kill_and_restart(cramped, "orchestrator")
        for job_id in taken:
            assert await task_count(client, job_id) == 4

        # The small job may have found room already: a journal that is opened again begins its log anew. It is taken once in any case.
        ballast.unlink()
        await asyncio.wait_for(waiting, 20)
        options = ["--no-installed-apps"]
        await asyncio.to_thread(cramped.start_worker, "w1", slots=2, app=[APP], options=options)
        for job_id in [*taken, "patient"]:
            assert (await (await client.job(job_id)).wait(20)).state is JobState.SUCCEEDED
        assert notes.count() == 4 * len(taken) + 1 + 4 * (await unacknowledged(client, taken))
        assert await submit(client, "more", [payload]) == ""
        assert not await told()


async def test_outcomes_wait_for_room_and_are_recorded_once(cramped: LocalFarm, tmp_path: Path) -> None:
    """Reports that find the disk full are not acknowledged, and not lost."""
    notes = Notes(tmp_path / "notes")
    disk = cramped.state_dir / "orchestrator"
    await asyncio.to_thread(cramped.start_orchestrator, options=["--heartbeat-s", "1"])
    await asyncio.to_thread(cramped.start_worker, "w1", slots=2, app=[APP], options=["--no-installed-apps"])
    async with await connect(cramped.address) as client:
        job = await client.map(work, range(60), path=notes.path, seconds=0.03)
        await until(lambda: notes.count() >= 10)
        ballast = disk / "ballast"
        with ballast.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(65_536)):
                    pass
            except OSError:
                pass  # full
        await until(lambda: notes.count() == 60, "the worker runs what it has")
        ballast.unlink()
        assert (await job.wait(20)).state is JobState.SUCCEEDED
        outcomes = [m async for batch in client.connection.results(job.job_id) for m in batch]
        assert sorted(m.index for m in outcomes) == list(range(60))
        assert notes.once()


async def task_count(client: AsyncFarm, job_id: str) -> int:
    answer = await client.connection.call(client.connection.jobs.GetJob, job_pb2.GetJobRequest(job_id=job_id))
    return int(answer.job.task_count)


async def unacknowledged(client: AsyncFarm, taken: list[str]) -> int:
    """Jobs that were taken although their submitter was never told: the answer came too late."""
    answer: Any = await client.connection.jobs.ListJobs(job_pb2.ListJobsRequest(page_size=1_000))
    return len({job.job_id for job in answer.jobs} - {*taken, "patient"})
