"""What goes wrong on which day: the knobs of the stand-in.

Responsible for naming the faults, for reading them from text, and for the seeded mix that resembles a season of the
real service. Knows nothing of sockets: `clouds.standin.server` acts them out. Two families: *flaws* belong to a
day's picture and stay (a swath gap, a black day); *mishaps* befall the requests for a day in the order they are
written, each as many times as its `*n` says, and then the answer is good; without `*n` for ever.
"""

import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from pathlib import Path

from clouds.errors import CloudsError
from clouds.standin.noise import seed_number


class Kind(StrEnum):
    """Every fault there is."""

    GAP = "gap"
    """Flaw: a black swath gap inclined 12 degrees."""
    NIGHT = "night"
    """Flaw: rows where the noon sun is down are black, also where the stand-in was told to leave the night out."""
    BLACK = "black"
    """Flaw: the whole picture is black."""
    OTHER_DAY = "otherday"
    """Flaw: the bytes of another day, `days` before (1)."""
    XML = "xml200"
    """HTTP 200 with an exception report."""
    LAYER_XML = "layer200"
    """HTTP 200 with a service exception report."""
    HTML = "html200"
    """HTTP 200 with an HTML page that blames the request."""
    GATEWAY = "gateway200"
    """HTTP 200 with a gateway's HTML page that says to try again."""
    JSON = "json200"
    """HTTP 200 with a JSON error under image/jpeg."""
    BAD_REQUEST = "http400"
    NOT_FOUND = "http404"
    THROTTLED = "http429"
    """With Retry-After, `retry_after` seconds (1)."""
    BROKEN = "http500"
    GATEWAY_DOWN = "http502"
    DOWN = "http503"
    """With Retry-After only where `retry_after` is given."""
    REDIRECT = "redirect308"
    """To the same address with a mark, where the picture is."""
    CUT = "cut"
    """60 % of the body under the Content-Length of all of it."""
    CUT_MATCHING = "cutmatch"
    """60 % of the body under a Content-Length to match."""
    DROP = "drop"
    """The connection ends without an answer."""
    DRIP = "drip"
    """The body comes in drops over `seconds` (2)."""
    WRONG_SIZE = "wrongsize"
    """Half as wide and high as asked."""
    PNG = "png"
    """PNG bytes under image/jpeg."""
    GZIP = "gzip"
    """A good picture under Content-Encoding: gzip."""
    EMPTY = "empty"
    """No body at all."""


FLAWS = (Kind.GAP, Kind.NIGHT, Kind.BLACK, Kind.OTHER_DAY)

_OPTIONS = {
    Kind.OTHER_DAY: "days",
    Kind.THROTTLED: "retry_after",
    Kind.DOWN: "retry_after",
    Kind.DRIP: "seconds",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault of one day."""

    kind: Kind
    times: int | None = None
    """How many requests it befalls; None: all."""
    option: float | None = None
    """The number of its `retry_after`, `seconds` or `days`; None: the kind's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultPlan:
    """Which day has which faults. Days are independent of the order in which they are asked for."""

    by_day: Mapping[date | None, tuple[Fault, ...]] = field(default_factory=dict)
    """Under None: for every day that has no entry of its own."""
    realistic_seed: int | None = None
    """Where given, days without an entry get the realistic mix of this seed."""

    def for_day(self, day: date) -> tuple[Fault, ...]:
        """Return the faults of `day`, in the order they befall its requests."""
        if day in self.by_day:
            return self.by_day[day]
        if self.realistic_seed is not None:
            return _realistic_month(self.realistic_seed, day.year, day.month).get(day.day, ()) + self.by_day.get(
                None, ()
            )
        return self.by_day.get(None, ())


def mishap(faults: Iterable[Fault], earlier: int) -> Fault | None:
    """Return what befalls a request for a day after `earlier` ones, None where it gets a good answer."""
    for fault in faults:
        if fault.kind in FLAWS:
            continue
        if fault.times is None or earlier < fault.times:
            return fault
        earlier -= fault.times
    return None


def parse_fault(text: str) -> Fault:
    """Read `KIND`, `KIND*TIMES`, `KIND*TIMES:OPTION=NUMBER`; raises CloudsError."""
    head, _, tail = text.strip().partition(":")
    name, star, times_text = head.partition("*")
    try:
        kind = Kind(name)
    except ValueError:
        raise CloudsError(f"fault {name!r} is unknown; there are {', '.join(Kind)}") from None
    if star and not (times_text.isascii() and times_text.isdigit() and int(times_text) > 0):
        raise CloudsError(f"fault {text!r}: after the * stands how often it happens, 1 or more")
    if star and kind in FLAWS:
        raise CloudsError(f"fault {text!r}: {name} belongs to the day's picture and stays, so it takes no *n")
    option: float | None = None
    if tail:
        key, _, number = tail.partition("=")
        if _OPTIONS.get(kind) != key:
            takes = f"{name} takes {_OPTIONS[kind]}=" if kind in _OPTIONS else f"{name} takes no option"
            raise CloudsError(f"fault {text!r}: {takes}")
        try:
            option = float(number)
        except ValueError:
            raise CloudsError(f"fault {text!r}: {number!r} is not a number") from None
        if not 0 <= option <= 3600:
            raise CloudsError(f"fault {text!r}: {number} is not within 0..3600")
    return Fault(kind=kind, times=int(times_text) if star else None, option=option)


def parse_day_faults(text: str) -> tuple[date | None, tuple[Fault, ...]]:
    """Read `DAY=FAULT[+FAULT...]`, where DAY is YYYY-MM-DD or * for every day; raises CloudsError."""
    day_text, equals, faults = text.partition("=")
    if not equals:
        raise CloudsError(f"fault {text!r}: write DAY=FAULT, for example 2021-01-05=http503*2")
    return _parse_day(day_text), tuple(parse_fault(one) for one in faults.split("+"))


def read_faults(path: Path) -> dict[date | None, tuple[Fault, ...]]:
    """Read a JSON object of day to fault or list of faults, in the words of `parse_fault`; raises CloudsError."""
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise CloudsError(f"faults file {path}: {error.strerror}") from None
    except ValueError as error:
        raise CloudsError(f"faults file {path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise CloudsError(f'faults file {path}: write an object such as {{"2021-01-05": ["http503*2", "gap"]}}')
    found: dict[date | None, tuple[Fault, ...]] = {}
    for day, faults in content.items():
        words = [faults] if isinstance(faults, str) else faults
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise CloudsError(f"faults file {path}: {day} has neither a fault nor a list of faults")
        found[_parse_day(day)] = tuple(parse_fault(word) for word in words)
    return found


def _parse_day(text: str) -> date | None:
    if text == "*":
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise CloudsError(f"day {text!r} is not YYYY-MM-DD, nor * for every day") from None


_EVERY_MONTH = (
    *("gap", "gap", "gap", "gap", "gap"),
    *("http503*1", "http503*2", "http429*1:retry_after=1", "http502*1", "cut*1", "cutmatch*1"),
    *("drop*1", "drip*1:seconds=2", "black", "redirect308", "gzip"),
)
_SOME_MONTHS = ("xml200", "otherday")
"""One of these a month, in turn: a day that never comes, and one that comes as the day before."""


def _realistic_month(seed: int, year: int, month: int) -> dict[int, tuple[Fault, ...]]:
    """Faults by day of month: chance chooses the days, so that any two months have every kind of fault."""
    days = list(range(1, 29))
    random.Random(seed_number(seed, "faults", year, month)).shuffle(days)
    words = (*_EVERY_MONTH, _SOME_MONTHS[(year * 12 + month) % len(_SOME_MONTHS)])
    return {day: (parse_fault(word),) for day, word in zip(days, words, strict=False)}
