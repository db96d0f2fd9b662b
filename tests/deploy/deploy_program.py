"""A program of ours as a child process, its lines kept as they come."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from pathlib import Path


class Program:
    """A running program; end it with `close`."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        self.lines: list[str] = []
        self._news = threading.Condition()
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("ANTFARM_")}
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=inherited | environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()

    def says(self, words: str, timeout_s: float = 30.0) -> str:
        """The first line with these words, waited for."""
        with self._news:
            if not self._news.wait_for(lambda: any(words in line for line in self.lines), timeout_s):
                raise AssertionError(f"no line with {words!r} in {self.lines}")
            return next(line for line in self.lines if words in line)

    def ready(self) -> str:
        """The address in its ready line."""
        return self.says("ready on ").split("ready on ")[1].split()[0]

    def port(self) -> str:
        """The port in its ready line."""
        return self.ready().rpartition(":")[2]

    def wait(self, timeout_s: float = 40.0) -> int:
        """Its exit code."""
        code = self.process.wait(timeout_s)
        self._reader.join(5)
        return code

    def close(self) -> None:
        """Kill the process and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()
        print(" ".join(map(str, self.process.args)), self.process.returncode, *self.lines, sep="\n    ")  # noqa: T201 - shown when a test fails
