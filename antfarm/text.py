"""How values look to people: lengths of time, and words of strangers that must be safe on a terminal."""

from __future__ import annotations

from typing import TypeGuard


def is_text(value: object) -> TypeGuard[str]:
    """Whether the value is a text that can be sent. Lone surrogates cannot, which Python makes of words that are not UTF-8.

    >>> is_text("text"), is_text(3), is_text("\\udc80")
    (True, False, False)
    """
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def show(length_s: float) -> str:
    """Short text for people.

    >>> show(5400)
    '1h30m'
    """
    if length_s < 10:
        return (
            f"{length_s:.2f}".rstrip("0").rstrip(".") + "s"
            if length_s >= 0.01 or length_s == 0
            else f"{length_s * 1000:.2g}ms"
        )
    whole = round(length_s)
    days, hours, minutes, rest = whole // 86400, whole // 3600 % 24, whole // 60 % 60, whole % 60
    parts = [f"{n}{unit}" for n, unit in ((days, "d"), (hours, "h"), (minutes, "m"), (rest, "s")) if n]
    return "".join(parts[:2])


def escape(text: str, *, keep: str = "") -> str:
    """Text that is safe on a terminal: what is not printable as \\x1b and the like, but for the characters in `keep`."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "backslashreplace").decode("ascii")


def lines(text: str) -> str:
    """Text of several lines that is safe on a terminal."""
    return escape(text, keep="\n\t")


def one_line(text: str, most: int = 300) -> str:
    """Text of a stranger inside a sentence: one safe line of at most `most` characters."""
    line = escape(" ".join(text[: 4 * most].split()))
    return line if len(line) <= most else line[: most - 3] + "..."
