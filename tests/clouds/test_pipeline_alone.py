"""A run that brings its own farm: it leaves no process however it ends, and goes on where it was."""

from __future__ import annotations

import signal
import subprocess
import time
import uuid
from pathlib import Path

import pytest
from clouds_run import FIRST, SIZE, days_from, popen, ran, wait_until

pytestmark = pytest.mark.slow

DAYS = 40
INTERRUPTED = "clouds: interrupted; what is in Storage stays, run the same again to go on"


class Alone:
    """Runs on one state directory, their processes marked."""

    def __init__(self, folder: Path) -> None:
        self.mark = uuid.uuid4().hex
        self.state = folder / "state"
        last = days_from(FIRST, DAYS)[-1]
        self.arguments = [
            *("--source", "standin", "--calm", "--start", FIRST.isoformat(), "--end", last.isoformat()),
            *("--bbox", "40,5,44,10", "--size", SIZE, "--out", str(folder / "out"), "--state", str(self.state)),
        ]

    def start(self) -> subprocess.Popen[str]:
        return popen(self.arguments, CLOUDS_TEST_MARK=self.mark)

    def results(self) -> int:
        """How many days lie in Storage analysed, as its files show."""
        return sum(1 for _ in (self.state / "storage").rglob("result.json*"))

    def processes(self) -> dict[int, str]:
        """What runs with our mark in its environment."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (path / "environ").read_bytes():
                    found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found


def test_a_run_is_interrupted_killed_and_gone_on_with(tmp_path: Path) -> None:
    alone = Alone(tmp_path)

    with alone.start() as starting:
        assert starting.stderr is not None
        assert starting.stderr.readline() == f"{DAYS} days: {DAYS} to download\n"
        assert starting.stderr.readline().startswith("starting a farm: storage, 3 orchestrators, 3 workers")
        with alone.start() as other:
            refused = other.communicate(timeout=30)
        assert other.returncode == 2
        busy = f"process {starting.pid} runs a farm on {alone.state}; wait for it, or give another --state"
        assert refused == ("", f"clouds: {busy}\n")
        starting.terminate()
        out, err = starting.communicate(timeout=30)
    assert out == ""
    assert err.splitlines()[-1] == INTERRUPTED  # after the bar, where the farm was quicker than the other's refusal
    assert "Traceback" not in err
    assert starting.returncode == 4
    assert alone.processes() == {}

    with alone.start() as interrupted:
        wait_until(lambda: alone.results() >= 3)
        interrupted.send_signal(signal.SIGINT)
        out, err = interrupted.communicate(timeout=30)
    assert (interrupted.returncode, out) == (4, "")
    assert err.splitlines()[-1] == INTERRUPTED
    assert "Traceback" not in err
    assert alone.processes() == {}
    assert alone.results() < DAYS

    with alone.start() as killed:
        wait_until(lambda: alone.results() >= 8)
        killed.kill()
        killed.communicate()
    before = alone.results()
    assert before < DAYS, "all was done before the kill; nothing was tested"

    with alone.start() as last:
        out, err = last.communicate(timeout=100)
    done = ran(last.returncode, alone.arguments, out, err)
    assert (done.code, done.statuses) == (0, {"used": DAYS}), done.err
    told = next(line for line in done.err if " analysed before" in line)
    assert int(told.split(": ")[1].split(" ")[0]) >= before
    assert alone.processes() == {}

    began = time.monotonic()
    with alone.start() as nothing_new:
        out, err = nothing_new.communicate(timeout=60)
    assert err == f"{DAYS} days: {DAYS} analysed before\n"
    assert nothing_new.returncode == 0
    assert time.monotonic() - began < 20, "a look and a report take seconds"
    assert alone.processes() == {}
