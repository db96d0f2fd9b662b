"""The outbox file: what survives the process, and what a torn end or a full disk costs."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from antfarm.errors import InvalidArgument
from services.worker.runtime.spool import FileOutbox


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox"


@pytest.fixture
def outbox(path: Path) -> Iterator[FileOutbox]:
    made = FileOutbox(path)
    yield made
    made.close()


def reloaded(path: Path) -> list[bytes]:
    again = FileOutbox(path)
    try:
        return list(again.load())
    finally:
        again.close()


def test_messages_survive_in_order(outbox: FileOutbox, path: Path) -> None:
    messages = [b"one", b"", b"x" * 100_000]
    for message in messages:
        outbox.append(message)
    assert reloaded(path) == messages
    assert outbox.size_bytes == path.stat().st_size


def test_replace_keeps_exactly_what_it_is_given_and_nothing_empties_the_file(outbox: FileOutbox, path: Path) -> None:
    outbox.append(b"old")
    outbox.replace([b"new", b"er"])
    outbox.append(b"after")
    assert reloaded(path) == [b"new", b"er", b"after"]
    outbox.replace([])
    assert (path.stat().st_size, outbox.size_bytes) == (0, 0)
    assert [p.name for p in path.parent.iterdir()] == ["outbox"]


@pytest.mark.parametrize("cut", [1, 3, 8, 10])
def test_a_torn_end_is_left_out_and_later_messages_follow_what_is_whole(path: Path, cut: int) -> None:
    first = FileOutbox(path)
    first.append(b"whole")
    first.append(b"torn")
    first.close()
    os.truncate(path, path.stat().st_size - cut)
    second = FileOutbox(path)
    assert list(second.load()) == [b"whole"]
    second.append(b"next")
    second.close()
    assert reloaded(path) == [b"whole", b"next"]


def test_a_flipped_bit_is_noticed(outbox: FileOutbox, path: Path) -> None:
    outbox.append(b"good")
    outbox.append(b"evil")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert reloaded(path) == [b"good"]


def test_a_full_disk_is_complained_about_once_and_loses_nothing_that_was_written(
    outbox: FileOutbox, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    outbox.append(b"before")
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:5]))
    outbox.append(b"does not fit")
    outbox.append(b"neither")
    outbox.replace([b"nor this"])
    assert [record.message for record in caplog.records] == [f"{path}: no space left; reports are kept in memory only"]
    assert [p.name for p in path.parent.iterdir()] == ["outbox"], "what was written aside takes no room"
    monkeypatch.undo()
    outbox.append(b"after")
    assert reloaded(path) == [b"before", b"after"]


def test_what_a_process_that_died_wrote_aside_goes_at_the_next_start(path: Path) -> None:
    path.with_name("outbox.new").write_bytes(b"half of it")
    assert reloaded(path) == []
    assert [p.name for p in path.parent.iterdir()] == ["outbox"]


# ---- whose reports they are -------------------------------------------------------------------------------------------


def test_whose_reports_they_are_is_noted_beside_them_before_the_first_is_kept(outbox: FileOutbox, path: Path) -> None:
    assert outbox.queue == ""
    outbox.belong("")  # an orchestrator that says nothing
    outbox.append(b"somebody's")
    assert [p.name for p in path.parent.iterdir()] == ["outbox"]
    outbox.belong("farm A")
    outbox.belong("farm A")
    again = FileOutbox(path)
    assert (again.queue, list(again.load())) == ("farm A", [b"somebody's"])
    again.close()


def test_a_note_that_cannot_be_written_stops_nothing_and_keeps_no_reports_under_a_wrong_name(
    outbox: FileOutbox, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    outbox.belong("farm A")
    monkeypatch.setattr(os, "fsync", broken)
    for _ in range(2):
        outbox.belong("farm B")
        outbox.append(b"of B")
        outbox.replace([b"of B"])
    line = "Input/output error; whose reports they are cannot be noted, so they are kept in memory only"
    assert [record.message for record in caplog.records] == [f"{path}: {line}"]
    assert reloaded(path) == []
    monkeypatch.undo()
    outbox.belong("farm B")
    outbox.append(b"of B")
    again = FileOutbox(path)
    assert (again.queue, list(again.load())) == ("farm B", [b"of B"])
    again.close()


def test_a_file_that_cannot_be_emptied_keeps_its_name_and_takes_nothing_of_another_queue(
    outbox: FileOutbox, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(fd: int, size: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    outbox.belong("farm A")
    outbox.append(b"of A")
    monkeypatch.setattr(os, "ftruncate", broken)
    outbox.replace(())
    outbox.belong("farm B")
    outbox.append(b"of B")
    again = FileOutbox(path)
    assert (again.queue, list(again.load())) == ("farm A", [b"of A"])
    again.close()
    monkeypatch.undo()
    outbox.belong("farm B")  # at the next Welcome
    outbox.append(b"of B")
    again = FileOutbox(path)
    assert (again.queue, list(again.load())) == ("farm B", [b"of B"])
    again.close()


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe\xfd"])
def test_a_note_that_says_nothing_is_as_good_as_none(path: Path, content: bytes) -> None:
    path.with_name("queue.json").write_bytes(content)
    outbox = FileOutbox(path)
    assert outbox.queue == ""
    outbox.close()


CALLS = ("write", "ftruncate", "replace", "open")


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_a_disk_that_fails_raises_nothing_and_is_complained_about_once(
    outbox: FileOutbox,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    call: str,
    short: bool,
) -> None:
    """With `short` writes stop half-way as well, so that a torn message stands in front of later ones until it can be cut off."""
    outbox.append(b"before")

    def broken(*args: object, **more: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    write = os.write
    if short:
        monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:5]))
    monkeypatch.setattr(os, call, broken)
    for _ in range(3):
        outbox.append(b"meanwhile")
        outbox.replace([b"compact"])
    if call == "ftruncate":
        outbox.replace([])
    lines = [record.message for record in caplog.records]
    assert len(lines) == len(set(lines)) >= 1, lines
    monkeypatch.undo()
    kept = [] if short or call == "write" else reloaded(path)[1:]
    outbox.append(b"after")
    assert reloaded(path)[-1] == b"after"
    assert reloaded(path)[:-1] in ([b"before", *kept], [b"compact"])


@pytest.mark.parametrize("call", ["open", "read_bytes"])
def test_a_file_that_cannot_be_read_at_the_start_is_told_in_one_line(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def broken(*args: object, **more: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os if call == "open" else Path, call, broken)
    with pytest.raises(InvalidArgument, match=r"outbox: Input/output error; reports may be in it"):
        reloaded(path)
