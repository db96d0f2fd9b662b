"""A record as a Markdown table, and as a picture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from html import escape

from bench.peers.record import OURS, Record

COLUMNS = (
    ("tasks/s, 10,000", "{:,.0f}"),
    ("tasks/s, 100,000", "{:,.0f}"),
    ("tasks/s, 1,000,000", "{:,.0f}"),
    ("CPU us/task", "{:,.0f}"),
    ("scheduler's CPU us/task", "{:,.1f}"),
    ("round trip ms p50", "{:.2f}"),
    ("round trip ms p99", "{:.2f}"),
    ("wall / ideal, 10 ms tasks", "{:.2f}"),
    ("s lost by a killed worker", "{:.1f}"),
    ("bytes per queued task", "{:,.0f}"),
    ("start s", "{:.2f}"),
)


def markdown(record: Record) -> str:
    """Medians, with minimum and maximum where there are three rounds or more, then the ratios."""
    columns = [column for column in COLUMNS if any(column[0] in values for values in record.values.values())]
    lines = [
        f"Revision {record.revision}, {record.date}, {record.machine}; {record.rounds} interleaved rounds: median (min – max).",
        f"A fixed loop took {min(record.noise_ms):.0f} to {max(record.noise_ms):.0f} ms meanwhile, median {statistics.median(record.noise_ms):.0f}.",
        "",
        "| | durable | " + " | ".join(name for name, _ in columns) + " |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for contender, values in record.values.items():
        cells = [_cell(values, name, form) for name, form in columns]
        lines.append(f"| {contender} | {record.durable.get(contender, '')} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "How many times AntFarm is better (below 1: worse):",
        "",
        "| | " + " | ".join(name for name, _ in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for contender in record.values:
        if contender != OURS:
            ratios = [record.ratio(contender, name) for name, _ in columns]
            lines.append(f"| {contender} | " + " | ".join("" if r is None else _short(r) for r in ratios) + " |")
    lines += [f"\n{contender}: {'; '.join(trouble)}" for contender, trouble in record.trouble.items() if trouble]
    return "\n".join(lines)


def _cell(values: dict[str, list[float]], name: str, form: str) -> str:
    mark = ""
    found = values.get(name)
    if not found and name.startswith("tasks/s"):
        found, mark = values.get("tasks/s, fewer") if name == COLUMNS[0][0] else None, " *"
    if not found:
        return ""
    middle = form.format(statistics.median(found)) + mark
    if len(found) < 3:
        return middle
    return f"{middle} ({form.format(min(found))} – {form.format(max(found))})"


def _short(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.2g}"


WIDTH, ROW, LEFT = 860, 26, 300


def chart(record: Record, measure: str) -> str:
    """One measure as bars on a logarithmic scale: an SVG image."""
    bars = [(name, value) for name in record.values if (value := record.median(name, measure)) is not None]
    bars.sort(key=lambda bar: -bar[1])
    low = 10 ** math.floor(math.log10(min(value for _, value in bars)))
    high = max(value for _, value in bars)
    scale = (WIDTH - LEFT - 110) / math.log10(high / low)
    height = ROW * len(bars) + 50
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">',
        f"<title>{escape(measure)}</title>",
        f"<desc>{escape('; '.join(f'{name}: {value:,.0f}' for name, value in bars))}</desc>",
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="12" y="22" font-size="15" fill="#222">{escape(measure)} (logarithmic; {escape(record.date[:10])}, {escape(record.machine)})</text>',
    ]
    parts += [line for row, bar in enumerate(bars) for line in _bar(row, bar, low, scale)]
    return "\n".join([*parts, "</svg>", ""])


def _bar(row: int, bar: tuple[str, float], low: float, scale: float) -> Sequence[str]:
    name, value = bar
    y = 40 + row * ROW
    length = max(math.log10(value / low) * scale, 2)
    colour = "#c2410c" if name == OURS else "#64748b"
    return (
        f'<text x="{LEFT - 10}" y="{y + 14}" text-anchor="end" fill="#222">{escape(name)}</text>',
        f'<rect x="{LEFT}" y="{y}" width="{length:.0f}" height="{ROW - 8}" fill="{colour}"/>',
        f'<text x="{LEFT + length + 8:.0f}" y="{y + 14}" fill="#222">{value:,.0f}</text>',
    )
