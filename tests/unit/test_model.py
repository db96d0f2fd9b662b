"""Values: what is terminal, what is final, and that they cannot change."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from antfarm import model


def test_the_last_five_states_of_a_task_are_terminal() -> None:
    assert [s.name for s in model.TaskState if s.terminal] == [
        "SUCCEEDED", "FAILED", "DEAD_LETTER", "CANCELLED", "EXPIRED",
    ]  # fmt: skip


def test_the_last_three_states_of_a_job_are_terminal() -> None:
    assert [s.name for s in model.JobState if s.terminal] == ["SUCCEEDED", "FAILED", "CANCELLED"]


def test_a_worker_forgets_a_report_after_five_of_the_verdicts() -> None:
    assert [v.name for v in model.VerdictCode if v.final] == [
        "ACCEPTED", "DUPLICATE", "SUPERSEDED", "FENCED", "UNKNOWN_TASK",
    ]  # fmt: skip


def test_a_batch_of_the_largest_payloads_stays_below_the_message_limit() -> None:
    """A sender closes a frame when it passes BATCH_BYTES_MAX, so one more payload may stand in it."""
    assert model.BATCH_BYTES_MAX + 2 * model.PAYLOAD_BYTES_MAX < model.MESSAGE_BYTES_MAX


@pytest.mark.parametrize(
    "cls", [c for _, c in inspect.getmembers(model, dataclasses.is_dataclass)], ids=lambda c: c.__name__
)
def test_values_are_frozen_slotted_and_keyword_only(cls: type) -> None:
    parameters = cls.__dataclass_params__  # type: ignore[attr-defined]
    assert parameters.frozen
    assert "__slots__" in vars(cls)
    assert all(f.kw_only for f in dataclasses.fields(cls))
