"""Keys as a tree of directories: find, add, remove and list blob files. Blocking; called in threads.

Only this program changes the tree (the state directory is locked), so what a directory holds may be remembered. Names on disk: a segment
that is a directory has its own name, one that is a blob has "@" behind it, which no key contains; so `a` and `a/b` may both exist. A segment
longer than a file name may be is cut into directories whose names end in "+".

Every path is opened segment by segment by directory descriptor and without following symbolic links, so no byte of a key and nothing that
someone put into the tree leads out of it.

A blob that is added is seen by nobody until the directories that lead to it are synced: what a reader has once seen does not vanish.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from antfarm.errors import BlobNotFound, Unavailable
from antfarm.failpoint import failpoint
from services.storage.backends.base import damaged

_PIECE_CHARS = 200
"""Longest part of a segment in one file name: below the 255 of every file system in use, with room for the mark behind it."""
NAMES_REMEMBERED_MAX = 500_000
"""Names of directory entries kept in memory, about 100 bytes each. One directory is kept even when it alone is above."""

_SOMETHING_ELSE = "something that is neither a blob nor its directory stands in its place"
_ENTRY = re.compile(r"[A-Za-z0-9._-]+[@+]?\Z")
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = (
    os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
)  # a pipe put in place of a blob must not block us


def _path_of(key: str) -> tuple[list[str], str]:
    """(directories, file name) of a key."""
    names: list[str] = []
    for segment in key.split("/"):
        while len(segment) > _PIECE_CHARS:
            names.append(segment[:_PIECE_CHARS] + "+")
            segment = segment[_PIECE_CHARS:]
        names.append(segment)
    return names[:-1], names[-1] + "@"


_ToSync = list[tuple[int, tuple[str, ...] | None]]


def _close(to_sync: _ToSync) -> None:
    for fd, _ in to_sync:
        os.close(fd)


@contextmanager
def _nothing_else(key: str) -> Iterator[None]:
    """What was put into the tree by others, a symbolic link above all, makes DataLoss where it stands in a blob's way."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO):
            raise damaged(key, _SOMETHING_ELSE) from error
        raise


class Tree:
    """The blobs of one directory, by key."""

    def __init__(self, root_fd: int) -> None:
        self._root_fd = root_fd
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        # All below: read and changed under the lock only.
        self._committing: set[str] = set()  # keys whose file is linked but perhaps not durable: invisible
        self._removing: set[str] = set()  # keys whose file is gone but perhaps not durably
        self._unsynced: set[tuple[str, ...]] = set()  # directories whose entry in their parent is perhaps not durable
        # Remembered directories with their sorted entries; the one used last stands last.
        self._entries: OrderedDict[tuple[str, ...], list[str]] = OrderedDict()
        self._remembered = 0  # names in _entries, a directory itself counting as one
        self._failed = ""  # a directory's sync failed: what is on disk is unknown, so nothing is added until a restart

    # ---- one blob ---------------------------------------------------------------------------------------------------

    def open(self, key: str) -> int:
        """A descriptor of the blob's file. BlobNotFound; DataLoss when something else stands in its place."""
        directories, name = _path_of(key)
        try:
            with _nothing_else(key), self._opened(directories) as fds:
                fd = os.open(name, _FILE_FLAGS, dir_fd=fds[-1])
        except FileNotFoundError:
            raise BlobNotFound(f"no blob {key}") from None
        with self._lock:
            is_visible = key not in self._committing
        if not is_visible:
            os.close(fd)
            raise BlobNotFound(f"no blob {key}")
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise damaged(key, _SOMETHING_ELSE)
        return fd

    def add(self, key: str, source_fd: int, source: str) -> bool:
        """Give a finished, synced file its key, durably. False when the key is taken; it is then durable as well.

        Args:
            source_fd: directory of the file, in the same file system.
            source: its name there; it stays, for the caller to remove.
        """
        directories, name = _path_of(key)
        with self._lock:
            while key in self._committing:  # the winner's outcome decides ours
                self._changed.wait()
            if self._failed:
                raise Unavailable(self._failed)
            try:
                with _nothing_else(key), self._opened(directories, create=True) as fds:
                    to_sync = self._to_sync(directories, fds)
                    try:
                        failpoint("storage.before_link")
                        os.link(source, name, src_dir_fd=source_fd, dst_dir_fd=fds[-1], follow_symlinks=False)
                    except OSError:
                        _close(to_sync)
                        raise
            except FileExistsError:
                return False
            except OSError:
                os.close(self._prune(directories))
                raise
            self._committing.add(key)
            self._remember(directories, name)
        try:
            self._sync(to_sync)
            failpoint("storage.after_link")
        except OSError:
            with self._lock:
                os.close(self._unlink(directories, name))
            raise
        finally:
            with self._lock:
                self._committing.discard(key)
                self._changed.notify_all()
        return True

    def remove(self, key: str) -> bool:
        """Remove a blob and the directories that are empty then, durably. False when there is none, which is durable as well."""
        directories, name = _path_of(key)
        with self._lock:
            while key in self._removing:
                self._changed.wait()
            if key in self._committing:
                return False
            try:
                with _nothing_else(key):
                    lowest = self._unlink(directories, name)
            except FileNotFoundError:
                if self._failed:  # nobody knows whether it stays away
                    raise Unavailable(self._failed) from None
                return False
            self._removing.add(key)
        try:
            self._sync([(lowest, None)])
        finally:
            with self._lock:
                self._removing.discard(key)
                self._changed.notify_all()
        return True

    def _unlink(self, directories: list[str], name: str) -> int:
        """Take a file and the directories that are empty then away; a descriptor of the lowest that is left."""
        with self._opened(directories) as fds:
            os.unlink(name, dir_fd=fds[-1])
        self._forget(directories, name)
        return self._prune(directories)

    def _prune(self, directories: list[str]) -> int:
        """Remove the last of the directories while they are empty; a descriptor of the lowest that is left."""
        with self._opened(directories, partial=True) as fds:
            depth = len(fds) - 1
            while depth and self._remove_empty(directories[:depth], fds[depth - 1]):
                depth -= 1
            return os.dup(fds[depth])

    def _remove_empty(self, path: list[str], parent_fd: int) -> bool:
        try:
            os.rmdir(path[-1], dir_fd=parent_fd)
        except OSError:
            return False  # not empty
        self._unsynced.discard(tuple(path))
        known = self._entries.pop(tuple(path), None)
        if known is not None:
            self._remembered -= 1 + len(known)
        self._forget(path[:-1], path[-1])
        return True

    # ---- directories ------------------------------------------------------------------------------------------------

    @contextmanager
    def _opened(self, directories: list[str], *, create: bool = False, partial: bool = False) -> Iterator[list[int]]:
        """Descriptors from the root down to the last directory, closed at the end.

        Args:
            create: make those that are missing; only under the lock.
            partial: stop before the first that is missing.
        """
        fds = [self._root_fd]
        try:
            for depth, name in enumerate(directories):
                try:
                    fd = os.open(name, _DIRECTORY_FLAGS, dir_fd=fds[-1])
                except FileNotFoundError:
                    if partial:
                        break
                    if not create:
                        raise
                    os.mkdir(name, 0o750, dir_fd=fds[-1])
                    self._unsynced.add(tuple(directories[: depth + 1]))
                    self._remember(directories[:depth], name)
                    fd = os.open(name, _DIRECTORY_FLAGS, dir_fd=fds[-1])
                fds.append(fd)
            yield fds
        finally:
            for fd in fds[1:]:
                os.close(fd)

    def _to_sync(self, directories: list[str], fds: list[int]) -> _ToSync:
        """Copies of the descriptors to sync, deepest first, with the directory whose entry that makes durable (None: the file's).

        Another writer may have made a directory and not yet synced its parent: whoever puts a blob in it syncs the parent too.
        """
        found: _ToSync = []
        try:
            found.append((os.dup(fds[-1]), None))
            for depth in range(len(directories), 0, -1):
                path = tuple(directories[:depth])
                if path in self._unsynced:
                    found.append((os.dup(fds[depth - 1]), path))
        except OSError:
            _close(found)
            raise
        return found

    def _sync(self, to_sync: _ToSync) -> None:
        try:
            for fd, path in to_sync:
                os.fsync(fd)
                if path is not None:
                    with self._lock:
                        self._unsynced.discard(path)
        except OSError:
            with self._lock:
                self._failed = (
                    "nothing is written since a directory could not be synced; mend the disk, restart storage"
                )
            raise
        finally:
            _close(to_sync)

    # ---- listing ----------------------------------------------------------------------------------------------------

    def keys(self, prefix: str, after: str, limit: int) -> list[str]:
        """The first `limit` keys that start with `prefix` and are greater than `after`, in order.

        Reads a directory from disk once and remembers it, so a page costs O(depth * log(entries) + limit) after that, and a walk over n
        blobs O(n). A directory is read again only when more than NAMES_REMEMBERED_MAX other names were used in between.
        """
        found: list[str] = []
        with self._lock:
            for key in self._walk((), "", prefix, after):
                if key not in self._committing:
                    found.append(key)
                    if len(found) == limit:
                        break
        return found

    def _walk(self, directories: tuple[str, ...], base: str, prefix: str, after: str) -> Iterator[str]:
        """Keys under one directory, whose keys start with `base`, in order.

        A directory `a` is remembered as "a/" and so sorts among the blobs where its keys do: "a" < "a-b" < "a/..." < "a0".
        """
        entries = self._scanned(directories)
        low = max(prefix, after)
        start = 0
        if low.startswith(base):
            head, slash, _ = low[len(base) :].partition("/")
            start = bisect_left(entries, head + slash)
        for index in range(start, len(entries)):
            entry = entries[index]
            key = base + entry
            if not (key.startswith(prefix) or prefix.startswith(key)):
                if key > prefix:
                    return
                continue
            if entry.endswith("/"):
                yield from self._walk((*directories, *_path_of(entry + "x")[0]), key, prefix, after)
            elif key > after and key.startswith(prefix):
                yield key

    def _scanned(self, directories: tuple[str, ...]) -> list[str]:
        entries = self._entries.get(directories)
        if entries is not None:
            self._entries.move_to_end(directories)
            return entries
        try:
            with self._opened(list(directories)) as fds:
                entries = sorted(_scan(fds[-1], ""))
        except FileNotFoundError:
            return []
        self._entries[directories] = entries
        self._remembered += 1 + len(entries)
        while self._remembered > NAMES_REMEMBERED_MAX and len(self._entries) > 1:
            self._remembered -= 1 + len(self._entries.popitem(last=False)[1])
        return entries

    def _remember(self, directories: list[str], name: str) -> None:
        known, entry = self._place(directories, name)
        if known is not None:
            index = bisect_left(known, entry)
            if known[index : index + 1] != [entry]:
                known.insert(index, entry)
                self._remembered += 1

    def _forget(self, directories: list[str], name: str) -> None:
        known, entry = self._place(directories, name)
        if known is not None:
            index = bisect_left(known, entry)
            if known[index : index + 1] == [entry]:
                del known[index]
                self._remembered -= 1

    def _place(self, directories: list[str], name: str) -> tuple[list[str] | None, str]:
        """The remembered list that an entry belongs to, and the entry's form in it."""
        split = len(directories)
        while split and directories[split - 1].endswith("+"):
            split -= 1
        segment = "".join(part[:-1] for part in directories[split:])
        if name.endswith("+"):
            return None, ""  # a part of a segment is no entry
        entry = name[:-1] if name.endswith("@") else name + "/"
        return self._entries.get(tuple(directories[:split])), segment + entry


def _scan(fd: int, start: str) -> Iterator[str]:
    """Entries of a directory: "name" for a blob, "name/" for a directory. What no key leads to is passed over."""
    with os.scandir(fd) as entries:
        for entry in entries:
            name = entry.name
            if not _ENTRY.match(name):
                continue
            if name.endswith("@"):
                yield start + name[:-1]
            elif not entry.is_dir(follow_symlinks=False):
                continue
            elif name.endswith("+"):
                deeper = os.open(name, _DIRECTORY_FLAGS, dir_fd=fd)
                try:
                    yield from _scan(deeper, start + name[:-1])
                finally:
                    os.close(deeper)
            else:
                yield start + name + "/"
