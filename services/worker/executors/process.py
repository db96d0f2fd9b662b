"""One child process as the agent sees it: started, fed, read, signalled, and known to be dead.

It moves bytes and knows nothing of attempts. Started by `Popen` without a fork hook, in a session of its own, with only the descriptors and variables that
it needs (semantics S11). Everything read from it is bounded; what is not a record ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import mmap
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

import services
from services.worker.child.protocol import CURRENT, IN_SETUP, IN_STORAGE, PAGE_BYTES, RECORD_BYTES_MAX, Setup

log = logging.getLogger("antfarm.worker")

READ_BYTES = 1024 * 1024
PAUSE_MAX_S = 0.05
"""A child that has much to run is not listened to for up to this long: its next results gather in the pipe, and one turn of the agent, one message to
the orchestrator and one commit serve them all."""
PAUSE_SHARE = 0.6
"""Nor for more than this share of the time that what waits in it takes, so that it does not run dry; with nothing waiting there is no pause."""
NOISE_BYTES = 64 * 1024
WARDEN_PAUSE_S = 0.5
"""From the end of a warden to the next one."""
_PIPE_BYTES = 1024 * 1024
_PASSED = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "TZ",
    "TMPDIR",
    "TERM",
    "VIRTUAL_ENV",
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONHASHSEED",
    "LD_LIBRARY_PATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
]
_PASSED_PREFIXES = ("LC_", "MALLOC_", "OMP_", "MKL_", "OPENBLAS_", "NUMBA_", "CUDA_", "NVIDIA_", "XDG_", "COVERAGE_")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """How all children of a worker are started."""

    apps: tuple[str, ...]
    installed_apps: bool = True
    scratch: Path
    allow_pickle: bool = False
    tls: tuple[str, ...] = ()
    open_files: int = 0
    """Their soft limit of open files, where the agent has raised its own; 0: the agent's."""
    env: Mapping[str, str]


def child_environment(environment: Mapping[str, str], more: Sequence[str] = ()) -> dict[str, str]:
    """The variables that children get: an allow-list, and what the operator names (`NAME` or `NAME=VALUE`)."""
    passed = {
        name: value for name, value in environment.items() if name in _PASSED or name.startswith(_PASSED_PREFIXES)
    }
    for item in more:
        name, given, value = item.partition("=")
        if given:
            passed[name] = value
        elif name in environment:
            passed[name] = environment[name]
    root = str(Path(services.__file__ or "").resolve().parents[1])
    path = passed.get("PYTHONPATH", "")
    passed["PYTHONPATH"] = f"{root}{os.pathsep}{path}" if path else root
    passed["PYTHONUNBUFFERED"] = "1"
    passed["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # or programs started beside gRPC die before they run
    return passed


class Warden:
    """The agent's end of the warden. When that dies, killed by an operator or for want of memory, another one takes over."""

    def __init__(self) -> None:
        """Start it. OSError when the system refuses another process."""
        self._loop = asyncio.get_running_loop()
        self._groups: set[int] = set()
        self._process: subprocess.Popen[bytes] | None = None  # None: it has ended, and another one is due
        self._restart: asyncio.TimerHandle | None = None
        self._start()

    def watch(self, group: int) -> None:
        """A process group that is to be killed when the agent dies."""
        self._groups.add(group)
        self._tell(f"+{group}")

    def release(self, group: int) -> None:
        """It is gone, and its number may soon be somebody else's."""
        self._groups.discard(group)
        self._tell(f"-{group}")

    def close(self) -> None:
        """End it."""
        if self._restart is not None:
            self._restart.cancel()
        self._part()

    def _start(self) -> None:
        path = Path(__file__).with_name("warden.py")
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(path), str(os.getpid())],  # the pid is for people who read ps
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={},
            start_new_session=True,
        )
        try:
            self._pidfd = os.pidfd_open(process.pid)
        except OSError:
            process.communicate()  # its input is closed, so it ends
            raise
        self._process = process
        self._loop.add_reader(self._pidfd, self._ended)
        for group in self._groups:
            self._tell(f"+{group}")

    def _tell(self, line: str) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            with contextlib.suppress(OSError):  # it is dead: the next one is told of all
                os.write(self._process.stdin.fileno(), f"{line}\n".encode())

    def _ended(self) -> None:
        log.warning("the warden of this worker's processes has ended; another one is started")
        self._part()
        self._restart_later()

    def _restart_later(self) -> None:
        # After a pause: whatever ends it may end the next one too, and until then the children still have their death signal.
        self._restart = self._loop.call_later(WARDEN_PAUSE_S, self._start_again)

    def _start_again(self) -> None:
        try:
            self._start()
        except OSError as error:
            log.warning("no warden could be started: %s; trying again", error.strerror)
            self._restart_later()

    def _part(self) -> None:
        """It ends when its input is closed, if it has not."""
        process, self._process = self._process, None
        if process is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            process.communicate()


def _pipe(read: ExitStack, write: ExitStack) -> tuple[int, int]:
    """A pipe; each end is closed with its own stack."""
    ends = os.pipe()
    for stack, fd in zip((read, write), ends, strict=True):
        stack.callback(os.close, fd)
    return ends


def _start(
    mode: str, env: Mapping[str, str], in_read: int, out_write: int, page_fd: int, noise_write: int
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "services.worker.child", mode]
        + [str(n) for n in (os.getpid(), in_read, out_write, page_fd)],
        stdin=subprocess.DEVNULL,
        stdout=noise_write,
        stderr=noise_write,
        pass_fds=(in_read, out_write, page_fd),
        env=dict(env),
        start_new_session=True,
    )


class ChildProcess:
    """A running child.

    Callbacks come on the loop: records (lists; the answer is for how many seconds it has work waiting), a pause (it is not listened to, and `listen` is due
    in so many seconds), noise (bytes of its descriptors 1 and 2), one exit.
    """

    def __init__(
        self,
        *,
        number: int,
        mode: str,
        spec: ChildSpec,
        warden: Warden,
        on_records: Callable[[int, list[list[Any]]], float],
        on_pause: Callable[[float], None],
        on_noise: Callable[[int, bytes], None],
        on_exit: Callable[[int, int], None],
    ) -> None:
        """Start it. OSError when the system refuses another process."""
        self.number = number
        self._warden = warden
        self._on_records, self._on_pause, self._on_noise, self._on_exit = on_records, on_pause, on_noise, on_exit
        self._loop = asyncio.get_running_loop()
        self._scratch = spec.scratch / f"{os.getpid()}-{number}"
        self._unpacker = msgpack.Unpacker(max_buffer_size=RECORD_BYTES_MAX + READ_BYTES)
        self._unwritten = bytearray()
        self._garbage = False
        self._paused = False  # it is not listened to
        self.started_last = 0  # once it is dead: seq of the task that it started last
        with ExitStack() as theirs, ExitStack() as ours:  # a start that fails leaves neither descriptors nor a child
            in_read, self._in = _pipe(theirs, ours)
            self._out, out_write = _pipe(ours, theirs)
            self._noise, noise_write = _pipe(ours, theirs)
            page_fd = self._open_page(theirs, ours)
            for fd in (in_read, self._out):
                with contextlib.suppress(OSError):  # above the user's share of pipe memory; small pipes work too
                    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            self._pause_bytes_max = fcntl.fcntl(self._out, fcntl.F_GETPIPE_SZ) // 4
            for fd in (self._in, self._out, self._noise):
                os.set_blocking(fd, False)
            self._process = _start(mode, spec.env, in_read, out_write, page_fd, noise_write)
            self.pid = self._process.pid
            warden.watch(self.pid)
            ours.callback(self._give_up)
            self._pidfd = os.pidfd_open(self.pid)
            ours.pop_all()
        self._loop.add_reader(self._out, self._read)
        self._loop.add_reader(self._noise, self._read_noise)
        self._loop.add_reader(self._pidfd, self._ended)
        setup = Setup(
            apps=list(spec.apps),
            installed_apps=spec.installed_apps,
            allow_pickle=spec.allow_pickle,
            scratch=str(self._scratch),
            tls=list(spec.tls),
            open_files=spec.open_files,
        )
        self.feed(msgpack.packb([IN_SETUP, setup]))

    def _open_page(self, theirs: ExitStack, ours: ExitStack) -> int:
        """Map the page that is shared with the child; the descriptor for it."""
        fd = os.memfd_create("antfarm-page")
        theirs.callback(os.close, fd)
        os.ftruncate(fd, PAGE_BYTES)
        self._map = mmap.mmap(fd, PAGE_BYTES)
        ours.callback(self._map.close)
        self.page: memoryview = memoryview(self._map).cast("Q")
        ours.callback(self.page.release)
        return fd

    def _give_up(self) -> None:
        """It was started and cannot be watched."""
        self.kill()
        self._process.wait()
        self._warden.release(self.pid)

    # ---- in ---------------------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Send frames; what the pipe does not take waits here, bounded by what the caller feeds."""
        if self._unwritten:
            self._unwritten += data
            return
        written = self._write(data)
        if written < len(data):
            self._unwritten += data[written:]
            self._loop.add_writer(self._in, self._write_rest)

    def set_storage(self, address: str) -> None:
        """Say where Storage is."""
        self.feed(msgpack.packb([IN_STORAGE, address]))

    def _write(self, data: bytes | bytearray) -> int:
        try:
            return os.write(self._in, data)
        except BlockingIOError:
            return 0
        except BrokenPipeError:  # it is dead or dying; its exit is handled when it is seen
            return len(data)

    def _write_rest(self) -> None:
        del self._unwritten[: self._write(self._unwritten)]
        if not self._unwritten:
            self._loop.remove_writer(self._in)

    # ---- out --------------------------------------------------------------------------------------------------------

    def _read(self) -> bool:
        """Take what the pipe holds. False: there is nothing now."""
        try:
            data = os.read(self._out, READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(self._out)
            return False
        if self._garbage:
            return True
        try:
            self._unpacker.feed(data)
            records, problem = self._whole_records()
            pause_s = min(self._on_records(self.number, records) * PAUSE_SHARE, PAUSE_MAX_S) if records else 0.0
            if problem is not None:
                raise problem  # now that what was said before it counts
            # A pipe that is this full in no time may be full before the pause is over, and the child would wait for us.
            if pause_s and len(data) <= self._pause_bytes_max:
                self._pause_reading(pause_s)
        except (ValueError, TypeError, IndexError, KeyError, msgpack.UnpackException, msgpack.BufferFull) as error:
            # User code wrote into our pipe. Nothing that follows can be trusted.
            self._garbage = True
            log.warning("child %d wrote what is no record (%s); it is replaced", self.pid, type(error).__name__)
            self.kill()
        return True

    def _whole_records(self) -> tuple[list[Any], Exception | None]:
        """The records that are whole, and what is wrong with what follows them."""
        records: list[Any] = []
        try:
            records.extend(self._unpacker)  # keeps what comes before an exception, which `list` throws away
        except (ValueError, msgpack.UnpackException) as problem:
            return records, problem
        return records, None

    def _pause_reading(self, pause_s: float) -> None:
        if self._process.returncode is None:
            self._loop.remove_reader(self._out)
            self._paused = True
            self._on_pause(pause_s)

    def listen(self) -> None:
        """End a pause: take what the pipe holds now."""
        if self._paused and self._process.returncode is None:
            self._paused = False
            self._loop.add_reader(self._out, self._read)
            self._read()

    def _read_noise(self) -> bool:
        try:
            data = os.read(self._noise, NOISE_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(self._noise)
            return False
        self._on_noise(self.number, data)
        return True

    # ---- death ------------------------------------------------------------------------------------------------------

    def terminate(self) -> None:
        """SIGTERM to its whole group."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to its whole group."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        # Its group exists at least until it is reaped, so the number cannot mean anybody else.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def _ended(self) -> None:
        """It is dead. What it had written still counts; what it had started goes with it."""
        self.kill()
        for fd in (self._pidfd, self._out, self._noise):
            self._loop.remove_reader(fd)
        self._loop.remove_writer(self._in)
        while self._read():
            pass
        for _ in range(16):  # a survivor outside its group may write for ever
            if not self._read_noise():
                break
        self._warden.release(self.pid)
        code = self._process.wait()
        for fd in (self._pidfd, self._out, self._noise, self._in):
            self._loop.remove_reader(fd)
            os.close(fd)
        self.started_last = self.page[CURRENT]
        self.page.release()
        self._map.close()
        if self._scratch.exists():
            self._loop.run_in_executor(None, shutil.rmtree, self._scratch, True)
        self._on_exit(self.number, code)

    def close(self) -> None:
        """Let it end: its input is closed; it exits when it has run what it has."""
        self._loop.remove_writer(self._in)
        os.close(self._in)
        self._in = os.open(os.devnull, os.O_WRONLY)
