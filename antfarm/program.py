"""What every program of the farm does at its start and end: loop, logging, signals, systemd, exit codes.

A program's `__main__` calls `run(main_coroutine, ...)`; user mistakes end as one line on standard error and exit code 2.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from antfarm import failpoint
from antfarm.errors import AntFarmError, UserError, Weather
from antfarm.loop import new_event_loop

EXIT_OK = 0
EXIT_TASKS_FAILED = 1
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_CANNOT_CONNECT = 3
EXIT_CANCELLED = 4
EXIT_TIMEOUT = 5

STOP_WITH_STDIN = "ANTFARM_STOP_WITH_STDIN"
"""Set to 1 by a parent that starts a program for itself: the end of standard input, so also the parent's death, is then a wish to drain."""

log = logging.getLogger("antfarm.program")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=True)


class _TextFormatter(logging.Formatter):
    """One line a record, whatever hostile strings are in it; lines of a traceback begin with a bar, so that none can pass for a record."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        return _printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the name is logging's
        return "\n".join(f"  | {_printable(line)}" for line in super().formatException(ei).split("\n"))


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def setup_logging(log_format: str, log_level: str) -> None:
    """Log to standard error in one of two forms; gRPC's own chatter only from warning on."""
    handler = logging.StreamHandler(sys.stderr)
    if log_format == "json":
        handler.setFormatter(_JsonFormatter())
    else:
        handler.setFormatter(_TextFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=log_level.upper(), handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("grpc").setLevel(logging.WARNING)


def run(main: Callable[[], Coroutine[Any, Any, int]], *, program: str) -> NoReturn:
    """Run a program's main coroutine on uvloop (asyncio where it is not installed) and exit with its code.

    UserError ends with code 2, Weather with 3, any other error of ours (a damaged journal, say) with 1, each with one line; anything else
    is a defect and shows its traceback.
    """
    try:
        failpoint.arm(os.environ)
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            code = runner.run(main())
    except UserError as error:
        _die(program, error, EXIT_USAGE)
    except Weather as error:
        _die(program, error, EXIT_CANNOT_CONNECT)
    except AntFarmError as error:
        _die(program, error, EXIT_FAILED)
    except KeyboardInterrupt:
        _die(program, AntFarmError("interrupted"), EXIT_CANCELLED)
    sys.exit(code)


def _die(program: str, error: BaseException, code: int) -> NoReturn:
    sys.stderr.write(f"{program}: {' '.join(str(error).split())}\n")
    sys.exit(code)


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set: the wish to drain. A second signal ends the process at once with code 4."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if stop.is_set():
            os._exit(EXIT_CANCELLED)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    if os.environ.get(STOP_WITH_STDIN) == "1":
        _stop_with_stdin(loop, stop)
    return stop


def _stop_with_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    number = sys.stdin.fileno()

    def on_input() -> None:
        if not os.read(number, 4096):
            loop.remove_reader(number)
            stop.set()

    loop.add_reader(number, on_input)


@contextmanager
def loading() -> Iterator[None]:
    """Around the imports of a program's parts, without garbage collection: it would take a tenth of the start, going again and again through what stays for ever."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def tune_gc() -> None:
    """Freeze what start-up made and collect rarely: the hot path makes many short-lived values and no cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def allow_open_files() -> None:
    """Raise the soft limit of open files, often 1,024, to the hard one: each peer is a socket."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def ready(line: str) -> None:
    """Tell people and supervisors that the program serves: the line on standard output, READY=1 to systemd."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
    notify("READY=1")


def notify(state: str) -> None:
    """Send a state to systemd (sd_notify protocol); does nothing without NOTIFY_SOCKET."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)  # a supervisor that does not listen must not stop the loop
        try:
            sender.connect(address)
            sender.sendall(state.encode())
        except OSError as error:
            log.warning("systemd could not be notified of %s: %s", state, error)


async def watchdog(alive: Callable[[], Awaitable[bool]] | None = None) -> None:
    """Tell systemd's watchdog that the loop turns, at half of WATCHDOG_USEC; returns at once when none is asked for.

    `alive` may say that the program is stuck although its loop turns; then nothing is sent and systemd restarts it.
    """
    usec = os.environ.get("WATCHDOG_USEC", "")
    if not usec.isdigit() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return
    while True:
        if alive is None or await alive():
            notify("WATCHDOG=1")
        await asyncio.sleep(int(usec) / 2_000_000)
