"""What the sweeper keeps of the journals that it asks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from antfarm.errors import InvalidArgument
from services.storage.backends.memory import MemoryBackend
from services.storage.settings import StorageSettings
from services.storage.sweeper import Sweeper


class Record:
    """The record of one journal."""

    async def identities(self) -> frozenset[str]:
        return frozenset({"a"})


async def test_the_journals_asked_are_kept_durably_before_anything_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is synced, and then its name."""
    synced, sync = [], os.fsync

    def note(fd: int) -> None:
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        sync(fd)

    monkeypatch.setattr(os, "fsync", note)
    known = tmp_path / "record.json"
    ages = StorageSettings().ages
    assert (await Sweeper(MemoryBackend(), Record(), known, ages).sweep()).seen == 0  # type: ignore[arg-type]
    assert known.read_text() == '{"orchestrators": ["a"]}\n'
    assert synced == ["record.json.new", tmp_path.name]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_a_drain_of_no_length_is_refused_in_one_line(value: float) -> None:
    with pytest.raises(InvalidArgument) as caught:
        StorageSettings(drain_s=value)
    assert str(caught.value) == f"--drain-s {value:g}: give a number of seconds, 0 or more"
