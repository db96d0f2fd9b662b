"""A real worker program, and the check that nothing of it is left."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).resolve().parents[2]
TASKS = ROOT / "tests" / "integration" / "worker_tasks.py"


def leftovers(agent_pid: int) -> list[str]:
    """Command lines of living processes that the agent started for itself."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        ours = any("services.worker.child" in word or word.endswith("warden.py") for word in words)
        if ours and str(agent_pid) in words and state != "Z":
            found.append(" ".join(words))
    return found


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def resident_bytes(pid: int) -> int:
    """Memory that the process takes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class WorkerProcess:
    """`python -m services.worker` with its log in a file. Use as an async context manager: it is ready inside, and gone without trace after."""

    def __init__(
        self,
        address: str,
        directory: Path,
        *flags: str,
        apps: tuple[str, ...] = (str(TASKS),),
        env: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.directory = directory
        self._address = address
        self._flags = flags
        self._apps = apps
        self._env = env
        self.log_path = directory / f"worker-{time.monotonic_ns()}.log"
        self.process: subprocess.Popen[str]
        self.ready_line = ""

    def start(self) -> WorkerProcess:
        flags = ["--state", str(self.directory / "state"), "--connect", self._address, "--no-installed-apps"]
        flags += self._flags
        for app in self._apps:
            flags += ["--app", app]
        with self.log_path.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.worker", *flags],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env={
                    **os.environ,
                    "HOME": str(self.directory),
                    "SECRET_OF_THE_OPERATOR": "x",
                    "PYTHONWARNINGS": "error",
                    **self._env,
                },
                start_new_session=True,
            )
        return self

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    async def ready(self) -> str:
        assert self.process.stdout is not None
        self.ready_line = await asyncio.wait_for(asyncio.to_thread(self.process.stdout.readline), 30)
        assert re.search(r"^worker \S+ ready on \S+ \(\d+ slots\)$", self.ready_line.strip()), self.log
        return self.ready_line.strip()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def exit(self, timeout_s: float = 30.0) -> int:
        """Wait for its end."""
        return await asyncio.wait_for(asyncio.to_thread(self.process.wait), timeout_s)

    async def __aenter__(self) -> WorkerProcess:
        self.start()
        try:
            await self.ready()
        except BaseException:
            self.process.kill()
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self.process.stdout is not None
        try:
            if self.process.poll() is None:
                self.signal(signal.SIGCONT)
                self.signal(signal.SIGTERM)
                await self.exit(15)
        except TimeoutError:
            self.process.kill()
            await self.exit()
            raise AssertionError(f"the worker did not end:\n{self.log}") from None
        finally:
            self.process.stdout.close()
        await self.gone()

    async def gone(self) -> None:
        """Nothing that it started is left."""
        deadline = time.monotonic() + 5
        while left := leftovers(self.pid):
            assert time.monotonic() < deadline, left
            await asyncio.sleep(0.02)
