"""Every scenario goes as it is written down. `pytest tests/scenarios --rewrite` writes down how they go now: read the difference before you commit it."""

from __future__ import annotations

from pathlib import Path

import pytest
from scenario import Scenario

SCRIPTS = sorted(Path(__file__).parent.glob("*.txt"))


def played(script: str) -> str:
    """The script with what came of its commands."""
    scenario = Scenario()
    lines: list[str] = []
    for line in script.splitlines():
        if line.startswith(" "):
            continue
        lines.append(line)
        if line and not line.startswith("#"):
            try:
                lines += [f"    {result}" for result in scenario.run(line)]
            except Exception as error:
                error.add_note("\n".join(["in this scenario:", *lines[-20:]]))
                raise
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scenario(path: Path, pytestconfig: pytest.Config) -> None:
    script = path.read_text()
    now = played(script)
    if pytestconfig.getoption("--rewrite", default=False):
        path.write_text(now)
    else:
        assert now.splitlines() == script.splitlines(), f"{path.name} goes otherwise; --rewrite shows how"
