"""A plan comes from user code by way of a worker: whatever is in it, it is read or refused in one line."""

from __future__ import annotations

import pytest

from services.orchestrator.upstream import parse_expansion


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"$expansion":1}', b"\xff", b"[" * 60_000, b'{"$expansion":' * 5_000]
)
def test_what_is_no_plan_is_refused_in_one_line(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^it is no expansion .*: let the plan return an af.Expansion$"):
        parse_expansion(content)
