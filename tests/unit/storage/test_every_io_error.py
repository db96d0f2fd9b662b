"""The n-th call to the disk fails, for every n: a write is either told and whole, or refused and gone."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from antfarm.errors import AntFarmError, BlobNotFound, DiskFull, Overloaded, Unavailable
from services.storage.backends.base import Written
from services.storage.backends.filestream import DigestedFile
from services.storage.backends.filesystem import FilesystemBackend

CALLS = ("open", "mkdir", "link", "fsync", "dup", "unlink", "rmdir")
CONTENT = bytes(range(256)) * 5000


@contextmanager
def failing(nth: int, number: int) -> Iterator[list[str]]:
    """The n-th of the calls, the writing of content among them, raises; the list tells which were made."""
    made: list[str] = []
    patch = pytest.MonkeyPatch()

    def wrapped(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            made.append(name)
            if len(made) == nth:
                raise OSError(number, os.strerror(number))
            return call(*args, **kwargs)

        return counted

    for name in CALLS:
        patch.setattr(os, name, wrapped(name, getattr(os, name)))
    patch.setattr(DigestedFile, "_write_all", wrapped("write", DigestedFile._write_all))
    try:
        yield made
    finally:
        patch.undo()


async def put(backend: FilesystemBackend, key: str) -> Written:
    writer = await backend.open_write(key)
    try:
        for start in range(0, len(CONTENT), 300_000):
            await writer.write(CONTENT[start : start + 300_000])
        return await writer.commit()
    finally:
        await writer.abort()


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


@pytest.mark.parametrize(
    ("number", "expected"), [(errno.EIO, Unavailable), (errno.ENOSPC, DiskFull), (errno.EMFILE, Overloaded)]
)
async def test_a_write_is_told_and_whole_or_refused_and_gone(
    tmp_path: Path, number: int, expected: type[AntFarmError]
) -> None:
    """Whatever the call, whatever the error; after a restart as well. No descriptor leaks."""
    told, refused, failed_calls = 0, 0, set[str]()
    for nth in range(1, 1000):
        path = tmp_path / str(nth)
        descriptors = len(os.listdir("/proc/self/fd"))
        backend = FilesystemBackend.open(path)
        await put(backend, "a/before")
        with failing(nth, number) as made:
            try:
                is_told = not (await put(backend, "a/b/c/k")).existed
            except expected:
                is_told = False
        if len(made) < nth:  # the write needs fewer calls than that
            assert is_told
            await backend.close()
            break
        failed_calls.add(made[nth - 1])
        told, refused = told + is_told, refused + (not is_told)
        for _ in range(2):
            if is_told:
                assert (await backend.verify("a/b/c/k")).size_bytes == len(CONTENT)
            else:
                with pytest.raises(BlobNotFound):
                    await backend.stat("a/b/c/k")
                assert files(path / "blobs") == ["a", "a/before@"]
            assert (await backend.verify("a/before")).size_bytes == len(CONTENT)
            await backend.close()
            assert len(os.listdir("/proc/self/fd")) == descriptors, f"call {nth}, {made[nth - 1]}, leaks"
            backend = FilesystemBackend.open(path)
            assert files(path / "tmp") == []
        await backend.close()
    else:
        raise AssertionError("the write never came to its end")
    assert failed_calls >= {"open", "mkdir", "link", "fsync", "dup", "write", "unlink"}
    assert told == 1  # only the removal of the temporary name may fail without harm
    assert refused >= 15
