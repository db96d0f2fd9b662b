"""Names and directories of workers."""

from __future__ import annotations

import os
import pwd
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from antfarm.errors import InvalidArgument
from services.worker.runtime.place import Place, claim, default_state

NOBODY = 65534


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


def test_a_user_without_a_home_is_told_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(InvalidArgument, match=r"^this user has no home directory: give --state$"):
        default_state({})
    assert default_state({"XDG_STATE_HOME": "/var/lib"}) == Path("/var/lib/antfarm/worker")


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


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Path]:
    """A directory of somebody whom permissions bind: root is somebody else meanwhile."""
    if os.geteuid() != 0:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory() as directory:
        os.chown(directory, NOBODY, NOBODY)
        os.seteuid(NOBODY)
        try:
            yield Path(directory)
        finally:
            os.seteuid(0)


def left_read_only(place: Place) -> Path:
    """What `go mod download` leaves in a task's scratch, and a link to what is not the worker's: that directory."""
    place.sweep()
    outside = place.directory / "outside"
    outside.mkdir()
    outside.chmod(0o500)
    inner = place.scratch / "7-1" / "5" / "mod" / "cache"
    inner.mkdir(parents=True)
    (inner / "file").write_text("")
    (inner / "link").symlink_to(outside)
    for directory, mode in ((inner, 0o555), (inner.parent, 0o000), (place.scratch, 0o500)):
        directory.chmod(mode)
    return outside


def test_the_sweep_removes_directories_that_tasks_left_read_only(own: Path) -> None:
    place = claim(own, "w")
    outside = left_read_only(place)
    place.sweep()
    assert list(place.scratch.iterdir()) == []
    assert outside.stat().st_mode & 0o777 == 0o500
    os.close(place.lock_fd)


def test_a_sweep_that_cannot_be_done_is_one_clear_line(own: Path) -> None:
    place = claim(own, "w")
    place.sweep()
    place.directory.chmod(0o500)
    with pytest.raises(InvalidArgument) as caught:
        place.sweep()
    place.directory.chmod(0o700)
    assert str(caught.value) == (
        f"{place.scratch} cannot be removed: Permission denied; remove it, or give another --state"
    )
    os.close(place.lock_fd)


def test_state_follows_xdg() -> None:
    assert default_state({"XDG_STATE_HOME": "/x"}) == Path("/x/antfarm/worker")
    assert default_state({}) == Path.home() / ".local/state/antfarm/worker"
