"""What all tests share."""

from __future__ import annotations

import os
import signal

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # must precede the first import of grpc
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # In the background of a script Ctrl-C is ignored, and so would be by every program that a test starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)

from pathlib import Path
from typing import Any

import pytest


def children() -> dict[int, str]:
    """Child processes of this one that have not been reaped, with their command lines."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text().split():
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            found[int(pid)] = command.strip() or "(a zombie)"
    return found


left_by_workers: list[str] = []


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A process that ran some of the tests has ended (`-n`): what it left behind is told by the one that it ran for."""
    left_by_workers.extend(getattr(node, "workeroutput", {}).get("left", ()))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """No test may leave a process behind."""
    left = [
        f"process {pid}: {command[:200]}" for pid, command in children().items() if "resource_tracker" not in command
    ]
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left"] = left
        return
    left += left_by_workers
    if left and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    for one in left:
        print(f"\nleft behind: {one}")  # noqa: T201 - the report of the run
