"""`antfarm.command`: run a program, ship what it writes line by line, keep the ends of it.

The program runs in the child's process group, so the agent's signals reach it and all that it starts. While it runs the child itself lets SIGTERM pass, so
that the program may end in its own way within the grace that the agent gives.
"""

from __future__ import annotations

import codecs
import fcntl
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import IO, Any

from antfarm.context import Context
from antfarm.errors import InvalidArgument, PermanentError, Weather
from services.worker.child.failure import CommandFailed

KEPT_BYTES_MAX = 24 * 1024
"""Of each stream, its end, in the result. More goes to Storage as an output where the farm has one."""
SPOOL_BYTES_MAX = 1024 * 1024 * 1024
"""Of each stream on this node's disk."""
EXIT_POLL_S = 0.2
"""How soon after its end a program is given up whose output stays open."""
READ_BYTES = 64 * 1024
STDIN_BYTES = 32 * 1024


def run_command(
    argv: list[str],
    stdin: str | None = None,
    env: Mapping[str, Any] | None = None,
    cwd: str | None = None,
    ctx: Context = None,  # type: ignore[assignment]
) -> dict[str, Any]:
    """See `antfarm.builtin.command_call`."""
    if not isinstance(argv, list) or not argv or not all(isinstance(word, str) for word in argv):
        raise PermanentError("argv must be a list of texts: the program and its arguments")
    process = _start(argv, env, cwd, ctx)
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        streams = _pump(process, (stdin or "").encode(), ctx)
        code = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    if code != 0:
        kind = f"exit code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"
        raise CommandFailed(kind, f"{argv[0]} ended with {kind}")
    return {"exit_code": code, **{name: stream.finish(ctx) for name, stream in streams.items()}}


def _start(argv: list[str], env: Mapping[str, Any] | None, cwd: str | None, ctx: Context) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd if cwd is not None else ctx.scratch,
            env={**os.environ, **{name: str(value) for name, value in (env or {}).items()}},
        )
    except FileNotFoundError:
        if cwd is not None and not os.path.isdir(cwd):
            raise PermanentError(f"the directory {cwd} does not exist on this worker") from None
        raise PermanentError(f"the program {argv[0]} is not on this worker's PATH") from None
    except (OSError, ValueError) as error:
        raise PermanentError(f"{argv[0]} cannot be started: {error}") from None


class _Kept:
    """One output stream: shipped as it comes, its end kept, all of it on disk once it is long."""

    def __init__(self, name: str, ctx: Context) -> None:
        self._name = name
        self._ctx = ctx
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._end = b""
        self._size = 0
        self._file: IO[bytes] | None = None

    def take(self, data: bytes) -> None:
        self._size += len(data)
        sys.stdout.write(self._decoder.decode(data))
        if self._file is None and self._size > KEPT_BYTES_MAX:
            self._file = open(self._ctx.scratch / f".antfarm-{self._name}", "w+b")  # noqa: SIM115 - closed in finish
            self._file.write(self._end)
        self._end = (self._end + data)[-KEPT_BYTES_MAX:]
        if self._file is not None and self._size <= SPOOL_BYTES_MAX:
            self._file.write(data)

    def finish(self, ctx: Context) -> str:
        """The text for the result."""
        text = self._end.decode("utf-8", "replace")
        if self._file is None:
            return text
        self._file.close()
        try:
            where = f"all of it: {ctx.save(self._name, ctx.scratch / f'.antfarm-{self._name}').key}"
        except InvalidArgument:
            where = "the rest is lost, because the farm has no Storage"
        except Weather as error:
            where = f"the rest is lost, because Storage did not take it: {error}"
        return f"... {self._size - len(self._end):,} bytes left out; {where} ...\n{text}"


def _pump(process: subprocess.Popen[bytes], stdin: bytes, ctx: Context) -> dict[str, _Kept]:
    """Feed stdin and take both outputs until they are closed, or the program has ended and something that it left behind keeps them open."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    streams = {"stdout": _Kept("stdout", ctx), "stderr": _Kept("stderr", ctx)}
    give_up_at: float | None = None  # once it is seen to have ended
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, streams["stdout"])
        selector.register(process.stderr, selectors.EVENT_READ, streams["stderr"])
        if stdin:
            # A pipe with little room is called writable, and a program that waits for us to read must not find us waiting for it.
            os.set_blocking(process.stdin.fileno(), False)
            selector.register(process.stdin, selectors.EVENT_WRITE)
        else:
            process.stdin.close()
        while selector.get_map():
            now = time.monotonic()
            if give_up_at is None and process.poll() is not None:
                give_up_at = now + EXIT_POLL_S
            if give_up_at is not None and now >= give_up_at:
                _take_rest(selector)
                break
            for key, _ in selector.select(EXIT_POLL_S if give_up_at is None else give_up_at - now):
                if key.fileobj is not process.stdin:
                    if not _take_some(key):
                        selector.unregister(key.fileobj)
                    continue
                stdin = stdin[_feed(key.fd, stdin) :]
                if not stdin:
                    selector.unregister(process.stdin)
                    process.stdin.close()
    return streams


def _feed(fd: int, data: bytes) -> int:
    """Write what there is room for now. How much of it needs no writing any more."""
    try:
        return os.write(fd, data[:STDIN_BYTES])
    except BlockingIOError:
        return 0
    except BrokenPipeError:  # it does not want the rest
        return len(data)


def _take_some(key: selectors.SelectorKey, size_max: int = READ_BYTES) -> int:
    """Read from an output that has something. How much that was; 0 at its end."""
    data = os.read(key.fd, min(size_max, READ_BYTES))
    if data:
        key.data.take(data)
    return len(data)


def _take_rest(selector: selectors.BaseSelector) -> None:
    """What the program had written before its end: no more than a pipe holds, however much its survivors go on to write."""
    for key in selector.get_map().values():
        if key.data is None:
            continue
        os.set_blocking(key.fd, False)
        left = fcntl.fcntl(key.fd, fcntl.F_GETPIPE_SZ)
        with suppress(BlockingIOError):
            while left > 0 and (size := _take_some(key, left)):
                left -= size
