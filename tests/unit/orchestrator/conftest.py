"""A core on the bench for each test; what leaves it unclaimed fails the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from orchestrator_harness import Harness


@pytest.fixture
def farm() -> Iterator[Harness]:
    harness = Harness()
    yield harness
    harness.close()
