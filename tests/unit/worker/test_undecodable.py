"""A call that cannot be read ends its task alone, and as the same class in both kinds of children."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from antfarm import errors
from antfarm.model import ERROR_TEXT_BYTES_MAX, FailureClass
from antfarm.task import Task
from services.worker.child.failure import KIND_CHARS_MAX
from services.worker.child.loop import LoopChild, LoopRunner
from services.worker.child.plain import PlainChild
from services.worker.child.protocol import OUT_DONE, OUT_FAILED, Setup, Template
from services.worker.child.runner import AttemptContext, Job, Runner

PERMANENT, INFRA = FailureClass.PERMANENT, FailureClass.INFRA
BLOB = b'{"$blob":{"key":"k","size_bytes":1,"sha256":"' + b"00" * 32 + b'"}}'


class Said:
    """A channel into a list."""

    def __init__(self) -> None:
        self.page = [0] * 8
        self.records: list[Any] = []
        self.send = self.records.append


async def in_plain_child(said: Said, setup: Setup, calls: list[tuple[int, bytes]], error: Exception) -> None:
    child = PlainChild()
    child.runner = Runner(said, setup, None, {})  # type: ignore[arg-type]
    child.runner.fetch = raising(error)  # type: ignore[method-assign]
    job = Job(Template(job_id="job", epoch=1, type="t"), Task(lambda *args: len(args), "t"))
    child._queue.extend((job, [seq, 0, 1, data, None]) for seq, data in calls)
    child._run_queue()


async def in_loop_child(said: Said, setup: Setup, calls: list[tuple[int, bytes]], error: Exception) -> None:
    async def count(*args: object) -> int:
        return len(args)

    child = LoopChild()
    child.runner = LoopRunner(said, setup, None, {})  # type: ignore[arg-type]
    child.runner.fetch = raising(error)  # type: ignore[method-assign]
    job = Job(Template(job_id="job", epoch=1, type="t"), Task(count, "t"))
    for seq, data in calls:
        await child._attempt(job, AttemptContext(child.runner, job, seq, 0, 1), seq, data, None)


def raising(error: Exception) -> Any:
    def fetch(ref: object) -> bytes:
        raise error

    return fetch


@pytest.mark.parametrize("child", [in_plain_child, in_loop_child])
@pytest.mark.parametrize(
    ("error", "failure_class", "kind"),
    [
        (errors.DataLoss("blob k is damaged"), PERMANENT, "DataLoss"),
        (errors.BlobNotFound("no blob k"), PERMANENT, "undecodable input"),
        (errors.InvalidArgument("k is no key"), PERMANENT, "undecodable input"),
        (errors.Unavailable("k cannot be read now"), INFRA, "Unavailable"),
        (errors.Internal("a defect, see k in the log"), INFRA, "Internal"),
        (OSError(5, "k cannot be read here"), INFRA, "OSError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_both_kinds_of_children_say_the_same_and_run_on(
    tmp_path: Path, child: Any, error: Exception, failure_class: FailureClass, kind: str
) -> None:
    said = Said()
    setup = Setup(apps=[], installed_apps=False, allow_pickle=False, scratch=str(tmp_path), tls=[])
    await child(said, setup, [(1, BLOB), (2, b"[1,2]")], error)
    [failed, done] = said.records
    assert failed[:5] == (OUT_FAILED, 1, 0, failure_class.value, kind)
    assert "k" in failed[5]
    assert (done[0], done[1], done[3]) == (OUT_DONE, 2, b"2")


@pytest.mark.parametrize("child", [in_plain_child, in_loop_child])
async def test_what_the_reader_says_is_bounded(tmp_path: Path, child: Any) -> None:
    """A record that is too large would pass for garbage and cost the child its life."""
    said = Said()
    setup = Setup(apps=[], installed_apps=False, allow_pickle=True, scratch=str(tmp_path), tls=[])
    await child(said, setup, [(1, BLOB)], type("E" * 10**6, (Exception,), {})("x" * 10**6))
    assert said.records == [(OUT_FAILED, 1, 0, INFRA.value, "E" * KIND_CHARS_MAX, "x" * ERROR_TEXT_BYTES_MAX, "")]
