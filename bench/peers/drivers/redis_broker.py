"""A Redis server of the driver's own, on a socket, for the peers that need one."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path


class Redis:
    """Appends to its file; synced each second, as by default of what calls itself durable there, or always."""

    def __init__(self) -> None:
        program = shutil.which("redis-server")
        if program is None:
            raise RuntimeError("redis-server is not installed: apt-get install redis-server")
        directory = Path("redis").absolute()
        directory.mkdir()
        self.socket = directory / "r.sock"
        sync = os.environ.get("BENCH_REDIS_SYNC", "everysec")
        arguments = ["--port", "0", "--unixsocket", str(self.socket), "--appendonly", "yes", "--appendfsync", sync]
        self.server = subprocess.Popen(
            [program, *arguments, "--dir", str(directory), "--save", ""], stdout=subprocess.DEVNULL
        )
        while not self.socket.exists():
            time.sleep(0.01)

    def stop(self) -> None:
        """End it."""
        self.server.terminate()
        self.server.wait(10)
