"""Tasks for the worker's tests."""

# ruff: noqa: T201 - tasks print

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from antfarm import Context, PermanentError, Retry, current_context, task


@task(name="noop")
def noop() -> None:
    """Nothing."""


@task(name="add")
def add(a: int, b: int = 0) -> int:
    return a + b


@task(name="sleep")
def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@task(name="fail")
def fail(text: str) -> None:
    raise ValueError(text)


@task(name="fail.permanently")
def fail_permanently() -> None:
    raise PermanentError("never")


@task(name="fail.on", retries=Retry(max_attempts=3, on=(OSError,)))
def fail_on(what: str) -> None:
    raise OSError(what) if what == "os" else KeyError(what)


@task(name="crash")
def crash(how: str) -> None:
    if how == "segfault":
        ctypes.string_at(0)
    elif how == "abort":
        os.abort()
    elif how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "exit":
        os._exit(3)
    elif how == "exit 0":
        os._exit(0)
    elif how == "sys.exit":
        sys.exit(3)


@task(name="eat")
def eat(size_bytes: int) -> int:
    return len(bytearray(size_bytes))


@task(name="pid")
def pid() -> int:
    return os.getpid()


@task(name="stubborn")
def stubborn(path: str) -> None:
    """Ignores SIGTERM and starts a grandchild that does too."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-S", "-c", code])
    Path(path).write_text(f"{os.getpid()} {child.pid}")
    time.sleep(600)


@task(name="patient")
def patient(path: str, ctx: Context) -> str:
    """Ends by itself when it is asked to."""
    Path(path).write_text("running")
    while not ctx.cancelled:
        time.sleep(0.01)
    Path(path).write_text("asked")
    return "ended"


@task(name="talk")
def talk(ctx: Context) -> str:
    print("printed")
    sys.stderr.write("to stderr\n")
    ctx.log.info("logged")
    ctx.progress(0.5, "half")
    os.write(1, b"raw\n")
    time.sleep(0.6)
    print("at the end", end="")
    return "said"


@task(name="flood")
def flood(lines: int) -> None:
    for number in range(lines):
        print("x" * 100, number)
    raise RuntimeError("after the flood")


@task(name="scratch")
def scratch(ctx: Context) -> list[str]:
    (ctx.scratch / "file").write_text("x")
    return [str(ctx.scratch), *sorted(p.name for p in ctx.scratch.iterdir())]


@task(name="who")
def who() -> list[object]:
    ctx = current_context()
    return [ctx.job_id, ctx.index, ctx.epoch, ctx.attempt]


@task(name="big")
def big(size: int) -> str:
    return "x" * size


@task(name="odd")
def odd() -> object:
    return object()


@task(name="garbage")
def garbage() -> None:
    for fd in range(3, 64):
        try:
            os.write(fd, b"\xc1\xc1\xc1 this is no record")
        except OSError:
            continue
    time.sleep(600)


@task(name="environment")
def environment() -> dict[str, str]:
    return dict(os.environ)


@task(name="descriptors")
def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@task(name="pair")
def pair(first: object, second: object = None) -> list[object]:
    return [first, second]


@task(name="sum:summarise")
def summarise(outcomes: list[object], scale: int) -> int:
    return scale * sum(outcome.result() for outcome in outcomes)  # type: ignore[attr-defined]


@task(name="aio.sleep")
async def aio_sleep(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


_meetings: dict[int, asyncio.Barrier] = {}


@task(name="aio.meet")
async def aio_meet(parties: int) -> int:
    """Ends when that many of them run at the same time."""
    return await _meetings.setdefault(parties, asyncio.Barrier(parties)).wait()


@task(name="aio.block")
async def aio_block(seconds: float) -> None:
    time.sleep(seconds)  # noqa: ASYNC251 - that is the point


@task(name="aio.stubborn")
async def aio_stubborn() -> None:
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            continue


@task(name="aio.crash")
async def aio_crash() -> None:
    os._exit(5)


@task(name="aio.talk")
async def aio_talk(word: str, ctx: Context) -> int:
    for _ in range(5):
        print(word)
        await asyncio.sleep(0.02)
    ctx.progress(0.9)
    await asyncio.sleep(0.4)
    return ctx.index


@task(name="note")
def note(path: str, line: str, seconds: float = 0.0) -> str:
    """Leaves one line per execution."""
    with open(path, "a") as file:
        file.write(f"{line}\n")
    time.sleep(seconds)
    return line


@task(name="save")
def save(name: str, text: str, ctx: Context) -> object:
    return ctx.save(name, text.encode())


@task(name="aio.save")
async def aio_save(name: str, text: str, ctx: Context) -> object:
    path = ctx.scratch / "file"
    path.write_text(text)
    return await ctx.save(name, path)


@task(name="aio.big")
async def aio_big(size: int) -> str:
    return "y" * size


@task(name="length")
def length(text: str) -> int:
    return len(text)


@task(name="aio.length")
async def aio_length(text: str) -> int:
    return len(text)


@task(name="fork")
def fork() -> int:
    """Returns twice."""
    os.fork()
    return os.getppid()
