"""A Redis server of the driver's own, on a socket, for the peers that need one."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

SOCKET = Path("redis/r.sock").absolute()
"""Where it listens, in the driver's directory."""


class Redis:
    """Appends to its file; synced each second, as by default of what calls itself durable there, or always."""

    def __init__(self) -> None:
        program = shutil.which("redis-server")
        if program is None:
            raise RuntimeError("redis-server is not installed: apt-get install redis-server")
        SOCKET.parent.mkdir()
        sync = os.environ.get("BENCH_REDIS_SYNC", "everysec")
        # A title of its own would be written over its environment, where its mark stands.
        arguments = [
            "--set-proc-title",
            "no",
            "--port",
            "0",
            "--unixsocket",
            str(SOCKET),
            "--appendonly",
            "yes",
            "--appendfsync",
            sync,
        ]
        self.server = subprocess.Popen(
            [program, *arguments, "--dir", str(SOCKET.parent), "--save", ""], stdout=subprocess.DEVNULL
        )
        while not SOCKET.exists():
            time.sleep(0.01)

    def stop(self) -> None:
        """End it."""
        self.server.terminate()
        self.server.wait(10)
