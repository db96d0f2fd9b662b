"""A farm of programs on this machine: starts them by exec, waits until each serves, and ends them in order.

`antfarm up`, the embedded farm of `antfarm.connect()` and pipelines that bring their own farm all use this. It knows the programs by their command
lines only and imports none of them. Nothing is left behind: each program stops when its standard input ends, which the kernel sees to when this
process dies, however it dies.

State of a program lies in `<state_dir>/<name>`, its output in `<state_dir>/logs/<name>.log`.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import antfarm
from antfarm.address import join_address, reserve
from antfarm.errors import AntFarmError, InvalidArgument, NotFound, Unavailable
from antfarm.program import STOP_WITH_STDIN

START_TIMEOUT_S = 30.0
"""How long a program may take until its ready line. Loading a user's app is part of it."""
_READY = re.compile(r"ready on (\S+)")
_POLL_S = 0.01
_TAIL_LINES = 15

_STOP_ORDER = {"worker": 0, "down-stream": 1, "orchestrator": 2, "storage": 3}
"""Who reports must end before whom it reports to; everybody may need Storage until the end."""


@dataclass(slots=True, kw_only=True)
class Program:
    """One program of the farm: how it was started and where it is reached (a worker: to whom it is attached)."""

    name: str
    role: str
    arguments: tuple[str, ...]
    log: Path
    host: str = ""
    advertise: str = ""
    """Host that others are told instead, where it is not `host`."""
    port: int | None = None
    address: str = ""
    process: subprocess.Popen[bytes] | None = None
    log_begin: int = 0
    """Where in the log this process begins, in bytes."""
    reserved: socket.socket | None = None
    """Keeps others from the port until the program listens."""

    @property
    def running(self) -> bool:
        """True while its process lives."""
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        """Process id; 0 when it does not run."""
        return self.process.pid if self.process is not None and self.running else 0

    def release(self) -> None:
        """The port is its own by now, or nobody's."""
        if self.reserved is not None:
            self.reserved.close()
            self.reserved = None


class LocalFarm:
    """A farm on this machine, for one `with` block.

    >>> with LocalFarm() as farm:  # doctest: +SKIP
    ...     farm.start_storage()
    ...     top = farm.start_orchestrator()
    ...     farm.start_worker(slots=2, app=["squares.py"])

    Args:
        state_dir: where programs keep state and logs; made if missing. None: a temporary directory, removed at the end.
        grace_s: how long programs may take to stop before they are killed.
    """

    def __init__(self, state_dir: Path | str | None = None, *, grace_s: float = 40.0) -> None:
        self._temporary = state_dir is None
        self.state_dir = Path(state_dir) if state_dir else Path(tempfile.mkdtemp(prefix="antfarm-"))
        self.grace_s = grace_s
        self.programs: dict[str, Program] = {}
        self.inherit: tuple[int, ...] = ()
        """Descriptors that programs started from now on keep open, e.g. a lock that stands for them."""
        self.environment: dict[str, str] = {}
        """Variables that programs started from now on have beside those of this process."""
        self.advertise = ""
        """Host under which others, on this machine too, reach what is started from now on. "": the one that it serves on."""
        self._starting: list[Program] | None = None
        """What `together` has started and not waited for."""
        try:
            (self.state_dir / "logs").mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise InvalidArgument(f"{self.state_dir}: {error.strerror}; choose another state directory") from None

    def __enter__(self) -> LocalFarm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # ---- starting ---------------------------------------------------------------------------------------------------

    @contextmanager
    def together(self) -> Iterator[None]:
        """Start programs side by side: within the block each `start_...` returns at once, with the address that the program will have.

        The end of the block waits until all serve. When one of them cannot start, its error is raised there, and those that do not serve yet are killed.
        """
        started = self._starting = []
        try:
            yield
        finally:
            self._starting = None
        self._await_ready(started)

    @property
    def address(self) -> str:
        """Address of the first orchestrator: where clients connect. NotFound before there is one."""
        return self._first("orchestrator").address

    @property
    def storage_address(self) -> str:
        """Address of Storage, "" when there is none."""
        return next((p.address for p in self.programs.values() if p.role == "storage"), "")

    def start_storage(
        self, name: str = "storage", *, port: int = 0, host: str = "127.0.0.1", options: Sequence[str] = ()
    ) -> str:
        """Start Storage on the directory `<state_dir>/<name>` and return its address."""
        arguments = ("--host", host, "--backend", f"file:{self._directory(name)}", *options)
        return self._launch(self._make(name, "storage", "services.storage", arguments, host=host, port=port))

    def start_orchestrator(
        self,
        name: str = "orchestrator",
        *,
        upstream: str = "",
        as_: str | Sequence[str] = (),
        port: int = 0,
        host: str = "127.0.0.1",
        options: Sequence[str] = (),
    ) -> str:
        """Start an orchestrator and return its address.

        Args:
            upstream: address of the orchestrator above it; it then runs the task types `as_` for that one.
            as_: task types, e.g. "clouds.download".
            options: further flags.
        """
        arguments = ["--host", host, "--state", str(self._directory(name))]
        if self.storage_address:
            arguments += ["--storage", self.storage_address]
        if upstream:
            arguments += ["--upstream", upstream, "--as", as_ if isinstance(as_, str) else ",".join(as_)]
        role = "down-stream" if upstream else "orchestrator"
        return self._launch(
            self._make(name, role, "services.orchestrator", (*arguments, *options), host=host, port=port)
        )

    def start_worker(
        self,
        name: str = "",
        *,
        connect: str = "",
        slots: int | None = None,
        app: Sequence[str] = (),
        allow_pickle: bool = False,
        options: Sequence[str] = (),
    ) -> str:
        """Start a worker, wait until it is attached, and return its name.

        Args:
            name: its worker id. Default: worker-1, worker-2, ...
            connect: address of its orchestrator. Default: the first one.
            slots: tasks at a time. Default: its own, one per core.
            app: modules or files that hold tasks.
        """
        if not name:
            taken = sum(program.role == "worker" for program in self.programs.values())
            name = f"worker-{taken + 1}"
        arguments = ["--connect", connect or self.address, "--worker-id", name, "--state", str(self._directory(name))]
        if slots is not None:
            arguments += ["--slots", str(slots)]
        for module in app:
            arguments += ["--app", module]
        if allow_pickle:
            arguments.append("--allow-pickle")
        self._launch(self._make(name, "worker", "services.worker", (*arguments, *options)))
        return name

    def _directory(self, name: str) -> Path:
        path = self.state_dir / name
        path.mkdir(exist_ok=True, mode=0o700)
        return path

    def _make(
        self, name: str, role: str, module: str, arguments: Sequence[str], *, host: str = "", port: int | None = None
    ) -> Program:
        if name in self.programs:
            raise InvalidArgument(f"the farm has a program named {name} already")
        program = Program(
            name=name,
            role=role,
            arguments=("-P", "-m", module, *arguments),  # -P: a `services` directory where the user stands is not ours
            log=self.state_dir / "logs" / f"{name}.log",
            host=host,
            advertise=self.advertise if host else "",
            port=port,
        )
        self.programs[name] = program
        return program

    def _launch(self, program: Program) -> str:
        """Start its process, and wait until it serves unless `together` will. Returns its address."""
        command = [sys.executable, *program.arguments]
        if program.port is not None:
            self._reserve(program, program.port)
            command += ["--port", str(program.port)]
        program.log_begin = program.log.stat().st_size if program.log.exists() else 0
        with program.log.open("ab") as log:
            program.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment() | self.environment,
                pass_fds=self.inherit,
                start_new_session=True,  # Ctrl-C reaches this process alone, which then stops the others in order
            )
        if self._starting is not None:
            self._starting.append(program)
        else:
            self._await_ready([program])
        return program.address

    def _reserve(self, program: Program, port: int) -> None:
        try:
            program.reserved = reserve(program.host, port)
        except InvalidArgument as error:
            raise InvalidArgument(f"{program.name} did not start: {error}") from None
        program.port = program.reserved.getsockname()[1]  # the same one after a restart
        program.address = join_address(program.advertise or program.host, program.port)

    def _await_ready(self, programs: Sequence[Program]) -> None:
        """Wait for the ready line of each. Raises with the tail of its log when one ends, or when none becomes ready in time; kills the rest then."""
        pending = list(programs)
        deadline = time.monotonic() + START_TIMEOUT_S
        try:
            while True:
                for program in list(pending):
                    if self._is_ready(program):
                        pending.remove(program)
                        deadline = time.monotonic() + START_TIMEOUT_S
                if not pending:
                    return
                self._check_others(pending)
                if time.monotonic() > deadline:
                    raise Unavailable(
                        f"{pending[0].name} was not ready within {START_TIMEOUT_S:.0f} s; its log: {pending[0].log}"
                    )
                time.sleep(_POLL_S)
        except BaseException:
            for program in pending:
                self._end(program, kill=True)
            raise

    def _is_ready(self, program: Program) -> bool:
        """True once its ready line is there. Raises when it has ended without one."""
        ended = not program.running
        text = _read_from(program.log, program.log_begin)
        for line in text.splitlines(keepends=True):
            found = _READY.search(line)
            if found and line.endswith("\n"):
                if not program.advertise:
                    program.address = found.group(1)
                program.release()
                return True
        if ended:
            raise _start_error(program, text)
        return False

    # ---- looking and ending -----------------------------------------------------------------------------------------

    def _first(self, role: str) -> Program:
        found = next((program for program in self.programs.values() if program.role == role), None)
        if found is None:
            raise NotFound(f"the farm has no {role}; start one first")
        return found

    def program(self, name: str) -> Program:
        """One program. NotFound when there is none of that name."""
        try:
            return self.programs[name]
        except KeyError:
            raise NotFound(f"the farm has no program named {name}; there are {', '.join(self.programs)}") from None

    def kill(self, name: str) -> None:
        """SIGKILL to one program, and wait until it is gone."""
        self._end(self.program(name), kill=True)

    def terminate(self, name: str) -> int:
        """Let one program drain and end; its exit code."""
        return self._end(self.program(name))

    def restart(self, name: str) -> str:
        """Start a program again as it was, on the same port and state, after stopping it if it runs. Returns its address."""
        program = self.program(name)
        self._end(program)
        return self._launch(program)

    def check(self) -> None:
        """Raise Unavailable with the end of its log when a program has died that nobody stopped."""
        self._check_others(())

    def _check_others(self, starting: Sequence[Program]) -> None:
        for program in list(self.programs.values()):  # others may be started in other threads meanwhile
            if program not in starting and program.process is not None and not program.running:
                raise Unavailable(f"{program.name} died: {_last_line(program.log)} (log: {program.log})")

    def stop(self, *, grace_s: float | None = None) -> None:
        """Drain and end all programs: workers, down-stream orchestrators, orchestrators, storage. Repeating it does no harm.

        Each rank gets `grace_s` (default: the farm's) before it is killed.
        """
        self.grace_s = self.grace_s if grace_s is None else grace_s
        try:
            for rank in sorted(set(_STOP_ORDER.values())):
                group = [p for p in self.programs.values() if _STOP_ORDER[p.role] == rank]
                for program in group:
                    if program.process is not None and program.running:
                        program.process.send_signal(signal.SIGTERM)
                for program in group:
                    self._reap(program)
        finally:
            for program in self.programs.values():
                self._end(program, kill=True)
            if self._temporary:
                shutil.rmtree(self.state_dir, ignore_errors=True)

    def hurry(self) -> None:
        """Kill what has not ended yet, while another thread is in `stop`: the second Ctrl-C."""
        for program in self.programs.values():
            process = program.process
            if process is not None and process.poll() is None:
                process.kill()

    def _end(self, program: Program, *, kill: bool = False) -> int:
        """Stop a program and reap it; its exit code, 0 when it did not run."""
        if program.process is not None and program.running:
            program.process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        return self._reap(program)

    def _reap(self, program: Program) -> int:
        """Wait until a program that was asked to stop has ended, at most for the grace; then kill it."""
        process = program.process
        if process is None:
            return 0
        try:
            return process.wait(self.grace_s)
        except BaseException as error:  # also an impatient Ctrl-C
            process.kill()
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return process.returncode
        finally:
            program.process = None
            program.release()
            if process.stdin is not None:
                process.stdin.close()


def _environment() -> dict[str, str]:
    """This process's, without settings meant for it alone; the children find the same packages as this process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ANTFARM_")}
    root = str(Path(antfarm.__file__).resolve().parents[1])
    paths = [root, *(p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != root)]
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", STOP_WITH_STDIN: "1"}


def _read_from(path: Path, offset: int) -> str:
    with path.open("rb") as log:
        log.seek(offset)
        return log.read().decode("utf-8", "replace")


def _start_error(program: Program, text: str) -> AntFarmError:
    assert program.process is not None
    code = program.process.returncode
    lines = [line for line in text.splitlines() if line.strip()]
    said = lines[-1] if lines else "it said nothing"
    if code == 2:  # the program's own line says what to do
        return InvalidArgument(f"{program.name} did not start: {said}")
    tail = "\n".join(lines[-_TAIL_LINES:])
    return Unavailable(f"{program.name} did not start (exit code {code}): {said}\nend of {program.log}:\n{tail}")


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
