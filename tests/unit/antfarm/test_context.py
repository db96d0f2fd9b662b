"""A context hands on what a task says and keeps the list of what it saved."""

from __future__ import annotations

import hashlib
import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from antfarm.context import Context, current_context, use_context
from antfarm.errors import InvalidArgument, WrongState
from antfarm.form import File
from antfarm.model import BlobRef


class Store:
    """Keeps blobs in a dict, as Storage does."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    def put(self, key: str, data: bytes | Path) -> BlobRef:
        raw = data.read_bytes() if isinstance(data, Path) else data
        self.blobs[key] = raw
        return BlobRef(key=key, size_bytes=len(raw), sha256=hashlib.sha256(raw).digest())


class AsyncStore(Store):
    async def put(self, key: str, data: bytes | Path) -> BlobRef:  # type: ignore[override]
        return super().put(key, data)


def make(tmp_path: Path, store: Any, said: list[Any], *, is_async: bool = False) -> Context:
    def scratch() -> Path:
        path = tmp_path / f"scratch-{len(list(tmp_path.iterdir()))}"
        path.mkdir()
        return path

    return Context(
        job_id="j",
        index=7,
        epoch=2,
        attempt=3,
        scratch=scratch,
        log=logging.getLogger("test"),
        report_progress=lambda fraction, text: said.append((fraction, text)),
        open_storage=lambda: store,
        stopping=threading.Event(),
        is_async=is_async,
    )


def test_saved_outputs_have_keys_of_the_attempt_and_enter_the_manifest(tmp_path: Path) -> None:
    store = Store()
    ctx = make(tmp_path, store, [])
    saved = ctx.save("out/mask.png", b"abc")
    digest = hashlib.sha256(b"abc").digest()
    assert saved == File(key="tasks/j/7/2-3/out/mask.png", size_bytes=3, sha256=digest, name="out/mask.png")
    assert ctx.outputs == (BlobRef(key=saved.key, size_bytes=3, sha256=digest),)
    assert store.blobs == {saved.key: b"abc"}
    with pytest.raises(InvalidArgument, match=r"bytes or a pathlib\.Path"):
        ctx.save("x", "text")  # type: ignore[arg-type]


async def test_async_functions_await_save(tmp_path: Path) -> None:
    ctx = make(tmp_path, AsyncStore(), [], is_async=True)
    saved = await ctx.save("a", b"1")
    assert saved.key == "tasks/j/7/2-3/a"
    assert len(ctx.outputs) == 1


def test_scratch_is_made_once_and_on_demand(tmp_path: Path) -> None:
    ctx = make(tmp_path, Store(), [])
    assert list(tmp_path.iterdir()) == []
    assert ctx.scratch == ctx.scratch
    assert len(list(tmp_path.iterdir())) == 1


def test_progress_is_clamped_and_cut(tmp_path: Path) -> None:
    said: list[Any] = []
    ctx = make(tmp_path, Store(), said)
    ctx.progress(0.4, "masking")
    ctx.progress(7)
    ctx.progress(text="é" * 1000)
    assert said[:2] == [(0.4, "masking"), (1.0, "")]
    assert said[2] == (None, "é" * 128)


def test_the_current_context_exists_inside_a_task_only(tmp_path: Path) -> None:
    ctx = make(tmp_path, Store(), [])
    with use_context(ctx):
        assert current_context() is ctx
    with pytest.raises(WrongState, match="does not run inside a worker"):
        current_context()
