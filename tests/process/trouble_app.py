"""Tasks that go wrong in every way that a task can, beside the good ones of the chaos series."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time

import chaos_app  # noqa: F401 - the good ones
from history import note_begin

import antfarm as af

LIMIT_BYTES = 64 * 1024 * 1024
RUN_S = 0.5
_NOISE = bytes(range(256)) * 64
_STAY = "import sys, time; time.sleep(600)"
_STAY_STUBBORNLY = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {_STAY}"
_hang = af.Timeouts(run=RUN_S)


def _begin(number: int, path: str, ctx: af.Context) -> None:
    note_begin(path, ctx.job_id, number, ctx.epoch, ctx.attempt, at=time.time())


def _start_below(path: str, code: str) -> None:
    """Start a process that goes on, and note it; the file's name is among its words."""
    child = subprocess.Popen([sys.executable, "-S", "-c", code, path])
    with open(path, "a") as file:
        file.write(f"{child.pid}\n")


@af.task(name="trouble.raise")
def raises(number: int, path: str, ctx: af.Context) -> None:
    _begin(number, path, ctx)
    raise ValueError(f"{number} is no good")


@af.task(name="trouble.never")
def never(number: int, path: str, ctx: af.Context) -> None:
    _begin(number, path, ctx)
    raise af.PermanentError("never")


@af.task(name="trouble.sys-exit")
def sys_exit(number: int, path: str, ctx: af.Context) -> None:
    _begin(number, path, ctx)
    sys.exit(3)


@af.task(name="trouble.exit")
def exits(number: int, path: str, ctx: af.Context) -> None:
    _begin(number, path, ctx)
    os._exit(3)


@af.task(name="trouble.segfault")
def segfault(number: int, path: str, ctx: af.Context) -> None:
    _begin(number, path, ctx)
    ctypes.string_at(0)


@af.task(name="trouble.memory", resources={"memory_bytes": LIMIT_BYTES})
def memory(number: int, path: str, ctx: af.Context) -> int:
    _begin(number, path, ctx)
    return len(bytearray(4 * LIMIT_BYTES))


@af.task(name="trouble.hang", timeouts=_hang)
def hang(number: int, path: str, ctx: af.Context) -> None:
    _begin(number, path, ctx)
    _start_below(f"{path}.stopped", _STAY)
    time.sleep(600)


@af.task(name="trouble.stubborn", timeouts=_hang)
def stubborn(number: int, path: str, ctx: af.Context) -> None:
    """Ignores SIGTERM, as does what it starts."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _begin(number, path, ctx)
    _start_below(f"{path}.stopped", _STAY_STUBBORNLY)
    time.sleep(600)


@af.task(name="trouble.parent")
def parent(number: int, path: str, ctx: af.Context) -> int:
    """Is good itself, but leaves something running behind."""
    _begin(number, path, ctx)
    _start_below(f"{path}.left", _STAY_STUBBORNLY)
    return number * number


@af.task(name="trouble.odd")
def odd(number: int, path: str, ctx: af.Context) -> object:
    _begin(number, path, ctx)
    return object()


@af.task(name="trouble.large")
def large(number: int, path: str, ctx: af.Context) -> str:
    _begin(number, path, ctx)
    return "x" * 200_000


@af.task(name="trouble.garbage")
def garbage(number: int, path: str, ctx: af.Context) -> None:
    """Writes nonsense into whatever is open, the pipe to its worker among it."""
    _begin(number, path, ctx)
    for fd in range(3, 64):
        try:
            os.write(fd, b"\xc1\xc1\xc1 this is no record")
        except OSError:
            continue
    time.sleep(600)


@af.task(name="trouble.noise")
def noise(number: int, path: str, ctx: af.Context) -> int:
    """Writes bytes that are no text to its outputs, which does no harm."""
    _begin(number, path, ctx)
    os.write(1, _NOISE)
    os.write(2, _NOISE)
    return number * number


BAD = {
    task.name: task
    for task in (raises, never, sys_exit, exits, segfault, memory, hang, stubborn, parent, odd, large, garbage, noise)
}
"""All of them by name; what they ask of the farm travels with them."""
