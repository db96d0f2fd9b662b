"""Lengths of time are read as people write them."""

from __future__ import annotations

import datetime as dt
from fractions import Fraction

import numpy as np
import pytest

from antfarm.duration import nanoseconds, seconds
from antfarm.errors import InvalidArgument
from antfarm.text import show


@pytest.mark.parametrize(
    ("value", "length_s"),
    [
        ("10m", 600),
        ("1h30m", 5400),
        ("90", 90),
        ("250ms", 0.25),
        (2, 2),
        (0.5, 0.5),
        (dt.timedelta(days=1), 86400),
        ("1d 2h", 93600),
        (np.int64(5), 5),
        (np.float32(0.5), 0.5),
        (Fraction(1, 4), 0.25),
    ],
)
def test_lengths_are_read(value: float | str, length_s: float) -> None:
    assert (type(seconds(value)), seconds(value)) == (float, length_s)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "m",
        "10 parsecs",
        "-1s",
        -1,
        float("nan"),
        float("inf"),
        True,
        np.True_,
        np.int64(-1),
        np.float32("nan"),
        1j,
        None,
        "1m?",
        "1e300",
        10**400,
        "40000d",
    ],
)
def test_others_are_refused_in_one_line(value: object) -> None:
    with pytest.raises(InvalidArgument, match="length of time"):
        seconds(value)  # type: ignore[arg-type]


def test_nothing_stays_nothing() -> None:
    assert nanoseconds(None) is None
    assert nanoseconds("1ms") == 1_000_000


@pytest.mark.parametrize(
    ("length_s", "text"),
    [(0, "0s"), (0.004, "4ms"), (1.5, "1.5s"), (12.4, "12s"), (75, "1m15s"), (3600, "1h"), (90061, "1d1h")],
)
def test_lengths_are_shown(length_s: float, text: str) -> None:
    assert show(length_s) == text
