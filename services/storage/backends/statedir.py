"""The directory that the file backend owns: made or recognised, locked, and cleaned of what a killed process left.

    lock       flocked while a storage runs
    storage.json   what this directory is, and the stable id of the storage that lies in it
    record.json    the journals that the sweeper asks, and whether the one at the top is among them
    tmp/       files on their way in
    blobs/     the tree of blobs

A directory with other things in it is refused, so that a wrong path does no harm. Blocking; runs before the program serves.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from antfarm.errors import InvalidArgument
from antfarm.files import lock, sync, write_durably

FORMAT = 1
_MARK = "storage.json"
_PASSED_OVER = {"lock", "lost+found"}  # of a start that was killed; of a file system's own root


@dataclass(frozen=True, slots=True, kw_only=True)
class StateDir:
    """An open, locked storage directory. The descriptors are held until `close`."""

    path: Path
    server_id: str
    lock_fd: int
    tmp_fd: int
    blobs_fd: int

    def close(self) -> None:
        """Release the directory to another storage."""
        for fd in (self.tmp_fd, self.blobs_fd, self.lock_fd):
            os.close(fd)


def open_state_dir(path: Path, *, make_parents: bool = False) -> StateDir:
    """Open or make the directory. InvalidArgument in one line when it cannot serve.

    What is visible at return is durable, even if the process before was killed between making it visible and syncing it.
    """
    try:
        return _open(path, make_parents)
    except (FileExistsError, NotADirectoryError):
        raise InvalidArgument(f"--backend file:{path}: a part of the path is not a directory") from None
    except OSError as error:
        if not path.parent.exists():
            raise InvalidArgument(f"--backend file:{path}: its parent directory does not exist; create it") from None
        raise InvalidArgument(
            f"--backend file:{path}: {error.strerror}; give a directory that can be written"
        ) from None


def _open(path: Path, make_parents: bool) -> StateDir:
    if make_parents:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    is_new = not path.exists()
    path.mkdir(mode=0o700, exist_ok=True)
    lock_fd = _locked(path)
    try:
        server_id = _recognised(path)
        for name in ("tmp", "blobs"):
            (path / name).mkdir(mode=0o700, exist_ok=True)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        tmp_fd, blobs_fd = os.open(path / "tmp", flags), os.open(path / "blobs", flags)
        if os.fstat(tmp_fd).st_dev != os.fstat(blobs_fd).st_dev:
            raise InvalidArgument(f"--backend file:{path}: tmp and blobs must lie in one file system")
        _sweep(tmp_fd)
        sync(path)
        if is_new:
            sync(path.parent)
    except BaseException:
        os.close(lock_fd)
        raise
    return StateDir(path=path, server_id=server_id, lock_fd=lock_fd, tmp_fd=tmp_fd, blobs_fd=blobs_fd)


def _locked(path: Path) -> int:
    fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if not lock(fd, path / "lock", f"--backend file:{path}"):
            owner = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise InvalidArgument(f"--backend file:{path}: another storage (process {owner}) uses this directory")
    except InvalidArgument:
        os.close(fd)
        raise
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _recognised(path: Path) -> str:
    """The id in the directory's mark; a new mark when the directory is empty."""
    mark = path / _MARK
    if not mark.exists():
        if set(os.listdir(path)) - _PASSED_OVER - {_MARK + ".new"}:
            raise InvalidArgument(f"--backend file:{path}: not empty and not a storage directory; give another one")
        server_id = secrets.token_hex(16)
        write_durably(mark, json.dumps({"format": FORMAT, "server_id": server_id}) + "\n")
        return server_id
    try:
        content = json.loads(mark.read_text())
        number, server_id = int(content["format"]), str(content["server_id"])
    except (ValueError, KeyError, TypeError):
        raise InvalidArgument(f"--backend file:{path}: {_MARK} is damaged; restore it from a backup") from None
    if number != FORMAT:
        raise InvalidArgument(
            f"--backend file:{path}: format {number} is not known to this version, which knows {FORMAT}"
        )
    return server_id


def _sweep(tmp_fd: int) -> None:
    """Remove what unfinished writes left. Their last step is the removal of the file, so without files nothing was unfinished."""
    left = os.listdir(tmp_fd)
    if not left:
        return
    _sync_file_system(tmp_fd)  # one of them may have been linked already, and its directory not yet synced
    for name in left:
        os.unlink(name, dir_fd=tmp_fd)


def _sync_file_system(fd: int) -> None:
    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is None:  # not Linux
        os.sync()
    elif syncfs(fd) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
