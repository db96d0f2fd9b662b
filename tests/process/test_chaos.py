"""Short forms of the chaos series (`make chaos`): real programs under fire, judged by the history checker."""

from __future__ import annotations

from pathlib import Path

import pytest
from chaos import SERIES, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("name", [name for name, series in SERIES.items() if series[1]])
def test_nothing_is_lost_recorded_twice_or_repeated_without_excuse(name: str, tmp_path: Path) -> None:
    report = run(name, SERIES[name][1], tmp_path / "series")
    print(f"{name}: {report}")  # noqa: T201 - the line of the checker
    if report.skipped:
        pytest.skip(report.skipped)
    assert report.clean, f"{report}\n{(tmp_path / 'series' / 'programs.log').read_text()}"
