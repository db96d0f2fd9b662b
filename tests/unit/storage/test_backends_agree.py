"""The file backend against the dictionary: any sequence of calls, restarts and forgotten directories included, has the same answers."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from antfarm.errors import AntFarmError
from services.storage.backends import tree
from services.storage.backends.base import Backend
from services.storage.backends.filesystem import FilesystemBackend
from services.storage.backends.memory import MemoryBackend

SEGMENTS = ["a", "a-", "a.b", "a0", "b", "c" * 200, "c" * 201, "c" * 200 + "-", "d" * 250]
keys = st.lists(st.sampled_from(SEGMENTS), min_size=1, max_size=3).map("/".join).filter(lambda key: len(key) <= 512)
prefixes = keys.flatmap(lambda key: st.integers(0, len(key)).map(lambda end: key[:end]))
contents = st.sampled_from([b"", b"one", b"two", bytes(600_000)])


async def put(backend: Backend, key: str, content: bytes) -> object:
    writer = await backend.open_write(key)
    try:
        await writer.write(content)
        return await writer.commit()
    finally:
        await writer.abort()


async def get(backend: Backend, key: str, offset: int, length: int) -> bytes:
    reader = await backend.open_read(key, offset=offset, length=length)
    pieces = []
    try:
        while piece := await reader.read():
            pieces.append(piece)
    finally:
        await reader.close()
    return b"".join(pieces)


class Agreement(RuleBasedStateMachine):
    """Both backends get every call."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = Path(tempfile.mkdtemp())
        self.model = MemoryBackend()
        self.real = FilesystemBackend.open(self.directory / "s")
        self.patches = [
            mock.patch("os.fsync")
        ]  # order and failure of syncs are tested elsewhere; here they only cost time
        for patch in self.patches:
            patch.start()

    def run(self, call: Coroutine[Any, Any, object]) -> object:
        try:
            return self.runner.run(call)
        except AntFarmError as error:
            return type(error), str(error)

    def same(self, real: Coroutine[Any, Any, object], model: Coroutine[Any, Any, object]) -> None:
        assert self.run(real) == self.run(model)

    @initialize(remembered=st.sampled_from([1, 5, 500_000]))
    def bound(self, remembered: int) -> None:
        self.patches.append(mock.patch.object(tree, "NAMES_REMEMBERED_MAX", remembered))
        self.patches[-1].start()

    @rule(key=keys, content=contents)
    def write(self, key: str, content: bytes) -> None:
        self.same(put(self.real, key, content), put(self.model, key, content))

    @rule(key=keys)
    def delete(self, key: str) -> None:
        self.same(self.real.delete(key), self.model.delete(key))

    @rule(key=keys, offset=st.sampled_from([0, 1, 3, 4, 524_288]), length=st.sampled_from([0, 1, 524_289]))
    def read(self, key: str, offset: int, length: int) -> None:
        self.same(get(self.real, key, offset, length), get(self.model, key, offset, length))

    @rule(prefix=prefixes, after=st.just("") | keys, limit=st.integers(1, 4))
    def list_page(self, prefix: str, after: str, limit: int) -> None:
        self.same(
            self.real.list_page(prefix, after=after, limit=limit),
            self.model.list_page(prefix, after=after, limit=limit),
        )

    @rule()
    def restart(self) -> None:
        self.runner.run(self.real.close())
        self.real = FilesystemBackend.open(self.directory / "s")

    @invariant()
    def nothing_else_lies_there(self) -> None:
        blobs = self.directory / "s/blobs"
        leaves = [path for path in blobs.rglob("*") if path.is_file() or not any(path.iterdir())]
        assert len(leaves) == len(self.model._keys)
        assert list((self.directory / "s/tmp").iterdir()) == []

    def teardown(self) -> None:
        for patch in self.patches:
            patch.stop()
        self.runner.run(self.real.close())
        self.runner.close()
        shutil.rmtree(self.directory)


Agreement.TestCase.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.slow
class TestAgreement(Agreement.TestCase):  # type: ignore[misc, name-defined]
    """Run by Hypothesis."""
