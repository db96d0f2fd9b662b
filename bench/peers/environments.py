"""An environment for each contender, made once under `build/peers`."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

from bench.peers.contenders import Contender

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "peers"


class Missing(Exception):
    """This contender cannot be had here; why."""


def python_of(contender: Contender) -> str:
    """Path of an interpreter that has the contender's packages.

    Raises:
        Missing: they cannot be installed.
    """
    if not contender.packages:
        return sys.executable
    name = hashlib.sha256("\n".join((sys.version, *contender.packages)).encode()).hexdigest()[:12]
    directory = BUILD / f"{contender.driver.partition('_')[0]}-{name}"
    python = directory / "bin" / "python"
    if not (directory / "complete").exists():
        print(f"installing {' '.join(contender.packages)}", file=sys.stderr, flush=True)
        venv.create(directory, with_pip=True, clear=True)
        done = subprocess.run(
            [str(python), "-m", "pip", "install", "-q", *contender.packages],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise Missing(f"pip cannot install {' '.join(contender.packages)}: {_last_line(done.stderr)}")
        (directory / "complete").touch()
    return str(python)


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if "ERROR" in line] or text.splitlines() or ["no reason given"]
    return lines[-1]
