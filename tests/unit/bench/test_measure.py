"""What the measurements share says what it measures, and wrong results end them."""

from __future__ import annotations

import os
import time

import pytest

from bench.measure import check, cpu_s, ratio, spread


def test_figures_of_several_rounds_are_shown_by_their_spread_and_one_alone_as_it_is() -> None:
    assert spread([3.0, 1.0, 2.0], "{:.1f}") == "1.0 / 2.0 / 3.0"
    assert spread([1234.0], "{:,.0f}") == "1,234"


def test_a_ratio_is_of_the_medians_and_infinite_where_nothing_was_measured() -> None:
    assert ratio([8.0, 1.0, 6.0], [2.0, 3.0, 9.0]) == 2.0
    assert ratio([1.0], [0.0]) == float("inf")


@pytest.mark.parametrize("results", [[], [0, 1], [0, 1, 3], [0, 2, 1], [0, 1, 2, 3]])
def test_results_that_are_missing_wrong_or_too_many_end_the_measurement(results: list[int]) -> None:
    with pytest.raises(SystemExit, match="results are wrong"):
        check(results, 3)


def test_right_results_pass() -> None:
    check(iter(range(3)), 3)


def test_cpu_is_that_of_the_process_and_a_program_that_does_not_run_has_none() -> None:
    before = cpu_s([os.getpid()])
    ends = time.process_time() + 0.05
    while time.process_time() < ends:
        pass
    assert cpu_s([os.getpid()]) - before >= 0.03  # it counts in ticks of 10 ms
    assert cpu_s([0]) == 0.0
