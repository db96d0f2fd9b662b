"""The way to the end of an attempt that does not want to end, and the limits it may break."""

from __future__ import annotations

import pytest

from antfarm.link.estimate import Estimate
from antfarm.model import SECOND_NS, Ending
from services.worker.core.attempt import Attempt, Group, TailText
from services.worker.core.stop import Step, plan_stop

S = SECOND_NS


def steps(ending: Ending, *, listens: bool) -> list[tuple[float, Step]]:
    stop = plan_stop(ending, "why", now_ns=100 * S, grace_ns=10 * S, listens=listens)
    found = []
    for tick in range(2000):
        now = 100 * S + tick * S // 100
        if (step := stop.due(now)) is not None:
            found.append((tick / 100, step))
    return found


@pytest.mark.parametrize(
    ("ending", "listens", "expected"),
    [
        (Ending.REVOKED, True, [(5.0, Step.TERMINATE), (10.0, Step.KILL)]),
        (Ending.REVOKED, False, [(0.0, Step.TERMINATE), (10.0, Step.KILL)]),
        (Ending.TIMED_OUT, True, [(0.0, Step.TERMINATE), (0.5, Step.KILL)]),
        (Ending.TIMED_OUT, False, [(0.0, Step.TERMINATE), (0.5, Step.KILL)]),
        (Ending.RELEASED, False, [(0.0, Step.TERMINATE), (1.0, Step.KILL)]),
    ],
)
def test_each_step_comes_once_and_in_time(ending: Ending, listens: bool, expected: list[tuple[float, Step]]) -> None:
    assert steps(ending, listens=listens) == expected


def test_a_late_look_goes_straight_to_the_kill() -> None:
    stop = plan_stop(Ending.REVOKED, "", now_ns=0, grace_ns=S, listens=True)
    assert stop.due(5 * S) is Step.KILL
    assert stop.due(6 * S) is None


def attempt(*, run_ns: int = 0, progress_ns: int = 0) -> Attempt:
    group = Group(
        job_id="j",
        epoch=1,
        type="t",
        is_async=False,
        estimate=Estimate(),
        cost={"cpu": 1.0},
        run_timeout_ns=run_ns,
        progress_timeout_ns=progress_ns,
    )
    made = Attempt(group, 0, 1, b"", 0)
    made.started_ns = 10 * S
    return made


def test_no_limit_is_never_broken() -> None:
    assert attempt().overdue(10**18) == ""


def test_the_run_limit_counts_from_the_start() -> None:
    made = attempt(run_ns=3 * S)
    assert made.overdue(13 * S) == ""
    assert made.overdue(13 * S + 1) == "ran longer than its limit of 3 s"


def test_the_progress_limit_counts_from_the_last_sign() -> None:
    made = attempt(progress_ns=S // 2)
    assert made.overdue(10 * S + S // 2) == ""
    assert made.overdue(11 * S) == "showed no progress for 0.5 s"
    made.progress_ns = 11 * S
    assert made.overdue(11 * S + S // 2) == ""


def test_the_total_time_is_over_a_second_after_the_orchestrator_should_have_said_so() -> None:
    made = attempt()
    assert not made.expired(10**18)
    made.deadline_ns = 20 * S
    assert not made.expired(21 * S)
    assert made.expired(21 * S + 1)


def test_of_a_growing_text_the_end_is_kept() -> None:
    text = TailText(10)
    assert not text
    for number in range(1000):
        text.add(f"{number},")
    assert text.text == "7,998,999,"
    assert text.take() == "7,998,999,"
    assert not text
    text.add("x")
    assert text.text == "x"
