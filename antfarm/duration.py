"""Lengths of time as people write them: seconds as a number, a `timedelta`, or text such as "10m" or "1h30m"."""

from __future__ import annotations

import datetime as dt
import math
import re
from numbers import Real

from antfarm.errors import InvalidArgument
from antfarm.model import DURATION_NS_MAX, SECOND_NS

Duration = float | int | str | dt.timedelta
"""What every public parameter for a length of time takes. A plain number means seconds."""

SECONDS_MAX = DURATION_NS_MAX / SECOND_NS
"""A hundred years, as long as the protocol goes."""
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def seconds(value: Duration) -> float:
    """The length in seconds. InvalidArgument for a negative one or one that cannot be read.

    >>> seconds("1h30m")
    5400.0
    """
    if isinstance(value, dt.timedelta):
        found = value.total_seconds()
    elif isinstance(value, str):
        found = _parse(value)
    elif isinstance(value, bool) or not isinstance(value, Real):
        raise InvalidArgument(f"{value!r} is not a length of time: give seconds, a timedelta or text such as '10m'")
    else:
        found = float(min(value, 2 * SECONDS_MAX))  # an int may be beyond any float
    if not 0 <= found <= SECONDS_MAX:
        raise InvalidArgument(f"{str(value)[:40]!r} is not a length of time: give zero to a hundred years")
    return found


def nanoseconds(value: Duration | None) -> int | None:
    """The length in nanoseconds; None stays None."""
    return None if value is None else round(seconds(value) * 1_000_000_000)


def _parse(text: str) -> float:
    compact = text.replace(" ", "").lower()
    try:
        return float(compact)
    except ValueError:
        pass
    parts = _PART.findall(compact)
    if not parts or "".join(number + unit for number, unit in parts) != compact:
        raise InvalidArgument(f"{text!r} is not a length of time: write e.g. '90s', '10m' or '1h30m'")
    return math.fsum(float(number) * _UNITS_S[unit] for number, unit in parts)
