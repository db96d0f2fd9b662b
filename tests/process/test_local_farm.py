"""Programs of a local farm start, stop in order, come back under their address, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import antfarm
from antfarm.errors import InvalidArgument, NotFound, Unavailable
from antfarm.local import LocalFarm

pytestmark = pytest.mark.slow
ROOT = Path(antfarm.__file__).parents[1]


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_storage_keeps_its_address_over_a_kill_and_stops_clean(tmp_path: Path) -> None:
    with LocalFarm(tmp_path / "farm") as farm:
        address = farm.start_storage()
        pid = farm.program("storage").pid
        farm.kill("storage")
        assert not alive(pid)
        assert farm.restart("storage") == address
        second = farm.program("storage").pid
        assert alive(second)
    assert not alive(second)
    assert (tmp_path / "farm" / "logs" / "storage.log").read_text().count("storage ready on") == 2


def test_a_temporary_farm_removes_its_state() -> None:
    with LocalFarm() as farm:
        farm.start_storage()
        path = farm.state_dir
        assert path.is_dir()
    assert not path.exists()


def test_a_program_that_refuses_to_start_says_why_in_one_line(tmp_path: Path) -> None:
    with LocalFarm(tmp_path) as farm:
        address = farm.start_storage()
        with pytest.raises(InvalidArgument, match=r"second did not start: .*cannot listen on") as caught:
            farm.start_storage("second", port=int(address.rpartition(":")[2]))
        assert "\n" not in str(caught.value)
        assert farm.program("second").pid == 0


def test_the_address_of_storage_is_no_orchestrator_and_the_program_says_so(tmp_path: Path) -> None:
    with LocalFarm(tmp_path) as farm:
        address = farm.start_storage()
        with pytest.raises(InvalidArgument, match=rf"{address} is no orchestrator: check --connect$"):
            farm.start_worker(connect=address)
        farm.start_orchestrator("below", upstream=address, as_="t")  # it serves; who is above it comes later
        process = farm.program("below").process
        assert process is not None
        assert process.wait(20) == 2
        said = farm.program("below").log.read_text().splitlines()[-1]
        assert said.endswith(f"{address} is no orchestrator: check --upstream")


def test_programs_start_side_by_side_under_addresses_that_are_known_before_they_serve(tmp_path: Path) -> None:
    with LocalFarm(tmp_path) as farm:
        with farm.together():
            addresses = [farm.start_storage(), farm.start_orchestrator()]
            worker = farm.start_worker(slots=1)
            logs = [program.log for program in farm.programs.values()]
            assert not any("ready on" in log.read_text() for log in logs)  # nobody was waited for: they have just begun
            pids = [program.pid for program in farm.programs.values()]
        assert all(f"ready on {address}" in log.read_text() for address, log in zip(addresses, logs, strict=False))
        assert f"worker {worker} ready on {addresses[1]}" in logs[2].read_text()
        assert [program.pid for program in farm.programs.values()] == pids
        assert [program.reserved for program in farm.programs.values()] == [None] * 3
        assert farm.start_storage("late").rpartition(":")[0] == "127.0.0.1"  # alone again: it is waited for


def test_when_one_of_several_cannot_start_its_own_line_is_raised_and_none_is_left(tmp_path: Path) -> None:
    pids: list[int] = []

    def start(farm: LocalFarm) -> None:
        with farm.together():
            farm.start_storage()
            farm.start_orchestrator(options=["--heartbeat-s", "never"])
            farm.start_worker(slots=1)
            pids.extend(program.pid for program in farm.programs.values())

    with LocalFarm(tmp_path) as farm:
        with pytest.raises(InvalidArgument, match=r"^orchestrator did not start: .*--heartbeat-s") as caught:
            start(farm)
        assert "\n" not in str(caught.value)
        assert not alive(pids[1])
        assert not alive(pids[2])
    assert not any(alive(pid) for pid in pids)


def test_a_program_that_has_served_was_started_even_when_it_is_gone_by_now(tmp_path: Path) -> None:
    (tmp_path / "brief.py").write_text("print('brief ready on 127.0.0.1:1')\n")
    with LocalFarm(tmp_path / "farm") as farm:
        farm.environment = {"PYTHONPATH": str(tmp_path)}
        with farm.together():
            brief = farm._make("brief", "storage", "brief", ())
            farm._launch(brief)
            wait_until(lambda: not brief.running)
        assert brief.address == "127.0.0.1:1"
        with pytest.raises(Unavailable, match="brief died: brief ready on"):
            farm.check()


def test_an_error_within_the_block_is_not_kept_waiting(tmp_path: Path) -> None:
    def start(farm: LocalFarm) -> None:
        with farm.together():
            farm.start_storage()
            farm.program("other")

    with LocalFarm(tmp_path) as farm:
        with pytest.raises(NotFound, match="no program named other"):
            start(farm)
        assert "ready on" not in farm.program("storage").log.read_text()
        assert farm.start_orchestrator().rpartition(":")[0] == "127.0.0.1"


def test_a_host_of_another_machine_is_refused_in_one_line(tmp_path: Path) -> None:
    with (
        LocalFarm(tmp_path) as farm,
        pytest.raises(InvalidArgument, match=r"^storage did not start: cannot listen on 192\.0\.2\.1:0: .*") as caught,
    ):
        farm.start_storage(host="192.0.2.1")
    assert "\n" not in str(caught.value)


def test_what_is_no_port_is_refused_in_one_line(tmp_path: Path) -> None:
    with (
        LocalFarm(tmp_path) as farm,
        pytest.raises(InvalidArgument, match=r"^storage did not start: --port 70000: not a port; ") as caught,
    ):
        farm.start_storage(port=70_000)
    assert "\n" not in str(caught.value)


def test_a_dead_program_is_noticed(tmp_path: Path) -> None:
    with LocalFarm(tmp_path) as farm:
        farm.start_storage()
        farm.check()
        os.kill(farm.program("storage").pid, signal.SIGKILL)
        wait_until(lambda: not farm.program("storage").running)
        with pytest.raises(Unavailable, match="storage died"):
            farm.check()


def test_asking_for_what_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    with LocalFarm(tmp_path) as farm:
        with pytest.raises(NotFound, match="no orchestrator; start one first"):
            _ = farm.address
        with pytest.raises(NotFound, match="no program named worker-9"):
            farm.restart("worker-9")


def test_programs_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        import time
        from antfarm.local import LocalFarm
        farm = LocalFarm({str(tmp_path)!r})
        farm.start_storage()
        print(farm.program("storage").pid, flush=True)
        time.sleep(60)
        """
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.kill()
    wait_until(lambda: not alive(child))
