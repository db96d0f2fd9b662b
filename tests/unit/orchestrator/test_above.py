"""The note on the orchestrator above, over restarts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.orchestrator.runtime.above import Above


def test_what_was_kept_is_read_by_the_next_process(tmp_path: Path) -> None:
    above = Above(tmp_path)
    assert above.orchestrator_id == ""
    above.keep(orchestrator_id="a")
    assert (above.orchestrator_id, Above(tmp_path).orchestrator_id) == ("a", "a")
    above.keep(storage_address="s")  # beside the other
    again = Above(tmp_path)
    assert (again.orchestrator_id, again.storage_address) == ("a", "s")


def test_what_could_not_be_kept_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    above = Above(tmp_path)
    above.keep(orchestrator_id="a")
    monkeypatch.setattr(os, "fsync", _full)
    with pytest.raises(OSError, match="no space"):
        above.keep(orchestrator_id="b")
    assert (above.orchestrator_id, Above(tmp_path).orchestrator_id) == ("a", "a")


def _full(fd: int) -> None:
    raise OSError("no space")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"orchestrator_id": 7}', b'{"later": "x"}'])
def test_a_note_that_is_none_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "upstream.json").write_bytes(content)
    above = Above(tmp_path)
    assert above.orchestrator_id == ""
    above.keep(orchestrator_id="a")
    assert Above(tmp_path).orchestrator_id == "a"
