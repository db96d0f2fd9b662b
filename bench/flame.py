"""Samples of a program's stacks as a flame graph: each box a function, as wide as its share of the samples, above the one that called it. An SVG image.

The samples are lines as py-spy writes them with `--format raw`: the frames from the outermost one, separated by `;`, a space, how often that stack was
seen. A frame is `function (path)`, or `function (path:line)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from html import escape

WIDTH, MARGIN, TOP, ROW = 1200, 10, 66, 17
CHARACTER_PX = 6.1
"""About the width of one in a box."""
SHARE_MIN = 0.002
"""Of all samples; a box that is narrower is left out, with all above it."""
DESCRIPTION = "Each box is a function, as wide as its share of the samples, above the one that called it"
KINDS = (
    ("core", "#fb923c", ("services/orchestrator/core/",)),
    ("AntFarm beside it", "#fcd34d", ("services/", "antfarm/", "bench/")),
    ("gRPC and protobuf", "#93c5fd", ("grpc/", "google/", "src/python/grpcio/")),
    ("Python and others", "#d4d4d8", ("",)),
)
"""Whose code: name, colour and what the path begins with; the first that fits."""


@dataclass(slots=True)
class Box:
    """A function as it was called from the one below it."""

    name: str
    samples: int = 0
    above: dict[str, Box] = field(default_factory=dict)


def merge(lines: Iterable[str]) -> Box:
    """All stacks as one tree, whose root stands for all samples.

    >>> root = merge(["a;b 2", "a;c 1"])
    >>> root.samples, root.above["a"].above["b"].samples
    (3, 2)
    """
    root = Box("all")
    for line in lines:
        stack, _, count = line.strip().rpartition(" ")
        if not stack:
            continue
        root.samples += int(count)
        box = root
        for frame in stack.split(";"):
            box = box.above.setdefault(frame, Box(frame))
            box.samples += int(count)
    return root


def chart(root: Box, title: str) -> str:
    """The picture of a tree of at least one sample."""
    height = TOP + ROW * _depth(root, root.samples) + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="11" fill="#222">',
        f"<title>{escape(title)}</title>",
        f"<desc>{DESCRIPTION}</desc>",
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{MARGIN}" y="24" font-size="15" font-weight="bold">{escape(title)}</text>',
        *_legend(),
        *_boxes(root, MARGIN, height - MARGIN - ROW, (WIDTH - 2 * MARGIN) / root.samples, root.samples),
    ]
    return "\n".join([*parts, "</svg>", ""])


def _shown(box: Box, total: int) -> list[Box]:
    """What stands directly above a box, by name, so that pictures of two runs can be laid side by side."""
    return sorted(
        (each for each in box.above.values() if each.samples >= SHARE_MIN * total), key=lambda each: each.name
    )


def _depth(box: Box, total: int) -> int:
    return 1 + max((_depth(each, total) for each in _shown(box, total)), default=0)


def _boxes(box: Box, x: float, y: float, scale: float, total: int) -> Iterator[str]:
    """A box with its left and upper edge, and all above it; `scale` is pixels a sample."""
    function, _, path = box.name.partition(" (")
    path = path.rstrip(")")
    width = box.samples * scale
    colour = next(colour for _, colour, starts in KINDS if path.startswith(starts))
    yield f'<g><title>{escape(box.name)}: {box.samples / total:.1%}</title><rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW - 1}" fill="{colour}"/>'
    text = _fit(function, width)
    yield f'<text x="{x + 3:.1f}" y="{y + 12}">{escape(text)}</text></g>' if text else "</g>"
    for each in _shown(box, total):
        yield from _boxes(each, x, y - ROW, scale, total)
        x += each.samples * scale


def _fit(text: str, width: float) -> str:
    """What of a text has room in a box."""
    room = int((width - 6) / CHARACTER_PX)
    if len(text) <= room:
        return text
    return text[: room - 1] + "…" if room > 3 else ""


def _legend() -> Iterator[str]:
    x = MARGIN
    for name, colour, _ in KINDS:
        yield f'<rect x="{x}" y="38" width="12" height="12" fill="{colour}"/><text x="{x + 18}" y="48">{escape(name)}</text>'
        x += 160
