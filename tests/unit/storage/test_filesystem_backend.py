"""The file backend on its disk: what lies there, in which order it gets there, and what happens when the disk or somebody else interferes."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from antfarm.errors import AntFarmError, BlobNotFound, Conflict, DataLoss, DiskFull, Unavailable
from services.storage.backends import filestream, tree
from services.storage.backends.base import Written
from services.storage.backends.filesystem import FilesystemBackend


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[FilesystemBackend]:
    made = FilesystemBackend.open(tmp_path / "s")
    yield made
    await made.close()


async def put(backend: FilesystemBackend, key: str, content: bytes = b"content") -> Written:
    writer = await backend.open_write(key)
    try:
        await writer.write(content)
        return await writer.commit()
    finally:
        await writer.abort()


async def get(backend: FilesystemBackend, key: str) -> bytes:
    reader = await backend.open_read(key)
    pieces = []
    try:
        while piece := await reader.read():
            pieces.append(piece)
    finally:
        await reader.close()
    return b"".join(pieces)


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# ---- what lies on the disk --------------------------------------------------------------------------------------------


async def test_the_content_can_be_cut_out_of_the_file_without_our_program(
    backend: FilesystemBackend, tmp_path: Path
) -> None:
    """`head -c SIZE` gives the content back; nothing else is left in the directory."""
    await put(backend, "a/b", b"content")
    await put(backend, "a", b"a blob where a directory is")
    assert files(tmp_path / "s") == ["blobs", "blobs/a", "blobs/a/b@", "blobs/a@", "lock", "storage.json", "tmp"]
    assert (tmp_path / "s/blobs/a/b@").read_bytes().startswith(b"content")


async def test_empty_directories_go_with_their_last_blob(backend: FilesystemBackend, tmp_path: Path) -> None:
    """A delete leaves no skeleton of directories, and spares those that lead to others."""
    for key in ("a/b/c/d", "a/x", "l/" + "m" * 450):
        await put(backend, key)
        assert await backend.delete(key) or key
        await put(backend, key)
    await backend.delete("a/b/c/d")
    await backend.delete("l/" + "m" * 450)
    assert files(tmp_path / "s/blobs") == ["a", "a/x@"]


async def test_every_flipped_byte_is_found(backend: FilesystemBackend, tmp_path: Path) -> None:
    """No byte of a blob's file can change without a read becoming DataLoss; verify finds it as well."""
    content = bytes(range(251))
    await put(backend, "k", content)
    path = tmp_path / "s/blobs/k@"
    image = path.read_bytes()
    for position in range(len(image)):
        path.write_bytes(image[:position] + bytes([image[position] ^ (1 << position % 8)]) + image[position + 1 :])
        with pytest.raises(DataLoss, match="blob k is damaged"):
            await get(backend, "k")
        with pytest.raises(DataLoss, match="blob k is damaged"):
            await backend.verify("k")
    path.write_bytes(image)
    assert await get(backend, "k") == content


async def test_every_cut_and_every_addition_is_found(backend: FilesystemBackend, tmp_path: Path) -> None:
    """A file that lost its end, or got something behind it, is DataLoss already when asked for its size."""
    await put(backend, "k", b"0123456789")
    path = tmp_path / "s/blobs/k@"
    image = path.read_bytes()
    for broken in [*(image[:length] for length in range(len(image))), image + b"x", b"x" + image, image + image]:
        path.write_bytes(broken)
        with pytest.raises(DataLoss, match="blob k is damaged"):
            await backend.stat("k")


async def test_a_file_under_another_name_is_found(backend: FilesystemBackend, tmp_path: Path) -> None:
    """A whole file that was moved to another key is not that key's blob."""
    await put(backend, "one")
    (tmp_path / "s/blobs/one@").rename(tmp_path / "s/blobs/two@")
    with pytest.raises(DataLoss, match="blob two is damaged: its record names another key"):
        await backend.stat("two")


async def test_a_listing_reports_a_damaged_record(backend: FilesystemBackend, tmp_path: Path) -> None:
    """Damage is reported by the key's name, never skipped; the delete that the message asks for repairs the listing."""
    await put(backend, "a")
    await put(backend, "b")
    os.truncate(tmp_path / "s/blobs/a@", 10)
    with pytest.raises(DataLoss, match=r"blob a is damaged.*delete it"):
        await backend.list_page("", after="", limit=10)
    await backend.delete("a")
    assert [blob.key for blob in await backend.list_page("", after="", limit=10)] == ["b"]


@pytest.mark.parametrize(
    "make",
    [lambda p, t: p.symlink_to(t), lambda p, t: os.mkfifo(p), lambda p, t: p.mkdir()],
    ids=["link", "pipe", "dir"],
)
async def test_only_regular_files_are_blobs(
    backend: FilesystemBackend, tmp_path: Path, make: Callable[[Path, Path], None]
) -> None:
    """A symbolic link, a pipe or a directory in a blob's place is never read."""
    secret = tmp_path / "secret"
    await put(backend, "real", b"secret")
    secret.write_bytes((tmp_path / "s/blobs/real@").read_bytes())
    make(tmp_path / "s/blobs/k@", secret)
    with pytest.raises(DataLoss, match="something that is neither a blob nor its directory stands in its place"):
        await backend.stat("k")


async def test_a_linked_directory_is_never_entered(backend: FilesystemBackend, tmp_path: Path) -> None:
    """Neither reading, writing, deleting nor listing follows a symbolic link out of the tree."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "k@").write_bytes(b"secret")
    (tmp_path / "s/blobs/d").symlink_to(outside)
    for ask in (backend.stat, backend.delete):
        with pytest.raises(DataLoss, match="blob d/k is damaged: something that is neither"):
            await ask("d/k")
    with pytest.raises(DataLoss, match="something that is neither"):
        await put(backend, "d/new")
    assert await backend.list_page("", after="", limit=10) == []
    assert files(outside) == ["k@"]


# ---- order and durability ---------------------------------------------------------------------------------------------


class Tape:
    """Records the calls of `os` that decide about durability, by what they were called on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, str]] = []
        self.fail: Callable[[str], bool] = lambda path: False
        self.hold: Callable[[str], None] = lambda path: None
        for name in ("fsync", "link", "unlink", "mkdir", "rmdir"):
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name)))

    def hold_back(self) -> tuple[threading.Event, threading.Event]:
        """Syncs wait from now on: (set when one has come, to be set for them to go on)."""
        reached, release = threading.Event(), threading.Event()

        def hold(path: str) -> None:
            reached.set()
            assert release.wait(10)

        self.hold = hold
        return reached, release

    def _wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(target: Any, *args: Any, **kwargs: Any) -> Any:
            shown = os.path.basename(os.readlink(f"/proc/self/fd/{target}")) if name == "fsync" else str(target)
            if len(shown) == 32:
                shown = "TEMP"
            self.calls.append((name, shown))
            if name == "fsync":
                self.hold(shown)
                if self.fail(shown):
                    raise OSError(errno.EIO, "Input/output error")
            return call(target, *args, **kwargs)

        return recorded


async def test_a_commit_syncs_before_it_is_seen_and_before_it_is_told(
    backend: FilesystemBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File, then link, then the directory and those that lead to it, then the temporary name: the order that a power cut forgives."""
    tape = Tape(monkeypatch)
    await put(backend, "a/b/k")
    assert tape.calls == [
        ("fsync", "TEMP"),
        ("mkdir", "a"),
        ("mkdir", "b"),
        ("link", "TEMP"),
        ("fsync", "b"),
        ("fsync", "a"),
        ("fsync", "blobs"),
        ("unlink", "TEMP"),
    ]
    tape.calls.clear()
    await put(backend, "a/b/l")
    assert tape.calls == [("fsync", "TEMP"), ("link", "TEMP"), ("fsync", "b"), ("unlink", "TEMP")]
    tape.calls.clear()
    await backend.delete("a/b/l")
    assert tape.calls == [("unlink", "l@"), ("rmdir", "b"), ("fsync", "b")]
    tape.calls.clear()
    await backend.delete("a/b/k")
    assert tape.calls == [("unlink", "k@"), ("rmdir", "b"), ("rmdir", "a"), ("fsync", "blobs")]


async def test_a_blob_is_seen_only_when_its_directory_is_synced(
    backend: FilesystemBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between link and sync of the directory the blob is not there for anybody; a second writer waits for the outcome."""
    reached, release = threading.Event(), threading.Event()
    tape = Tape(monkeypatch)

    def hold(path: str) -> None:
        if path == "d":
            reached.set()
            assert release.wait(10)

    tape.hold = hold
    first = asyncio.create_task(put(backend, "d/k"))
    await asyncio.to_thread(reached.wait, 10)
    with pytest.raises(BlobNotFound):
        await backend.stat("d/k")
    assert await backend.list_page("", after="", limit=10) == []
    assert await backend.delete("d/k") is False
    second = asyncio.create_task(put(backend, "d/k"))
    other = asyncio.create_task(put(backend, "d/k", b"other"))
    done, _ = await asyncio.wait((first, second, other), timeout=0.1)
    assert not done
    release.set()
    assert (await first).existed is False
    assert (await second).existed is True
    with pytest.raises(Conflict):
        await other
    assert [blob.key for blob in await backend.list_page("", after="", limit=10)] == ["d/k"]


async def test_a_directory_made_by_another_writer_is_synced_by_whoever_needs_it(
    backend: FilesystemBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blob is not told as durable while the directory that leads to it may vanish, whoever made the directory."""
    reached, release = threading.Event(), threading.Event()
    tape = Tape(monkeypatch)

    def hold(path: str) -> None:
        if path == "d" and not reached.is_set():
            reached.set()
            assert release.wait(10)

    tape.hold = hold
    first = asyncio.create_task(put(backend, "d/one"))
    await asyncio.to_thread(reached.wait, 10)
    tape.calls.clear()
    await put(backend, "d/two")
    assert [path for name, path in tape.calls if name == "fsync"] == ["TEMP", "d", "blobs"]
    release.set()
    await first


async def test_a_file_whose_sync_failed_is_dropped(
    backend: FilesystemBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The sync is not tried again on the same file, nothing is kept, and the next write gets a fresh file."""
    tape = Tape(monkeypatch)
    tape.fail = lambda path: path == "TEMP"
    with pytest.raises(Unavailable, match=r"the disk of storage failed \(Input/output error\); nothing was kept"):
        await put(backend, "a/k")
    assert tape.calls == [("fsync", "TEMP"), ("unlink", "TEMP")]
    assert files(tmp_path / "s/tmp") == files(tmp_path / "s/blobs") == []
    tape.fail = lambda path: False
    assert (await put(backend, "a/k")).existed is False


async def test_after_a_failed_sync_of_a_directory_nothing_is_written(
    backend: FilesystemBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is on disk is unknown then, so writing stops in one clear line until a restart; reading goes on."""
    await put(backend, "before")
    tape = Tape(monkeypatch)
    tape.fail = lambda path: path == "d"
    with pytest.raises(Unavailable, match="nothing was kept"):
        await put(backend, "d/k")
    tape.fail = lambda path: False
    with pytest.raises(Unavailable, match="mend the disk, restart storage"):
        await put(backend, "d/k")
    assert files(tmp_path / "s/tmp") == []
    assert files(tmp_path / "s/blobs") == ["before@"]
    assert await get(backend, "before") == b"content"


async def test_a_second_delete_waits_until_the_first_is_durable(
    backend: FilesystemBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That there is no such blob is told only when no loss of power brings it back."""
    await put(backend, "d/k")
    reached, release = Tape(monkeypatch).hold_back()
    first = asyncio.create_task(backend.delete("d/k"))
    await asyncio.to_thread(reached.wait, 10)
    second = asyncio.create_task(backend.delete("d/k"))
    done, _ = await asyncio.wait((first, second), timeout=0.1)
    release.set()
    assert not done
    assert (await first, await second) == (True, False)


async def test_a_delete_that_was_not_synced_is_not_told_as_done(
    backend: FilesystemBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(backend, "k")
    tape = Tape(monkeypatch)
    tape.fail = lambda path: True
    with pytest.raises(Unavailable, match="the disk of storage failed"):
        await backend.delete("k")
    tape.fail = lambda path: False
    with pytest.raises(Unavailable, match="mend the disk, restart storage"):
        await backend.delete("k")


# ---- a full disk ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["mkdir", "link", "fsync"])
async def test_a_disk_that_is_full_at_any_step_keeps_nothing(
    backend: FilesystemBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: str, number: int
) -> None:
    """DiskFull in one line, no file and no directory left."""
    real = getattr(os, call)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(DiskFull, match=r"^storage is full \(.*\); nothing was kept, free some space there$"):
        await put(backend, "a/b/k")
    monkeypatch.setattr(os, call, real)
    assert files(tmp_path / "s/tmp") == files(tmp_path / "s/blobs") == []
    assert (await put(backend, "a/b/k")).existed is False


async def test_an_announced_size_that_cannot_fit_is_refused_at_once(backend: FilesystemBackend, tmp_path: Path) -> None:
    """A blob larger than the free space is refused before any of it comes."""
    with pytest.raises(DiskFull):
        await backend.open_write("k", size_bytes=1 << 60)
    assert files(tmp_path / "s/tmp") == []


# ---- cancellation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", range(6))
async def test_a_cancelled_open_leaves_no_file_and_no_descriptor(
    backend: FilesystemBackend, tmp_path: Path, turns: int
) -> None:
    """Cancelling at any turn of the loop closes what was being opened."""
    await put(backend, "k")
    before = open_descriptors()
    for opening in (backend.open_write("new"), backend.open_read("k")):
        task = asyncio.create_task(opening)
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        try:
            opened = await task
        except asyncio.CancelledError:
            continue
        await (opened.abort() if isinstance(opened, filestream.FileWriter) else opened.close())
    assert open_descriptors() == before
    assert files(tmp_path / "s/tmp") == []


async def test_a_commit_whose_caller_is_cancelled_ends_before_the_abort_returns(
    backend: FilesystemBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The file is never taken from under the thread that syncs it; afterwards the blob is either whole or not there."""
    reached, release = Tape(monkeypatch).hold_back()
    task = asyncio.create_task(put(backend, "k"))
    await asyncio.to_thread(reached.wait, 10)
    task.cancel()
    await asyncio.sleep(0)
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert files(tmp_path / "s/tmp") == []
    assert await get(backend, "k") == b"content"


# ---- listing ----------------------------------------------------------------------------------------------------------


async def test_a_directory_is_read_once_for_all_its_pages(
    backend: FilesystemBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Walking many blobs in small pages reads each directory once, also while blobs come and go."""
    for index in range(60):
        await put(backend, f"d/{index:03}", b"")
    scans = 0
    scandir = os.scandir

    def counted(fd: int) -> Any:
        nonlocal scans
        scans += 1
        return scandir(fd)

    monkeypatch.setattr(os, "scandir", counted)
    found: list[str] = []
    while page := await backend.list_page("d/", after=found[-1] if found else "", limit=7):
        found += [blob.key for blob in page]
        await put(backend, f"d/new{len(found)}", b"")
        await backend.delete(f"d/new{len(found)}")
    assert found == [f"d/{index:03}" for index in range(60)]
    assert scans == 2  # the root and d


async def test_listing_is_right_when_nothing_can_be_remembered(
    backend: FilesystemBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound on remembered names changes the cost, not the answer."""
    monkeypatch.setattr(tree, "NAMES_REMEMBERED_MAX", 1)
    keys = sorted(f"{a}/{b}/{c}" for a in "xyz" for b in "xyz" for c in "xyz")
    for key in keys:
        await put(backend, key, b"")
    found: list[str] = []
    while page := await backend.list_page("", after=found[-1] if found else "", limit=4):
        found += [blob.key for blob in page]
    assert found == keys


# ---- start ------------------------------------------------------------------------------------------------------------


async def test_a_restart_sweeps_what_was_unfinished_and_keeps_the_rest(tmp_path: Path) -> None:
    """Files of writes that were under way are removed, blobs stay, and the storage keeps its id."""
    backend = FilesystemBackend.open(tmp_path / "s")
    server_id = backend.server_id
    await put(backend, "k")
    await backend.close()
    (tmp_path / "s/tmp/0123").write_bytes(b"unfinished")
    backend = FilesystemBackend.open(tmp_path / "s")
    assert files(tmp_path / "s/tmp") == []
    assert await get(backend, "k") == b"content"
    assert backend.server_id == server_id
    await backend.close()


async def test_closing_gives_everything_back(tmp_path: Path) -> None:
    """No descriptor and no thread outlives the backend."""
    before, threads = open_descriptors(), threading.active_count()
    backend = FilesystemBackend.open(tmp_path / "s")
    await put(backend, "a/b/c", bytes(1_500_000))
    await get(backend, "a/b/c")
    await backend.list_page("", after="", limit=10)
    await backend.delete("a/b/c")
    await backend.close()
    assert (open_descriptors(), threading.active_count()) == (before, threads)


async def test_errors_are_all_ours(
    backend: FilesystemBackend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that cannot read a blob has lost it. The log says so too, for whoever can mend the disk."""
    await put(backend, "k")

    def broken(*args: Any) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(AntFarmError) as caught:
        await backend.stat("k")
    assert isinstance(caught.value, DataLoss)
    assert str(caught.value).startswith("blob k is damaged: the disk cannot read it")
    assert [record.message for record in caplog.records] == [
        "the disk failed: [Errno 5] Input/output error; blob k cannot be read"
    ]
