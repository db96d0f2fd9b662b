"""Locks that cannot be taken though nobody has them."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from antfarm.claim import claim
from antfarm.client.embedded import EmbeddedFarm
from antfarm.errors import InvalidArgument
from services.orchestrator.journal.sqlite import lock_directory
from services.storage.backends.statedir import open_state_dir
from services.worker.runtime import place


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
@pytest.mark.parametrize(
    ("take", "flag", "lock"),
    [
        (lock_directory, "--state {}", "lock"),
        (open_state_dir, "--backend file:{}", "lock"),
        (lambda path: place.claim(path, "w"), "--state {}", "w/lock"),
        (lambda path: claim(path).__enter__(), "the state directory {}", "lock"),
        (EmbeddedFarm.launch, "the embedded farm in {}", "lock"),
    ],
    ids=["orchestrator", "storage", "worker", "up", "embedded"],
)
def test_a_file_system_without_locks_is_named_and_no_other_process_is_blamed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    take: Callable[[Path], object],
    flag: str,
    lock: str,
    number: int,
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(InvalidArgument) as caught:
        take(tmp_path)
    assert str(caught.value) == (
        f"{flag.format(tmp_path)}: {tmp_path / lock} cannot be locked: {os.strerror(number)};"
        " give a directory of a local disk"
    )
