"""What tests of whole runs share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from antfarm.local import LocalFarm
from antfarm.storage import Storage
from clouds import farm


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningFarm:
    """A farm of real programs."""

    address: str
    local: LocalFarm
    storage: Storage


@pytest.fixture(scope="package")
def running_farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFarm]:
    """One farm for the runs of this package that do it no harm: two download workers and two for the analysis."""
    state: Path = tmp_path_factory.mktemp("farm")
    with LocalFarm(state) as local:
        address = farm.start(local, workers=2, download_workers=2)
        with Storage(local.storage_address) as storage:
            yield RunningFarm(address=address, local=local, storage=storage)
