"""How the report writes things: percentages, days, foreign text, data inside a page.

Responsible for the wording and the quoting of single values. Must not know of sections or pictures.
"""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import date


def data_url(data: bytes, kind: str) -> str:
    """Return bytes of a media type as a URL that holds them."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def script_json(value: object) -> str:
    """Return JSON that cannot end the script element it stands in."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return (
        text.replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("&", "\\u0026")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )


def percent(fraction: float | None) -> str:
    """Write a fraction as per cent with one decimal; a dash where there is none, for that is not 0."""
    return "–" if fraction is None else f"{100 * fraction:.1f}\u202f%"


def long_day(day: date) -> str:
    """Write a day with its month in full."""
    return f"{day.day} {day:%B} {day.year}"


def some_days(days: Sequence[date]) -> str:
    """Name the days, of many the first ones."""
    named = ", ".join(day.isoformat() for day in days[:12])
    return named if len(days) <= 12 else f"{named} and {len(days) - 12} more"


def plain(value: object) -> str:
    """Write a value of the provenance, nested or not, as one line of text. It is not escaped yet."""
    match value:
        case Mapping():
            return ", ".join(f"{name} {plain(part)}" for name, part in value.items())
        case str():
            return value
        case Iterable():
            return ", ".join(plain(part) for part in value)
        case _:
            return str(value)
