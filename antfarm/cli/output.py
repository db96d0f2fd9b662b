"""How the command line shows things: tables for people, JSON for programs, nothing that a terminal could take for a command.

Names, causes and texts come from strangers: in everything shown for people control characters are escaped; JSON escapes them anyway.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import IO, Any

from antfarm.model import Explanation
from antfarm.text import escape, lines

FORMATS = ("table", "json", "jsonl", "quiet")

_COLOURS = {
    "SUCCEEDED": "32",
    "READY": "32",
    "FAILED": "31",
    "DEAD_LETTER": "31",
    "LOST": "31",
    "CANCELLED": "33",
    "EXPIRED": "33",
    "SUSPECT": "33",
    "DRAINING": "33",
    "QUARANTINED": "31",
    "RESERVED": "33",
    "PAUSED": "33",
    "RUNNING": "36",
    "ACTIVE": "36",
}


def coloured(stream: IO[str]) -> bool:
    """Whether colours are wanted there."""
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


class Output:
    """Shows rows on standard output in the form that was asked for."""

    def __init__(self, form: str = "table") -> None:
        self.form = form
        self._colour = coloured(sys.stdout)

    def rows(self, rows: Iterable[Mapping[str, Any]], *, empty: str = "") -> None:
        """Many things: a table with a head, or one JSON object each. quiet: the first column alone."""
        if self.form == "jsonl":
            for row in rows:
                print(json.dumps(row), flush=True)
        elif self.form == "json":
            print(json.dumps(list(rows), indent=2))
        elif self.form == "quiet":
            for row in rows:
                print(escape(str(next(iter(row.values())))), flush=True)
        else:
            self._table(list(rows), empty)

    def row(self, row: Mapping[str, Any]) -> None:
        """One thing: a line per field, or one JSON object."""
        if self.form in ("json", "jsonl"):
            print(json.dumps(row, indent=2 if self.form == "json" else None))
        elif self.form == "quiet":
            print(escape(str(next(iter(row.values())))))
        else:
            shown = {name: value for name, value in row.items() if value not in (None, "", [], {})}
            width = max(map(len, shown), default=0)
            for name, value in shown.items():
                text = lines(_text(value)).rstrip("\n").replace("\n", "\n" + " " * (width + 2))
                print(f"{name:<{width}}  {self._painted(text)}")

    def explanation(self, name: str, explanation: Explanation) -> None:
        """Words about one thing, or an object with its findings. quiet: the findings without their reasons."""
        if self.form in ("json", "jsonl"):
            self.row({"name": name, "findings": [asdict(finding) for finding in explanation.findings]})
        elif self.form == "quiet":
            print("\n".join(escape(finding.what) for finding in explanation.findings))
        else:
            print(lines(str(explanation)))

    def _table(self, rows: Sequence[Mapping[str, Any]], empty: str) -> None:
        if not rows:
            if empty:
                print(empty, file=sys.stderr)
            return
        names = list(rows[0])
        cells = [[escape(_text(row[name])) for name in names] for row in rows]
        numbers = [all(isinstance(row[name], int | float) or row[name] is None for row in rows) for name in names]
        widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]
        for i, line in enumerate([[name.upper().replace("_", " ") for name in names], *cells]):
            padded = [
                cell.rjust(width) if number else cell.ljust(width)
                for cell, width, number in zip(line, widths, numbers, strict=True)
            ]
            print("  ".join(self._painted(cell) if i else cell for cell in padded).rstrip())

    def _painted(self, cell: str) -> str:
        code = _COLOURS.get(cell.strip()) if self._colour else None
        return f"\x1b[{code}m{cell}\x1b[0m" if code else cell


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    if isinstance(value, dict):
        return ", ".join(f"{key}={_text(item)}" for key, item in value.items())
    return str(value)
