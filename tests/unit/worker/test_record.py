"""What a child may say."""

from __future__ import annotations

import math
from typing import Any

import pytest

from services.worker.child.record import check_failure, check_progress, check_success


@pytest.mark.parametrize(
    "args",
    [
        (1, "text"),
        (1.5, b""),
        (True, b""),
        (-1, b""),
        (1 << 62, b""),
        (1, b"x" * 65537),
        (1, b"", [("k", 1, b"short")]),
        (1, b"", [("k", "1", b"d" * 32)]),
        (1, b"", [("k" * 513, 1, b"d" * 32)]),
        (1, b"", [("k", 1)]),
        (1, b"", [("k", 1, b"d" * 32)] * 1_001),
    ],
)
def test_what_is_no_success_is_refused(args: tuple[Any, ...]) -> None:
    with pytest.raises((TypeError, ValueError)):
        check_success(*args)


def test_a_success_passes() -> None:
    check_success(0, b"")
    check_success(5, b"x" * 65536, [["k", 1, b"d" * 32]])


@pytest.mark.parametrize(
    "args", [(1, 99, "", "", ""), (1, 2, b"", "", ""), (1, 2, "", None, ""), (-1, 2, "", "", ""), (1, 2, "", "")]
)
def test_what_is_no_failure_is_refused(args: tuple[Any, ...]) -> None:
    with pytest.raises((TypeError, ValueError)):
        check_failure(*args)


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.5, 0.5), (None, None), (7, 1.0), (-1, 0.0), (math.nan, None), (math.inf, 1.0)]
)
def test_progress_is_a_fraction_or_nothing(fraction: Any, expected: float | None) -> None:
    assert check_progress(fraction, "x") == (expected, "x")


def test_progress_text_is_cut_at_whole_characters() -> None:
    assert check_progress(0, "ü" * 200) == (0.0, "ü" * 128)
