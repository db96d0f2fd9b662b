"""The Node example, installed once, and its programs as processes."""

from __future__ import annotations

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # must precede the first import of grpc

import contextlib
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "node"


class Program:
    """A child process whose lines are kept as they come."""

    def __init__(self, *command: str | Path) -> None:
        self.lines: list[str] = []
        self._news = threading.Condition()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ANTFARM_")}
        self.process = subprocess.Popen(
            [str(word) for word in command], cwd=ROOT, env=environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()

    def says(self, words: str, timeout_s: float = 20.0) -> str:
        """The first line with these words, waited for."""
        with self._news:
            if not self._news.wait_for(lambda: any(words in line for line in self.lines), timeout_s):
                raise AssertionError(f"no line with {words!r} in {self.lines}")
            return next(line for line in self.lines if words in line)

    def address(self) -> str:
        """The address in its ready line."""
        return self.says("ready on ").split("ready on ")[1].split()[0]

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process itself."""
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 20.0) -> int:
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
        print(f"{self.process.args}: {self.process.returncode}", *self.lines, sep="\n    ")  # noqa: T201 - shown when a test fails


@pytest.fixture(scope="session")
def node() -> str:
    """Path of node, with the example's packages in place."""
    found, npm = shutil.which("node"), shutil.which("npm")
    if found is None or npm is None:
        pytest.skip("Node and npm are not installed")
    if not (EXAMPLE / "node_modules" / "@grpc" / "grpc-js").is_dir():
        done = subprocess.run(
            [npm, "ci", "--no-audit", "--no-fund"],
            cwd=EXAMPLE,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"npm ci failed, perhaps without network: {done.stderr.strip().splitlines()[-1:]}")
    return found


@pytest.fixture
def start() -> Iterator[Callable[..., Program]]:
    """`start(command...)` starts a program; all are ended after the test, the first one last."""
    started: list[Program] = []

    def run(*command: str | Path) -> Program:
        started.append(Program(*command))
        return started[-1]

    yield run
    for program in reversed(started):
        program.close()


@pytest.fixture
def python() -> str:
    """This interpreter."""
    return sys.executable
