"""How much work the worker asks for."""

from __future__ import annotations

import pytest

from antfarm.link.estimate import Estimate
from antfarm.link.window import WAITING_MAX, WindowSizer, prefetch_per_slot, worth_a_frame


@pytest.mark.parametrize(
    ("mean_s", "expected"),
    [(None, 1), (1e-6, WAITING_MAX // 2), (1e-3, 250), (0.01, 25), (0.25, 1), (0.999, 1), (1.0, 0), (60.0, 0)],
)
def test_a_quarter_of_a_second_of_work_waits_per_slot_and_long_tasks_do_not_wait(
    mean_s: float | None, expected: int
) -> None:
    assert prefetch_per_slot(mean_s, 100, 2) == expected


def test_what_waits_is_bounded_for_all_slots_together() -> None:
    assert prefetch_per_slot(1e-6, 100, 64) == WAITING_MAX // 64
    assert prefetch_per_slot(1e-6, 100, 2 * WAITING_MAX) == 1


def test_waiting_payloads_are_bounded_in_bytes() -> None:
    assert prefetch_per_slot(1e-6, 64 * 1024, 8) == 64
    assert prefetch_per_slot(1e-6, 64 * 1024, 4096) == 1


def test_the_window_learns_from_ends_and_sees_long_tasks_before_they_end() -> None:
    sizer = WindowSizer()
    assert sizer.window(4, 0.0) == 8
    sizer.ended(10_000 * 1000, 1000)
    assert sizer.window(4, 0.0) == 4 + 4 * 25
    assert sizer.window(4, 5.0) == 4
    assert sizer.window(4, 0.0) == 104


def test_tasks_that_take_a_part_of_a_slot_widen_it() -> None:
    sizer = WindowSizer()
    for _ in range(100):
        sizer.arrived(10, 0.1, 100)
    assert sizer.window(2, 5.0) == 20
    for _ in range(100):
        sizer.arrived(10, 2.0, 100)
    assert sizer.window(2, 5.0) == 2, "never below the slots, which the protocol demands"


def test_small_tasks_fill_the_slots_before_the_first_of_them_ends() -> None:
    sizer, held = WindowSizer(), 0
    while (room := sizer.window(2, 5.0) - held) > 0:
        sizer.arrived(room, 0.1, room)
        held += room
    assert held == 20


def test_an_estimate_follows_and_one_outlier_does_not_rule_it() -> None:
    estimate = Estimate()
    assert estimate.mean_s is None
    estimate.learn(100 * 500, 500)
    assert estimate.mean_s == pytest.approx(1e-4)
    estimate.learn(10_000, 1)
    assert estimate.mean_s is not None
    assert estimate.mean_s < 4e-4
    estimate.learn(2_000_000 * 300, 300)
    assert estimate.mean_s == pytest.approx(2.0, rel=0.01)


def test_small_changes_are_not_worth_a_frame_but_none_and_the_first_are() -> None:
    assert [worth_a_frame(wanted, 80) for wanted in (0, 69, 70, 80, 90, 91)] == [True, True, False, False, False, True]
    assert worth_a_frame(1, 0)
