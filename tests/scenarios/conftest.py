"""The option that writes what happens into the scenarios, for a person to read before it is committed."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite", action="store_true", help="write what happens into the scenarios instead of comparing"
    )
