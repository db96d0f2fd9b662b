"""The sweeper among real programs: it asks the orchestrator, deletes what a failed attempt left, and nothing when nobody answers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from sweep_app import save
from test_storage_program import Program, wait_until

import antfarm
from antfarm.local import LocalFarm
from antfarm.storage import Storage
from antfarm.v1 import system_pb2, system_pb2_grpc

pytestmark = pytest.mark.slow
WAITING = "waits/0/1-1/out"
FORGOTTEN = "forgotten/0/1-1/out"
APP = str(Path(__file__).parent / "sweep_app.py")


def outputs(blobs: Path) -> list[str]:
    return sorted(str(path.relative_to(blobs)).rstrip("@") for path in blobs.rglob("*@"))


def age_all(blobs: Path, age_s: float) -> None:
    for path in blobs.rglob("*@"):
        written = path.stat().st_mtime - age_s
        os.utime(path, (written, written))


def warnings_of(address: str) -> list[str]:
    with grpc.insecure_channel(address) as channel:
        stub = system_pb2_grpc.SystemServiceStub(channel)
        return list(stub.GetServerInfo(system_pb2.GetServerInfoRequest(), timeout=10).warnings)


def stop(program: Program) -> int:
    program.process.terminate()
    code = program.process.wait(20)
    assert program.process.stdout is not None
    program.process.stdout.close()
    return code


@contextmanager
def started(state: Path, *flags: str) -> Iterator[Program]:
    """A Storage that is stopped in good order at the end, and is gone also when the test fails."""
    program = Program(state, *flags)
    try:
        yield program
        assert stop(program) == 0
    finally:
        program.process.kill()
        program.process.wait()


def said(program: Program, words: str) -> Callable[[], bool]:
    return lambda: words in program.log.read_text()


def test_what_a_failed_attempt_left_is_swept_and_what_is_recorded_stays(tmp_path: Path) -> None:
    with LocalFarm(tmp_path / "farm") as farm:
        farm.start_storage()
        farm.start_orchestrator()
        farm.start_worker(slots=1, app=[APP], options=["--no-installed-apps"])
        with antfarm.connect(farm.address) as client:
            job = client.map(save, [1, 2])
            assert [found["n"] for found in job.results()] == [1, 2]
            client.map("nobody.runs.this", [1], job_id="waits")
        with Storage(farm.storage_address) as storage:
            storage.put(f"tasks/{WAITING}", b"of a task that has not ended")
            storage.put(f"tasks/{FORGOTTEN}", b"of a task that nobody knows")
        state = farm.state_dir / "storage"
        blobs = state / "blobs"
        before = outputs(blobs)
        kept = [key for key in before if "-1/" not in key or WAITING in key]
        assert len(before) == 8
        assert len(kept) == 5
        farm.kill("storage")
        age_all(blobs / "tasks/waits", 300 * 86400)
        age_all(blobs / "tasks/forgotten", 7 * 86400)
        age_all(blobs, 25 * 3600)
        flags = ("--sweep-for", farm.address)

        with started(state, *flags, "--sweep-dry-run") as dry:
            wait_until(said(dry, "sweep: 8 outputs, 3 orphans (dry run"))
        assert outputs(blobs) == before

        farm.kill("orchestrator")
        with started(state, *flags) as alone:
            wait_until(lambda: "sweep_waits" in warnings_of(alone.address))
        assert outputs(blobs) == before

        farm.restart("orchestrator")
        with started(state, *flags) as sweeping:
            wait_until(said(sweeping, "sweep: 8 outputs, 3 orphans deleted"))
            assert warnings_of(sweeping.address) == []
        assert outputs(blobs) == kept


def test_what_relayed_tasks_have_saved_stays_when_the_record_above_names_it(tmp_path: Path) -> None:
    """Below the top one job has many of its tasks, under other tokens: the keys of their outputs still lead to the task above, and it is asked for."""
    with LocalFarm(tmp_path / "farm") as farm:
        farm.start_storage()
        top = farm.start_orchestrator("top")
        low = farm.start_orchestrator("low", upstream=top, as_=["sweep.save"])
        farm.start_worker(connect=low, slots=1, app=[APP], options=["--no-installed-apps"])
        with antfarm.connect(top) as client:
            assert [found["n"] for found in client.map(save, range(5), job_id="job").results()] == list(range(5))
        state = farm.state_dir / "storage"
        before = outputs(state / "blobs")
        assert all(key.startswith("tasks/up/job/") and "/relay-" in key for key in before)
        assert len(before) == 15  # each saved twice, and its large result
        farm.kill("storage")
        age_all(state / "blobs", 25 * 3600)
        with started(state, "--sweep-for", low) as blind:
            wait_until(said(blind, "sweep: 5 outputs of tasks from an orchestrator above are kept"))
            assert warnings_of(blind.address) == ["sweep_waits"]
        assert outputs(state / "blobs") == before
        (state / "record.json").unlink()
        with started(state, "--sweep-for", f"{top},{low}") as wet:
            wait_until(said(wet, "sweep: 15 outputs, 5 orphans deleted"))
            assert outputs(state / "blobs") == [key for key in before if not key.endswith("-1/out")]


def test_flags_that_cannot_be_are_told_in_one_line(tmp_path: Path) -> None:
    for flags, words in (
        (["--sweep-for", "nowhere"], "nowhere"),
        (["--sweep-ended", "soon"], "--sweep-ended 'soon' is not a length of time"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "services.storage", "--backend", f"file:{tmp_path / 's'}", *flags],
            capture_output=True,
            text=True,
        )
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert words in done.stderr
