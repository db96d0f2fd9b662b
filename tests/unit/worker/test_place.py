"""Names and directories of workers."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from antfarm.errors import InvalidArgument
from services.worker.runtime.place import claim, default_state


def test_workers_of_one_node_get_the_first_free_names_and_free_ones_are_used_again(tmp_path: Path) -> None:
    places = [claim(tmp_path) for _ in range(3)]
    host = socket.gethostname()
    assert [place.worker_id for place in places] == [f"{host}-{n}" for n in (1, 2, 3)]
    os.close(places[1].lock_fd)
    again = claim(tmp_path)
    assert again.worker_id == f"{host}-2"
    for place in (places[0], places[2], again):
        os.close(place.lock_fd)


def test_a_given_name_can_be_had_once(tmp_path: Path) -> None:
    place = claim(tmp_path, "rack7.node-3")
    assert place.directory == tmp_path / "rack7.node-3"
    with pytest.raises(InvalidArgument, match=r"^--worker-id rack7.node-3: another process has this name; stop it or"):
        claim(tmp_path, "rack7.node-3")
    os.close(place.lock_fd)


@pytest.mark.parametrize("name", ["a b", "a/b", "..", "x" * 129, "ü"])
def test_a_malformed_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match="--worker-id"):
        claim(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        InvalidArgument, match=r"^--state .*file: Not a directory; give a directory that can be written$"
    ):
        claim(tmp_path / "file")


def test_the_sweep_removes_what_attempts_left_and_keeps_the_outbox(tmp_path: Path) -> None:
    place = claim(tmp_path, "w")
    place.sweep()
    (place.scratch / "1-1").mkdir()
    (place.inputs / "x").write_text("")
    place.outbox.write_bytes(b"reports")
    place.sweep()
    assert [p.name for p in place.scratch.iterdir()] == []
    assert [p.name for p in place.inputs.iterdir()] == []
    assert place.outbox.read_bytes() == b"reports"
    os.close(place.lock_fd)


def test_state_follows_xdg() -> None:
    assert default_state({"XDG_STATE_HOME": "/x"}) == Path("/x/antfarm/worker")
    assert default_state({}) == Path.home() / ".local/state/antfarm/worker"
