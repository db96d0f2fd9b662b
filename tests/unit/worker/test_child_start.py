"""A child that cannot be started leaves nothing behind, however far its start came."""

from __future__ import annotations

import errno
import os
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from services.worker.executors import process
from services.worker.executors.process import ChildProcess, ChildSpec, child_environment


class Told:
    """The warden: the groups that it is to kill when the agent dies."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def watch(self, group: int) -> None:
        self.lines.append(f"+{group}")

    def release(self, group: int) -> None:
        self.lines.append(f"-{group}")


def descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"), key=int)


def failing(real: Any, at: int) -> Any:
    """`real`, but for its call of this number."""
    calls = count(1)

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == at:
            raise OSError(errno.EMFILE, "Too many open files")
        return real(*args, **kwargs)

    return call


@pytest.mark.parametrize(
    ("where", "what", "at"),
    [
        (os, "pipe", 1),
        (os, "pipe", 2),
        (os, "pipe", 3),
        (os, "memfd_create", 1),
        (process.mmap, "mmap", 1),
        (process.subprocess, "Popen", 1),
        (os, "pidfd_open", 1),
    ],
    ids=lambda value: str(value) if isinstance(value, str | int) else "",
)
async def test_neither_descriptors_nor_a_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: Any, what: str, at: int
) -> None:
    warden, started = Told(), []
    popen = process.subprocess.Popen

    class Noted(popen):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(process.subprocess, "Popen", Noted)
    monkeypatch.setattr(where, what, failing(getattr(where, what), at))
    before = descriptors()
    with pytest.raises(OSError, match="Too many open files"):
        ChildProcess(
            number=1,
            mode="plain",
            spec=ChildSpec(apps=(), scratch=tmp_path, env=child_environment(os.environ)),
            warden=warden,  # type: ignore[arg-type]
            on_records=lambda number, records: 0.0,
            on_pause=lambda pause_s: None,
            on_noise=lambda number, data: None,
            on_exit=lambda number, code: None,
        )
    assert descriptors() == before
    assert [child.returncode for child in started] == [-9] * (what == "pidfd_open")
    assert warden.lines == [f"{sign}{child.pid}" for child in started for sign in "+-"]
