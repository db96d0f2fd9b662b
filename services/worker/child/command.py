"""`antfarm.command`: run a program, ship what it writes line by line, keep the ends of it.

The program runs in the child's process group, so the agent's signals reach it and all that it starts. While it runs the child itself lets SIGTERM pass, so
that the program may end in its own way within the grace that the agent gives.
"""

from __future__ import annotations

import codecs
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Mapping
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
    """Feed stdin and take both outputs until they are closed."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    streams = {"stdout": _Kept("stdout", ctx), "stderr": _Kept("stderr", ctx)}
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, streams["stdout"])
        selector.register(process.stderr, selectors.EVENT_READ, streams["stderr"])
        if stdin:
            selector.register(process.stdin, selectors.EVENT_WRITE)
        else:
            process.stdin.close()
        while selector.get_map():
            events = selector.select(EXIT_POLL_S)
            if not events and process.poll() is not None:
                break  # something that it left behind keeps its output open
            for key, _ in events:
                if key.fileobj is process.stdin:
                    try:
                        stdin = stdin[os.write(key.fd, stdin[:32768]) :]
                    except BrokenPipeError:  # it does not want the rest
                        stdin = b""
                    if not stdin:
                        selector.unregister(process.stdin)
                        process.stdin.close()
                    continue
                data = os.read(key.fd, 65536)
                if data:
                    key.data.take(data)
                else:
                    selector.unregister(key.fileobj)
    return streams
