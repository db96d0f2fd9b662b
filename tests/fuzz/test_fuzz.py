"""The short form of `make fuzz`, and that it would notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fuzz_core
import fuzz_keys
import pytest
from fuzz import TARGETS, fuzz
from fuzz_world import Broken

from antfarm.errors import JobNotFound
from services.orchestrator.core import machine, placement, reports, workers
from services.orchestrator.core.turn import Turn

INPUTS = {"protocol": 3_000, "storage": 5_000, "core": 5_000, "journal": 5_000, "keys": 10_000}
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("target", TARGETS)
def test_no_input_breaks_anything(target: str) -> None:
    said: list[str] = []
    outcome = fuzz(target, INPUTS[target], say=said.append)
    assert (outcome.broken, said) == (0, []), said
    assert outcome.inputs // 20 < outcome.refused < outcome.inputs, "what is never refused or always proves nothing"


def test_the_same_seed_gives_the_same_inputs() -> None:
    assert [fuzz_core.run("7/1", 200) for _ in range(2)] == [fuzz_core.run("7/1", 200)] * 2


def _broken(find: Callable[..., Any], how: type[Exception] | tuple[type[Exception], ...]) -> None:
    """Within 20,000 inputs one breaks a property."""

    def worlds() -> None:
        for world in range(80):
            find(f"1/{world}", 250)

    with pytest.raises(how):
        worlds()


def test_it_notices_a_refusal_that_leaves_something_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(turn: Turn, event: Any) -> None:
        turn.state.disk_low = not turn.state.disk_low
        raise JobNotFound("no such job")

    monkeypatch.setitem(machine._REQUESTS, machine.events.CloseJob, careless)
    _broken(fuzz_core.run, Broken)


def test_it_notices_a_report_that_counts_though_it_was_not_issued_to_the_reporter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def blind(turn: Turn, worker: Any, job: Any, epoch: int, index: int, attempt: int) -> reports.Judgement:
        if job.states[index] >= 4:
            return reports.Judgement.SUPERSEDED
        return reports.Judgement.LIVE if index in job.live else reports.Judgement.LATE

    monkeypatch.setattr(reports, "judge", blind)
    monkeypatch.setattr(workers, "judge", blind)
    _broken(fuzz_core.run, AssertionError)


def test_it_notices_what_stopped_an_orchestrator(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that says it has infinitely many of a resource, or as many as is no number."""
    monkeypatch.setattr(workers, "check_resources", lambda resources: None)
    monkeypatch.setattr(
        placement, "room", lambda worker, lane, kept=None: int(min(map(float, worker.resources.values())))
    )
    _broken(fuzz_core.run, (OverflowError, ValueError))


def test_it_notices_a_key_that_leads_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_keys, "check_key", lambda key: key)
    _broken(fuzz_keys.run, Broken)
