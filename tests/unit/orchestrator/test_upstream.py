"""The tie to the orchestrator above, without one: what the core wants of it."""

from __future__ import annotations

import asyncio
import logging

import pytest

from services.orchestrator.core import effects
from services.orchestrator.core.machine import Core
from services.orchestrator.core.turn import CoreConfig
from services.orchestrator.journal.memory import MemoryJournal
from services.orchestrator.runtime.driver import Driver
from services.orchestrator.runtime.sessions import Sessions
from services.orchestrator.runtime.timers import SystemClock
from services.orchestrator.upstream import Upstream


async def test_an_end_whose_record_is_purged_is_told_to_nobody_and_is_no_defect(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The parent came again under a newer token while its old failure was being read, and is done anew."""
    core = Core(CoreConfig(), None)  # type: ignore[arg-type]
    driver = Driver(core, MemoryJournal(), SystemClock(), lambda effect: None)
    sessions = Sessions(core.state, owner=b"me", orchestrator_id="me", storage_address="")
    upstream = Upstream(
        driver,
        sessions,
        address="127.0.0.1:1",
        task_types=("t",),
        slots=1,
        orchestrator_id="me",
        storage_address="",
        tls=None,
    )
    before = asyncio.all_tasks()
    with caplog.at_level(logging.INFO):
        upstream.deliver(effects.ReportParents(seq=7, ends=[effects.ParentEnd(("job", 0, 1, 1), 0)], after=0))
        await asyncio.gather(*(asyncio.all_tasks() - before), return_exceptions=True)
        await driver.close()
    assert caplog.messages == []
