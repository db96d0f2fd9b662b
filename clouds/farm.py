"""The farm that a run brings along: on this machine, a process each, and whatever dies is started again.

One orchestrator on top with one below it for each stage, Storage, and workers for each stage. The top and the ones below it speak over the same two
queues as any worker does, so that the same run works on farms of many machines by `--connect`.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import antfarm
from antfarm.claim import alive
from antfarm.errors import AntFarmError, InvalidArgument
from antfarm.local import LocalFarm
from antfarm.program import STOP_WITH_STDIN
from clouds.errors import CloudsError

STAGES = {"download": "clouds.download", "analysis": "clouds.analyse"}
WATCH_S = 0.25
RESTART_PAUSE_MAX_S = 10.0
CLAIM_S = 60.0
"""How long the programs of a run that was killed may take to end."""
_ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(512 << 20), "MALLOC_MMAP_THRESHOLD_": str(512 << 20)}
"""Large arrays come and go: keeping their memory saves a quarter of the time of an analysis (page faults)."""

Say = Callable[[str], None]
T = TypeVar("T")


# ---- the state directory ----------------------------------------------------------------------------------------------


def default_state() -> Path:
    """Where the farm of a run keeps its state, and so the pictures of earlier runs."""
    state_home = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state_home) if state_home.startswith("/") else Path.home() / ".local" / "state"
    return base / "antfarm" / "clouds"


@contextmanager
def claimed(state: Path, say: Say) -> Iterator[LocalFarm]:
    """A farm on the state directory, which no other run uses meanwhile; its programs end with the block.

    Raises CloudsError when another run has it. The programs hold the claim too: after a run that was killed, wait until they have ended.
    """
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise CloudsError(f"--state {state} is not a folder; give one") from None
    except OSError as error:
        raise CloudsError(f"--state {error.filename}: {error.strerror}; give another") from None
    try:
        _claim(lock, state, say)
        with LocalFarm(state) as farm:
            farm.inherit = (lock,)
            yield farm
    finally:
        os.close(lock)


def _claim(lock: int, state: Path, say: Say) -> None:
    """Lock the directory and write this process's number into the lock."""
    deadline, told = time.monotonic() + CLAIM_S, False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            owner = os.pread(lock, 20, 0).decode("ascii", "replace").strip()
        if owner.isdigit() and alive(int(owner)):
            raise CloudsError(f"process {owner} runs a farm on {state}; wait for it, or give another --state")
        if time.monotonic() > deadline:
            raise CloudsError(f"programs of an earlier run still use {state}; end them, or give another --state")
        if not told:
            told = True
            say("waiting for the programs of an earlier run to end ...")
        time.sleep(0.1)
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)


# ---- the programs -----------------------------------------------------------------------------------------------------


def start(farm: LocalFarm, *, workers: int, download_workers: int = 1, options: Sequence[str] = ()) -> str:
    """Start all programs, Storage only where it does not run yet; returns the address of the top orchestrator.

    Args:
        workers: analysis workers, each with one task at a time.
        download_workers: each with several tasks at a time, for downloads mostly wait.
        options: further flags of the orchestrators.
    """
    for name, value in _ALLOCATOR.items():
        os.environ.setdefault(name, value)  # children take it over
    with farm.together():
        if not farm.storage_address:
            farm.start_storage()
        top = farm.start_orchestrator("top", options=options)
        download, analysis = (
            farm.start_orchestrator(stage, upstream=top, as_=types, options=options) for stage, types in STAGES.items()
        )
        for number in range(download_workers):
            farm.start_worker(f"download-{number + 1}", connect=download, slots=8)
        for number in range(workers):
            farm.start_worker(f"analysis-{number + 1}", connect=analysis, slots=1)
    return top


def whole(start: Callable[[], T]) -> T:
    """Run a start to its end in a thread: an interrupt, which only the main thread sees, must not lose a process that was just made."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(start).result()


@contextmanager
def supervised(farm: LocalFarm, say: Say) -> Iterator[None]:
    """Start programs of the farm again when they die, as systemd would; `say` is told in one line."""
    ended = threading.Event()
    supervisor = _Supervisor(farm, say)
    thread = threading.Thread(target=supervisor.watch, args=(ended,), name="supervisor", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@dataclass(slots=True)
class _Down:
    """A program that has died: how, and when it is tried next."""

    how: str
    next_s: float = 0.0
    pause_s: float = WATCH_S


class _Supervisor:
    """Looks after the programs of a farm, in a thread of its own."""

    def __init__(self, farm: LocalFarm, say: Say) -> None:
        self._farm, self._say = farm, say
        self._down: dict[str, _Down] = {}

    def watch(self, ended: threading.Event) -> None:
        """Look again and again until `ended`."""
        while not ended.wait(WATCH_S):
            for program in self._farm.programs.values():
                process = program.process
                if process is not None and process.poll() is not None:
                    code = process.returncode
                    self._down[program.name] = _Down(signal.Signals(-code).name if code < 0 else f"exit code {code}")
                    self._farm.terminate(program.name)  # which only has to bury it
            for name in self._farm.programs:  # in the order of their first start: each needs the ones before it
                if ended.is_set() or (name in self._down and not self._restarted(name)):
                    break

    def _restarted(self, name: str) -> bool:
        """Whether a program that was down runs again; when it cannot be started, it is tried later, after pauses that double."""
        down = self._down[name]
        if time.monotonic() < down.next_s:
            return False
        try:
            self._farm.restart(name)
        except AntFarmError as error:
            if not down.next_s:
                self._say(f"{name} ended ({down.how}) and cannot be started again yet: {' '.join(str(error).split())}")
            down.next_s = time.monotonic() + down.pause_s
            down.pause_s = min(2 * down.pause_s, RESTART_PAUSE_MAX_S)
            return False
        self._say(f"{name} ended ({down.how}) and was started again")
        del self._down[name]
        return True


# ---- the stand-in -----------------------------------------------------------------------------------------------------


@contextmanager
def standin(*arguments: str) -> Iterator[Callable[[], str]]:
    """Run the stand-in server as a process of its own; yields what waits until it serves and returns its address, http://HOST:PORT.

    It ends with the block, or with this process however that ends.
    """
    root = str(Path(antfarm.__file__).resolve().parents[1])
    paths = os.pathsep.join(path for path in (root, os.environ.get("PYTHONPATH", "")) if path)
    start = partial(
        subprocess.Popen,
        [sys.executable, "-P", "-m", "clouds.standin", "--port", "0", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, STOP_WITH_STDIN: "1"},
        start_new_session=True,
    )
    with tempfile.TemporaryFile() as said, whole(lambda: start(stderr=said)) as process:
        assert process.stdout is not None
        output = process.stdout

        def address() -> str:
            line = output.readline()
            if "ready on" in line:
                return f"http://{line.split()[-1]}"
            said.seek(0)
            reason = said.read().decode("utf-8", "replace").strip().splitlines() or ["it ended without a word"]
            raise InvalidArgument(f"the stand-in server did not start: {reason[-1]}")

        try:
            yield address
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
