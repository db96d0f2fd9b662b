"""Flame graphs: stacks are merged, boxes are as wide as their share, narrow ones are left out."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from bench import flame

STACKS = [
    "main (services/orchestrator/driver.py);turn (services/orchestrator/core/engine.py) 600",
    "main (services/orchestrator/driver.py);read (grpc/aio/_call.py) 300",
    "wait (threading.py) 99",
    "main (services/orchestrator/driver.py);rare (json/encoder.py) 1",
]


def test_stacks_are_merged_from_the_outermost_frame():
    root = flame.merge([*STACKS, ""])
    main = root.above["main (services/orchestrator/driver.py)"]
    assert root.samples == 1000
    assert main.samples == 901
    assert {name.partition(" ")[0]: box.samples for name, box in main.above.items()} == {
        "turn": 600,
        "read": 300,
        "rare": 1,
    }


def test_a_box_is_as_wide_as_its_share_and_stands_on_its_caller():
    boxes = drawn(flame.chart(flame.merge(STACKS), "who <& what"))
    whole = flame.WIDTH - 2 * flame.MARGIN
    assert {name: round(float(box["width"]) / whole, 3) for name, box in boxes.items()} == {
        "all: 100.0%": 1.0,
        "main (services/orchestrator/driver.py): 90.1%": 0.901,
        "turn (services/orchestrator/core/engine.py): 60.0%": 0.6,
        "read (grpc/aio/_call.py): 30.0%": 0.3,
        "wait (threading.py): 9.9%": 0.099,
    }, "a thousandth is left out"
    main, turn = (boxes[name] for name in boxes if re.match("main|turn", name))
    assert int(main["y"]) - int(turn["y"]) == flame.ROW
    assert float(main["x"]) <= float(turn["x"])
    assert float(turn["x"]) + float(turn["width"]) <= float(main["x"]) + float(main["width"]) + 0.1


def test_the_colour_tells_whose_code_it_is():
    boxes = drawn(flame.chart(flame.merge(STACKS), "all"))
    colours = {name: colour for name, colour, _ in flame.KINDS}
    assert {name.partition(" ")[0]: box["fill"] for name, box in boxes.items() if name[:3] != "all"} == {
        "turn": colours["core"],
        "main": colours["AntFarm beside it"],
        "read": colours["gRPC and protobuf"],
        "wait": colours["Python and others"],
    }


def drawn(picture: str) -> dict[str, dict[str, str]]:
    """The boxes of a picture by what stands in their tips."""
    svg = "{http://www.w3.org/2000/svg}"
    groups = ElementTree.fromstring(picture).iter(f"{svg}g")
    return {group.findtext(f"{svg}title") or "": group.find(f"{svg}rect").attrib for group in groups}
