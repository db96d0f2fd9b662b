"""The pages under docs/ keep their headings, their links lead somewhere, and their pictures are whole."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    p
    for folder in ("docs", "deploy", "examples")
    for p in (ROOT / folder).rglob("*.md")
    if "node_modules" not in p.parts
)


def test_the_pattern_is_explained_under_its_headings() -> None:
    text = (ROOT / "docs" / "antfarm.md").read_text(encoding="utf-8")
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert [h for h in headings if h.startswith("## ")] == [
        "## Terminology",
        "## Scheduling of work",
        "## Load balancing",
        "## Fault tolerance",
        "## Different ways to parallelise",
    ]
    fault = headings.index("## Fault tolerance")
    assert headings[fault + 1 : fault + 3] == ["### Hardware failures", "### Software issues"]
    terms = text.split("## Terminology")[1].split("\n## ")[0]
    words = ["Node", "Orchestrator", "Worker", "Storage", "Transient Storage", "Work Queue", "Report Queue", "Pipeline"]
    assert [word for word in words if f"\n**{word}.**" not in terms] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [t for t in re.findall(r"\]\(([^)\s]+)\)", text) if not t.startswith(("http://", "https://", "#"))]
    assert [t for t in targets if not (page.parent / t.partition("#")[0]).exists()] == []


@pytest.mark.parametrize("picture", sorted((ROOT / "docs").glob("*.svg")), ids=lambda p: p.name)
def test_pictures_are_whole_and_say_what_they_show(picture: Path) -> None:
    root = ElementTree.parse(picture).getroot()
    namespace = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{namespace}svg"
    assert root.findtext(f"{namespace}title")
    assert root.findtext(f"{namespace}desc")
    assert "href" not in picture.read_text(encoding="utf-8")  # nothing is loaded from elsewhere
