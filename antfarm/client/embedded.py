"""The farm of `connect()` without an address: durable, on this machine, one per user and state directory.

The first process that connects runs Storage and an orchestrator; others attach to it. Each brings a worker of its own that knows its script. Scripts of
one file name have tasks of the same names, so the worker carries a label for the path of its script, and tasks of the script ask for it. When the
process that runs them ends, another that is still attached takes over under the same addresses: whoever holds the lock runs them. The programs hold
the lock too, so that a successor waits until they are really gone.
"""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
import re
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from antfarm import apps, files
from antfarm.address import reserve
from antfarm.claim import alive, read_note, write_note
from antfarm.errors import AntFarmError, InvalidArgument, Unavailable
from antfarm.local import LocalFarm, Program

_WAIT_S = 60.0
"""How long to wait for another process that is starting or ending the farm."""
_POLL_S = 0.1
_RETRY_MIN_S, _RETRY_MAX_S = 1.0, 16.0
"""How long to wait after what could not be started, doubled each time."""
_DRAIN_S = 10.0
_HURRY_S = 0.5
_LOGS_KEPT = 10
_DEATHS_MAX = 5
_DEATHS_WITHIN_S = 60.0
_numbers = itertools.count(1)
"""One for each farm that this process opens: two at a time have a worker each."""

log = logging.getLogger("antfarm.embedded")


def default_directory() -> Path:
    """Where the embedded farm of this user keeps its state."""
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(base) / "antfarm" / "local"


def running_address(directory: Path | None = None) -> str:
    """Address of this user's embedded farm if a process runs it now, else ""."""
    known = read_note(directory or default_directory())
    return str(known.get("orchestrator", "")) if alive(known.get("pid")) else ""


def script_labels() -> dict[str, str]:
    """The label of a worker that knows this process's script: the script's path. None when it knows no script."""
    script = apps.main_script()
    if script is None or not apps.main_app():
        return {}
    return {"script": os.fsencode(script.resolve()).decode(errors="backslashreplace")}


class EmbeddedFarm:
    """This process's part in the embedded farm: a worker, and the other programs while it holds the lock."""

    def __init__(self, directory: Path, *, slots: int | None, allow_pickle: bool) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise InvalidArgument(
                f"{error.filename}: {error.strerror}; give connect() a state_dir that can be written, or an address"
            ) from None
        self._directory = directory
        self._slots = slots
        self._allow_pickle = allow_pickle
        self._programs = LocalFarm(directory)
        self._starting = ExitStack()
        """Ends when all that was launched serves."""
        self._owns = False
        self._ready = False
        """The worker has served: what has its name is of this farm."""
        self._number = next(_numbers)
        self._closing = threading.Event()
        self._guard = threading.Thread(target=self._watch, name="antfarm-guard", daemon=True)
        self.address = ""

    @classmethod
    def launch(
        cls, directory: Path | None = None, *, slots: int | None = None, allow_pickle: bool = True
    ) -> EmbeddedFarm:
        """Start the farm or attach to it, and start a worker for this process. Returns when their processes are there: `wait` for them, or `close`."""
        made = cls(directory or default_directory(), slots=slots, allow_pickle=allow_pickle)
        try:
            made._starting.enter_context(made._programs.together())
            made._join()
        except BaseException:
            made.close()
            raise
        return made

    def wait(self) -> None:
        """Block until all of it serves. When it does not, end it with `close`."""
        self._starting.close()
        if self._owns:
            self._tell()
        self._ready = True
        self._guard.start()

    def close(self, *, now: bool = False) -> None:
        """End this process's worker, and the rest when it runs here.

        Running tasks may finish within the drain time, or with `now` hardly; what does not finish is run again at the next connect.
        """
        self._closing.set()
        if self._guard.is_alive():
            self._guard.join()
        try:
            if self._owns:
                self._write({})
            self._programs.stop(grace_s=_HURRY_S if now else None)
        finally:
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1
            for name in self._programs.programs:
                if name.startswith("worker-") and self._ready:
                    shutil.rmtree(self._directory / name, ignore_errors=True)

    # ---- joining ----------------------------------------------------------------------------------------------------

    def _join(self) -> None:
        """Run the farm when nobody does, else attach to the one that runs."""
        deadline = time.monotonic() + _WAIT_S
        while True:
            if self._take_lock():
                self._start()
                return
            known = read_note(self._directory)
            if known.get("orchestrator") and alive(known.get("pid", 0)):
                self.address = known["orchestrator"]
                self._start_worker()
                return
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"another process holds {self._directory / 'lock'} but serves no farm; end it, or use another state_dir"
                )
            time.sleep(_POLL_S)

    def _take_lock(self) -> bool:
        self._owns = files.lock(self._lock, self._directory / "lock", f"the embedded farm in {self._directory}")
        return self._owns

    def _start(self) -> None:
        """Start Storage and the orchestrator, under their former addresses where these are free, and this process's worker if it has none."""
        known = read_note(self._directory)
        self._write({})
        self._sweep()
        with self._lending_lock():
            self._programs.start_storage(port=_free_port(known.get("storage", "")))
            self.address = self._programs.start_orchestrator(port=_free_port(known.get("orchestrator", "")))
        if not any(program.role == "worker" for program in self._programs.programs.values()):
            self._start_worker()

    @contextmanager
    def _lending_lock(self) -> Iterator[None]:
        """Programs that are started within hold the lock too. Not for workers: one that outlives its process must keep no other from running the farm."""
        self._programs.inherit = (self._lock,)
        try:
            yield
        finally:
            self._programs.inherit = ()

    def _take_over(self) -> None:
        try:
            with self._programs.together():
                self._start()
            self._tell()
        except BaseException:
            self._give_back()
            raise

    def _give_back(self) -> None:
        """End what a takeover has started before it failed, so that it can be tried again, here or by another process."""
        for program in list(self._programs.programs.values()):
            if program.role != "worker":
                self._programs.kill(program.name)
                del self._programs.programs[program.name]
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        self._owns = False

    def _watch(self) -> None:
        """Take over when the process that runs the farm has ended; start again what dies here, unless it does so again and again."""
        deaths: deque[float] = deque(maxlen=_DEATHS_MAX)
        pause_s = _POLL_S
        while not self._closing.wait(pause_s):
            try:
                if not self._owns and self._take_lock():
                    self._take_over()
                for program in list(self._programs.programs.values()):
                    if program.running:
                        continue
                    if len(deaths) == _DEATHS_MAX and time.monotonic() - deaths[0] < _DEATHS_WITHIN_S:
                        log.error("%s keeps dying; its log: %s", program.name, program.log)
                        return
                    deaths.append(time.monotonic())
                    log.warning("%s died and is started again; its log: %s", program.name, program.log)
                    self._restart(program)
                pause_s = _POLL_S
            except (AntFarmError, OSError) as error:
                pause_s = min(max(2 * pause_s, _RETRY_MIN_S), _RETRY_MAX_S)
                log.error("the embedded farm is in trouble: %s; the next try is in %.0f s", error, pause_s)

    def _restart(self, program: Program) -> None:
        with nullcontext() if program.role == "worker" else self._lending_lock():
            self._programs.restart(program.name)

    def _start_worker(self) -> None:
        app = apps.main_app()
        stem = re.sub(r"[^A-Za-z0-9._]+", "-", Path(app).stem).strip("-")[:40] or "python"
        options = [word for key, value in script_labels().items() for word in ("--label", f"{key}={value}")]
        if not app:
            options += ["--env", f"PYTHONPATH={_search_path()}"]
        self._programs.start_worker(
            f"worker-{stem}-{self._number}-{os.getpid()}",
            connect=self.address,
            slots=self._slots,
            app=[app] if app else [],
            allow_pickle=self._allow_pickle,
            options=["--drain-s", str(_DRAIN_S), *options],
        )

    # ---- what stands on disk ----------------------------------------------------------------------------------------

    def _tell(self) -> None:
        """Tell others where the farm is that runs here."""
        self._write({"pid": os.getpid(), "orchestrator": self.address, "storage": self._programs.storage_address})

    def _write(self, running: dict[str, Any]) -> None:
        """Write it down; the addresses stay known when the farm ends, so that it can come back under them."""
        kept = {key: value for key, value in read_note(self._directory).items() if key != "pid"}
        write_note(self._directory, {**kept, **running})

    def _sweep(self) -> None:
        """Remove what workers of ended processes left, but for the last logs."""
        for path in self._directory.glob("worker-*"):
            if not alive(_pid_of(path)):
                shutil.rmtree(path, ignore_errors=True)
        logs = sorted(self._directory.glob("logs/worker-*.log"), key=lambda path: path.stat().st_mtime)
        for path in logs[:-_LOGS_KEPT]:
            if not alive(_pid_of(path)):
                path.unlink(missing_ok=True)


def _search_path() -> str:
    """Where this process finds modules, for children that load no script which would say so: functions by value name modules beside a notebook."""
    return os.pathsep.join(os.path.abspath(entry) for entry in sys.path if isinstance(entry, str))


def _pid_of(path: Path) -> int:
    number = path.name.removesuffix(".log").rpartition("-")[2]
    return int(number) if number.isdigit() else 0


def _free_port(address: str) -> int:
    """The port of the address if nobody has it, else 0."""
    port = address.rpartition(":")[2]
    if not port.isdigit():
        return 0
    try:
        reserve("127.0.0.1", int(port)).close()
    except InvalidArgument:
        return 0
    return int(port)
