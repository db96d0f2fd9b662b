"""One line for each benchmark at the end: microseconds a task."""

from __future__ import annotations

from typing import Any

import pytest

TASKS = 256
"""In each batch that is measured."""


@pytest.fixture
def per_task(benchmark: Any, request: pytest.FixtureRequest) -> Any:
    """Measure a function of `TASKS` tasks; called as pytest-benchmark's `pedantic`."""

    def measure(function: Any, setup: Any = None, rounds: int = 200) -> None:
        benchmark.pedantic(function, setup=setup, rounds=rounds, warmup_rounds=5)
        stats = benchmark.stats.stats
        lines = request.config.stash.setdefault(LINES, [])
        lines.append(
            (request.node.name.removeprefix("test_"), *(x / TASKS * 1e6 for x in (stats.min, stats.median, stats.q3)))
        )

    return measure


LINES: pytest.StashKey[list[tuple[str, float, float, float]]] = pytest.StashKey()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The table."""
    terminalreporter.write_line("\n| us/task, in batches of 256 | min | median | third quartile |\n|---|---|---|---|")
    for name, *figures in config.stash.get(LINES, []):
        terminalreporter.write_line(f"| {name.replace('_', ' ')} | " + " | ".join(f"{f:.2f}" for f in figures) + " |")
