"""The farm that a run brings along: on this machine, a process each, and whatever dies is started again.

One orchestrator on top with one below it for each stage, Storage, and workers for each stage. The top and the ones below it speak over the same two
queues as any worker does, so that the same run works on farms of many machines by `--connect`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from antfarm.errors import Unavailable
from antfarm.local import LocalFarm
from clouds.errors import CloudsError

STAGES = {"download": "clouds.download", "analysis": "clouds.analyse"}
WATCH_S = 0.25
STANDIN_START_S = 30.0
_ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(512 << 20), "MALLOC_MMAP_THRESHOLD_": str(512 << 20)}
"""Large arrays come and go: keeping their memory saves a quarter of the time of an analysis (page faults)."""


def start(farm: LocalFarm, *, workers: int) -> str:
    """Start all programs; returns the address of the top orchestrator.

    Args:
        workers: analysis workers, each with one task at a time; one more worker does the downloads, which mostly wait.
    """
    for name, value in _ALLOCATOR.items():
        os.environ.setdefault(name, value)  # children take it over
    farm.start_storage()
    top = farm.start_orchestrator("top")
    for stage, task_type in STAGES.items():
        farm.start_orchestrator(stage, upstream=top, as_=task_type)
    farm.start_worker("download-1", connect=farm.program("download").address, slots=8)
    for number in range(1, workers + 1):
        farm.start_worker(f"analysis-{number}", connect=farm.program("analysis").address, slots=1)
    return top


@contextmanager
def supervised(farm: LocalFarm, say: Callable[[str], None]) -> Iterator[None]:
    """Start programs of the farm again when they die, as systemd would; `say` is told in one line."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(WATCH_S):
            for program in list(farm.programs.values()):
                process = program.process
                if process is None or process.poll() is None:
                    continue
                how = (
                    signal.Signals(-process.returncode).name if process.returncode < 0 else f"exit {process.returncode}"
                )
                try:
                    farm.restart(program.name)
                    say(f"{program.name} ended ({how}) and was started again")
                except Unavailable as error:
                    say(f"{program.name} ended ({how}) and cannot be started again yet: {error}")

    thread = threading.Thread(target=watch, name="supervisor", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def standin(arguments: list[str]) -> Iterator[str]:
    """Run the stand-in server as a process of its own; yields the address of its snapshot service."""
    command = [sys.executable, "-P", "-m", "clouds.standin", "--port", "0", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if "ready on" not in line:
            assert process.stderr is not None
            reason = process.stderr.read().strip().splitlines() or ["it ended without a word"]
            raise CloudsError(f"the stand-in server did not start: {reason[-1]}")
        yield f"http://{line.split()[-1]}/api/v1/snapshot"
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def default_state() -> Path:
    """Where the farm of a run keeps its state, and so the pictures of earlier runs."""
    state_home = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state_home) if state_home.startswith("/") else Path.home() / ".local" / "state"
    return base / "antfarm" / "clouds"
