"""What a worker makes of what a Welcome says of Storage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from antfarm.v1 import work_queue_pb2
from services.worker.executors.process import ChildSpec
from services.worker.runtime import driver as module
from services.worker.runtime.driver import Driver, Manner


class Told:
    """The crew: what it was told of Storage."""

    def __init__(self, spec: ChildSpec, **callbacks: Any) -> None:
        self.addresses: list[str] = []

    def set_storage(self, address: str) -> None:
        self.addresses.append(address)


@pytest.mark.parametrize(
    ("override", "said", "told"),
    [
        ("", ["a:1", "b:1"], ["a:1", "b:1"]),
        ("", ["a:1", ""], ["a:1"]),  # restarted below another orchestrator, which has not said it yet
        ("", ["", "a:1"], ["a:1"]),
        ("own:1", ["", "a:1"], ["own:1", "own:1"]),
    ],
)
async def test_a_welcome_that_names_no_storage_takes_none_away(
    monkeypatch: pytest.MonkeyPatch, override: str, said: list[str], told: list[str]
) -> None:
    monkeypatch.setattr(module, "Crew", Told)
    spec = ChildSpec(apps=(), scratch=Path("/nowhere"), env={})
    manner = Manner(slots=1, capacity={"cpu": 1.0}, storage_override=override)
    driver = Driver(manner, spec, on_drain=lambda limit_s: None)
    for address in said:
        driver.on_welcome(work_queue_pb2.Welcome(epoch=1, storage_address=address))
    assert isinstance(driver._crew, Told)
    assert driver._crew.addresses == told
